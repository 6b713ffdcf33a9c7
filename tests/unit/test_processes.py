"""A cache over a fork: the child gets connections and locks of its own."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from backburner import Cache
from tests.conftest import Eventually
from tests.processes import free_port


def _in_child(work: Callable[[], bool]) -> bool:
    """Whether `work` is true in a forked child."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if work() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_parent_and_child_do_not_share_a_connection(redis_url: str) -> None:
    cache = Cache(redis_url, strict=True)
    tagged = cache.tags("books")
    tagged.put("key", "parent")

    def child() -> bool:
        same = all(cache.get("key") == "parent" for _ in range(200))
        return same and tagged.put("of the child", 1)

    assert _in_child(child)
    assert all(cache.get("key") == "parent" for _ in range(200))
    assert cache.get("of the child") == 1
    cache.close()


@contextmanager
def _held_by_a_thread(lock: threading.Lock) -> Iterator[None]:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            assert done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_lock_that_a_thread_of_the_parent_holds_is_free_in_the_child() -> None:
    cache = Cache("memory://")
    cache.put("key", 1)
    with _held_by_a_thread(cache._memory._lock):
        assert _in_child(lambda: cache.put("key", 2) and cache.get("key") == 2)
    assert cache.get("key") == 1


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_that_is_forked_while_a_thread_changes_what_is_in_memory_begins_with_nothing() -> None:
    cache = Cache("memory://?max_items=1")
    cache.tags("tag").put("key", 1)
    store = cache._memory
    with _held_by_a_thread(store._lock):
        store._tags.dropped(store._entries["key"].tags)  # half of what an eviction does
        assert _in_child(lambda: cache.missing("key") and cache.put("other", 2) and cache.get("other") == 2)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_that_is_forked_while_a_thread_notes_what_is_owed_can_note_it_too() -> None:
    cache = Cache(f"redis://127.0.0.1:{free_port()}/0")  # where nobody is
    with _held_by_a_thread(cache._owed._lock):
        assert _in_child(lambda: signal.alarm(5) == 0 and not cache.forget("key") and cache._owed.some)
    cache.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_computation_of_the_parent_is_not_waited_for_in_the_child() -> None:
    cache = Cache("memory://")
    assert cache.remember("key", 60, lambda: _in_child(lambda: cache.remember("other", 60, lambda: 5) == 5))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_has_copies_of_its_own_and_hears_what_the_parent_changes(
    redis_url: str, eventually: Eventually
) -> None:
    cache = Cache(redis_url, strict=True)
    cache.put("key", "old")
    eventually(lambda: (cache.get("key"), cache.stats().memory_items)[1])
    mine, theirs = multiprocessing.get_context("fork").Pipe()

    def child() -> bool:
        kept_by_the_parent = cache.stats().memory_items
        eventually(lambda: (cache.get("key"), cache.stats().memory_items)[1])
        theirs.send("kept")
        eventually(lambda: cache.get("key") == "new")
        cache.put("answer", cache.stats().tracking)
        return kept_by_the_parent == 0

    def change() -> None:
        assert mine.poll(30)
        mine.recv()
        cache.put("key", "new")

    parent = threading.Thread(target=change)
    parent.start()
    assert _in_child(child)
    parent.join()
    assert cache.get("answer") == "tracking"
    cache.close()
