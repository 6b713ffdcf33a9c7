"""What a cache counts: every kind of thing that happens, by namespace and by tier."""

import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier, Event, Thread
from typing import Any

import pytest
import redis

from backburner import Cache
from backburner.cache.counters import MOST_NAMESPACES, OTHER, Counters
from backburner.events import Hit, Waited
from backburner.redis.embedded import EmbeddedServer
from tests.conftest import Eventually
from tests.contract.conftest import Clock

FLUSHED = 1
"""By the fixture, before each test."""


def fail() -> None:
    raise LookupError("no value")


def test_what_happens_to_a_key_is_counted_in_the_namespace_before_its_first_colon(cache: Any) -> None:
    cache.put("user:1", 1)
    cache.put("user:1:orders", 1)
    cache.put("plain", 1)
    cache.get("user:1")
    cache.get("book:1")
    cache.forget_many(["user:1", "user:2", "book:1"])
    stats = cache.stats()
    assert set(stats.namespaces) == {"user", "book", ""}
    user, book, plain = (stats.namespaces[name] for name in ("user", "book", ""))
    assert (user.stored, user.hits, user.misses, user.invalidated) == (2, 1, 0, 2)
    assert (book.stored, book.hits, book.misses, book.invalidated) == (0, 0, 1, 1)
    assert (plain.stored, plain.hits, plain.misses, plain.invalidated) == (1, 0, 0, FLUSHED)
    assert (stats.stored, stats.hits, stats.misses, stats.invalidated) == (3, 1, 1, 3 + FLUSHED)
    assert stats.hit_ratio == 0.5


def test_a_flush_counts_for_the_namespace_of_each_tag(cache: Any) -> None:
    cache.tags("user:1", "books").flush()
    cache.flush()
    namespaces = cache.stats().namespaces
    assert {name: counts.invalidated for name, counts in namespaces.items()} == {"user": 1, "": 2 + FLUSHED}


def test_callbacks_are_counted_with_their_time_and_by_how_they_end(cache: Any, clock: Clock) -> None:
    cache.flexible("user:1", (10, 60), lambda: "first")
    cache.remember_many(["user:2", "user:3"], 60, lambda keys: dict.fromkeys(keys, 1))
    with suppress(LookupError):
        cache.remember("user:4", 60, fail)
    stats = cache.stats()
    assert (stats.computed, stats.failed, stats.refreshed, stats.misses, stats.stored) == (2, 1, 0, 4, 3)
    assert 0 < stats.compute_seconds < 5
    clock.advance(11)
    assert cache.remember("user:1", 60, lambda: "second") == "second"
    assert cache.stats().computed == 3


def test_a_value_beyond_its_freshness_counts_as_stale_whether_it_is_a_hit_or_stands_in(
    cache: Any, clock: Clock, eventually: Eventually
) -> None:
    renewed = Event()
    cache.flexible("user:1", (10, 60), lambda: "first")
    cache.remember("user:2", 10, lambda: "first", grace=60)
    clock.advance(11)
    assert cache.flexible("user:1", (10, 60), lambda: renewed.set() or "second") == "first"
    assert cache.remember("user:2", 10, fail, grace=60) == "first"
    stats = cache.stats()
    assert (stats.hits, stats.stale, stats.stale_on_error, stats.misses) == (1, 2, 1, 3)
    assert sum(counts.stale for counts in stats.tiers.values()) == 1
    eventually(lambda: cache.get("user:1") == "second")
    assert cache.stats().refreshed == 1


class Pair:
    """Two processes' caches, as far as counting goes."""

    def __init__(self, url: str) -> None:
        self.one, self.other = Cache(url, strict=True, timeout=5), Cache(url, strict=True, l1=False, timeout=5)


@pytest.fixture
def pair(redis_url: str) -> Iterator[Pair]:
    pair = Pair(redis_url)
    yield pair
    pair.one.close()
    pair.other.close()


def test_a_hit_counts_for_the_tier_that_answered(pair: Pair, eventually: Eventually) -> None:
    pair.one.put("user:1", {"a": 1})
    pair.other.get("user:1")
    pair.other.get("user:1")
    assert {tier: counts.hits for tier, counts in pair.other.stats().tiers.items()} == {
        "memory": 0,
        "server": 2,
        "flight": 0,
    }
    assert pair.other.stats().tracking is None
    eventually(lambda: pair.one.get("user:1") and pair.one.stats().memory_items)
    before = pair.one.stats().tiers
    pair.one.get("user:1")
    pair.one.many(["user:1"])
    after = pair.one.stats().tiers
    assert before["server"].hits >= 1
    assert after["memory"].hits == before["memory"].hits + 2
    assert after["server"].hits == before["server"].hits
    assert pair.one.stats().tracking == "tracking"


def test_who_subscribes_later_hears_of_hits_as_long_as_he_wants_and_each_is_counted() -> None:
    cache, heard = Cache("memory://"), []
    cache.put("key", 1)
    for _ in range(2):
        cache.get("key")
    end = cache.events.subscribe(heard.append, Hit)
    for _ in range(3):
        cache.get("key")
    end()
    for _ in range(4):
        cache.get("key")
    assert heard == [Hit("key", "memory")] * 3
    assert cache.stats().hits == 9


def test_who_waits_for_anothers_callback_is_counted_with_the_time(
    pair: Pair, valkey: EmbeddedServer, eventually: Eventually
) -> None:
    began, go, seen = Event(), Event(), []
    pair.one.events.subscribe(seen.append, Waited)
    pair.other.events.subscribe(seen.append, Waited)

    def load() -> str:
        began.set()
        assert go.wait(10)
        return "value"

    def blocked() -> int:
        with redis.Redis.from_url(valkey.url) as client:
            return int(client.info("clients")["blocked_clients"])

    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(pair.one.remember, "user:1", 60, load)]
        assert began.wait(10)
        calls.append(pool.submit(pair.one.remember, "user:1", 60, fail))
        calls.append(pool.submit(pair.other.remember, "user:1", 60, fail))
        eventually(blocked)
        eventually(lambda: next(iter(pair.one._flights._under_way.values())).landed._condition._waiters)
        go.set()
        assert [call.result(10) for call in calls] == ["value"] * 3
    assert sorted(event.on for event in seen) == ["flight", "lease"]
    one, other = pair.one.stats(), pair.other.stats()
    assert (one.waited, one.tiers["flight"].hits, one.computed, one.misses) == (1, 1, 1, 1)
    assert (other.waited, other.tiers["server"].hits, other.computed, other.misses) == (1, 1, 0, 0)
    assert one.wait_seconds + other.wait_seconds == pytest.approx(sum(event.seconds for event in seen))


def test_what_makes_room_in_memory_is_counted() -> None:
    cache = Cache("memory://?max_items=2")
    for number in range(5):
        cache.put(f"user:{number}", "value")
    assert cache.stats().namespaces["user"].evicted == 3
    assert cache.stats().memory_items == 2


def test_a_caller_that_does_not_wait_for_the_end_is_counted(clock: Clock) -> None:
    cache, go = Cache("memory://", clock=clock), Event()
    cache.remember("user:1", 10, lambda: "first", grace=60)
    clock.advance(11)
    assert cache.remember("user:1", 10, lambda: go.wait(10), grace=60, soft_timeout=0.01) == "first"
    go.set()
    stats = cache.stats()
    assert (stats.late, stats.stale) == (1, 1)


def test_threads_that_hit_at_the_same_time_lose_no_count() -> None:
    cache, threads, hits = Cache("memory://"), 4, 20_000
    cache.put("user:1", "value")
    together = Barrier(threads)

    def read() -> None:
        together.wait(10)
        for _ in range(hits):
            cache.get("user:1")

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        readers = [Thread(target=read) for _ in range(threads)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
    finally:
        sys.setswitchinterval(switch)
    assert cache.stats().namespaces["user"].hits == threads * hits


def test_keys_that_begin_with_an_identifier_make_no_endless_list() -> None:
    cache = Cache("memory://")
    for number in range(MOST_NAMESPACES + 50):
        cache.get(f"{number}:profile")
    stats = cache.stats()
    assert len(stats.namespaces) == MOST_NAMESPACES + 1
    assert stats.namespaces[OTHER].misses == 50
    assert stats.misses == MOST_NAMESPACES + 50


def test_a_forked_child_counts_from_nothing_and_goes_on_counting() -> None:
    counters = Counters()
    held = counters.of("user:1").tiers["memory"]
    held.tally += 3.0
    counters.of("user:1").misses += 1
    counters.after_fork()
    held.tally += 1.0
    assert (counters.snapshot()["user"].hits, counters.snapshot()["user"].misses) == (1, 0)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_process_tells_only_what_it_did_itself() -> None:
    cache = Cache("memory://")
    cache.put("user:1", "value")
    cache.get("user:1")
    fork = multiprocessing.get_context("fork")
    told = fork.SimpleQueue()

    def child() -> None:
        cache.get("user:1")
        cache.get("user:2")
        stats = cache.stats()
        told.put((stats.hits, stats.misses, stats.stored))

    process = fork.Process(target=child)
    process.start()
    process.join(10)
    assert told.get() == (1, 1, 0)
    assert cache.stats().hits == 1


def test_what_was_told_is_not_changed_by_what_happens_later() -> None:
    cache = Cache("memory://")
    cache.get("user:1")
    before = cache.stats()
    cache.get("user:1")
    assert (before.misses, before.namespaces["user"].misses) == (1, 1)
