"""The asyncio pool's threads for functions."""

import threading
from queue import SimpleQueue

import pytest

from backburner.queue.pool.threads import Threads


def refuse(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_a_system_that_gives_no_more_threads_has_those_that_there_are_do_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads, go, done = Threads(4), threading.Event(), SimpleQueue[int]()
    threads.call(go.wait)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for number in range(3):
            threads.call(lambda number=number: done.put(number))
    assert len(threads) == 1
    go.set()
    assert [done.get(timeout=10) for _ in range(3)] == [0, 1, 2]


def test_a_system_that_gives_no_thread_at_all_is_an_error_and_the_next_call_tries_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads, done = Threads(4), SimpleQueue[int]()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            threads.call(lambda: done.put(1))
    threads.call(lambda: done.put(2))
    assert done.get(timeout=10) == 2
    assert done.empty()
