"""Callbacks that take longer than their callers want to wait: who gets what, and what becomes of the result."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest

from backburner import Cache
from backburner.errors import BackburnerError, CallbackTimeout
from backburner.events import Event, LateCallback, RefreshFailed
from tests.conftest import Eventually
from tests.contract.conftest import Asynchronous, Clock, Later
from tests.processes import free_port

SHORT = 0.01
"""Seconds that callers wait for callbacks that end only when they are told to."""
who: ContextVar[str] = ContextVar("who", default="nobody")


class Slow:
    """A callback, of the kind that the cache's world needs, that computes until it is let go."""

    def __init__(self, cache: Any, outcome: object = "new") -> None:
        self.calls = 0
        self.seen = ""
        self._outcome = outcome
        self._loop = cache._loop if isinstance(cache, Asynchronous) else None
        self._go: Any = asyncio.Event() if self._loop else threading.Event()

    def __call__(self) -> object:
        self.calls += 1
        self.seen = who.get()
        return self._later() if self._loop else self._end(self._go.wait(10))

    async def _later(self) -> object:
        await self._go.wait()
        return self._end(True)

    def _end(self, told: bool) -> object:
        assert told
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def go(self) -> None:
        self._go.set()


@pytest.fixture
def slow(cache: Any) -> Iterator[Callable[..., Slow]]:
    made: list[Slow] = []

    def make(outcome: object = "new") -> Slow:
        made.append(Slow(cache, outcome))
        return made[-1]

    yield make
    for each in made:
        each.go()
    _let_land(cache)


def _let_land(cache: Any) -> None:
    """Wait until all computations have ended."""
    if isinstance(cache, Asynchronous):
        tasks = [task for engine in cache._cache._aengines.values() for task in engine.runtime._spawned]
        if tasks:
            cache._loop.run_until_complete(asyncio.wait(tasks))
    for thread in threading.enumerate():
        if thread.name == "backburner-callback":
            thread.join(10)


def _told(cache: Any) -> list[Event]:
    told: list[Event] = []
    cache.events.subscribe(told.append, LateCallback, RefreshFailed)
    return told


def _make_stale(cache: Any, clock: Clock) -> None:
    cache.remember("key", 10, lambda: "old", grace=60)
    clock.advance(11)


def test_a_soft_timeout_gives_the_value_of_before_and_stores_the_new_one_when_it_is_there(
    cache: Any, clock: Clock, slow: Callable[..., Slow]
) -> None:
    _make_stale(cache, clock)
    told, load = _told(cache), slow()
    for _ in range(3):
        assert cache.remember("key", 10, load, grace=60, soft_timeout=SHORT) == "old"
    assert told == [LateCallback("key", SHORT, stale=True)] * 3
    assert cache.missing("key")
    load.go()
    _let_land(cache)
    assert cache.get("key") == "new"
    assert load.calls == 1


def test_a_callback_within_its_timeouts_gives_its_value_and_sees_the_callers_context(cache: Any, clock: Clock) -> None:
    _make_stale(cache, clock)
    reset = who.set("me")
    assert cache.remember("key", 10, who.get, grace=60, soft_timeout=10, hard_timeout=10) == "me"
    assert cache.remember("other", 10, who.get, hard_timeout=10) == "me"
    assert cache.get("other") == "me"
    who.reset(reset)


def test_what_a_callback_with_a_timeout_raises_reaches_the_caller_as_it_is(cache: Any) -> None:
    def fail() -> None:
        raise LookupError("no such row")

    with pytest.raises(LookupError, match="no such row"):
        cache.remember("key", 10, fail, hard_timeout=10)
    assert cache.remember("key", 10, lambda: "better", hard_timeout=10) == "better"


def test_a_hard_timeout_raises_and_stores_the_value_when_it_is_there(cache: Any, slow: Callable[..., Slow]) -> None:
    told, load = _told(cache), slow()
    for _ in range(2):
        with pytest.raises(CallbackTimeout, match=r"'key' gave nothing within hard_timeout=0\.01 s") as raised:
            cache.remember("key", 10, load, hard_timeout=SHORT)
        assert isinstance(raised.value, BackburnerError)
        assert isinstance(raised.value, TimeoutError)
    assert told == [LateCallback("key", SHORT, stale=False)] * 2
    load.go()
    _let_land(cache)
    assert cache.remember("key", 10, load) == "new"
    assert load.calls == 1


def test_a_soft_timeout_without_a_value_of_before_waits(cache: Any) -> None:
    assert cache.remember("key", 10, lambda: "new", soft_timeout=0) == "new"


@pytest.mark.parametrize("remove", ["forget", "put", "flush", "flush the tag", "expire"])
def test_what_is_removed_before_a_late_callback_has_ended_stays_removed(
    cache: Any, slow: Callable[..., Slow], remove: str
) -> None:
    load = slow()
    with pytest.raises(CallbackTimeout):
        cache.tags("books").remember("key", 10, load, hard_timeout=SHORT)
    match remove:
        case "put":
            cache.put("key", "newer")
        case "flush the tag":
            cache.tags("books").flush()
        case "flush":
            cache.flush()
        case verb:
            getattr(cache, verb)("key")
    load.go()
    _let_land(cache)
    assert cache.get("key") == ("newer" if remove == "put" else None)


def test_a_late_callback_that_fails_is_told_since_nobody_waits_for_it(cache: Any, slow: Callable[..., Slow]) -> None:
    told, load = _told(cache), slow(LookupError("gone"))
    with pytest.raises(CallbackTimeout):
        cache.remember("key", 10, load, hard_timeout=SHORT)
    load.go()
    _let_land(cache)
    assert [type(event) for event in told] == [LateCallback, RefreshFailed]
    assert cache.remember("key", 10, lambda: "better", hard_timeout=10) == "better"


def test_a_value_that_is_renewed_ahead_is_given_at_its_timeout(
    cache: Any, clock: Clock, slow: Callable[..., Slow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backburner.cache.engine.refresh_point", lambda fresh_until, *_: fresh_until - 30)
    cache.remember("key", 60, lambda: "old")
    clock.advance(40)
    load, told = slow(), _told(cache)
    assert cache.remember("key", 60, load, hard_timeout=SHORT) == "old"
    assert cache.remember("key", 60, load, soft_timeout=SHORT) == "old"
    assert told == [LateCallback("key", SHORT, stale=False)]
    load.go()
    _let_land(cache)
    assert cache.get("key") == "new"
    assert load.calls == 1


def test_of_many_threads_each_waits_as_long_as_it_wants(redis_url: str, eventually: Eventually) -> None:
    cache = Cache(redis_url, strict=True, timeout=5)
    load = Slow(cache)
    with ThreadPoolExecutor(6) as pool:
        patient = pool.submit(cache.remember, "key", 60, load)
        eventually(lambda: load.calls)
        hasty = [pool.submit(cache.remember, "key", 60, load, hard_timeout=SHORT) for _ in range(5)]
        assert [type(each.exception()) for each in hasty] == [CallbackTimeout] * 5
        load.go()
        assert patient.result() == "new"
    assert load.calls == 1
    cache.close()


def test_cancelling_whoever_came_first_does_not_end_a_callback_with_a_timeout(redis_url: str) -> None:
    async def main() -> None:
        cache = Cache(redis_url, strict=True, timeout=5)
        load = Later("value")

        first = asyncio.create_task(cache.aremember("key", 60, load, hard_timeout=30))
        await load.began.wait()
        second = asyncio.create_task(cache.aremember("key", 60, load, hard_timeout=30))
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        load.go.set()
        assert await second == "value"
        await cache.aclose()

    asyncio.run(main())


def test_a_callback_with_a_timeout_that_asks_for_its_own_key_is_told_instead_of_hanging(cache: Any) -> None:
    blocking = getattr(cache, "_cache", cache)
    with pytest.raises(RuntimeError, match="would wait for itself"):
        cache.remember("key", 60, lambda: blocking.remember("key", 60, int), hard_timeout=10)


def test_without_the_server_timeouts_hold_all_the_same() -> None:
    cache = Cache(f"redis://127.0.0.1:{free_port()}/0")
    load = Slow(cache)
    with pytest.raises(CallbackTimeout):
        cache.remember("key", 60, load, hard_timeout=SHORT)
    load.go()
    assert cache.remember("key", 60, lambda: "other", hard_timeout=10) in ("new", "other")
    _let_land(cache)
    cache.close()


def test_a_blocking_verb_inside_the_event_loop_of_who_computes_keeps_to_its_timeout_too(redis_url: str) -> None:
    async def main() -> None:
        cache = Cache(redis_url, strict=True, timeout=5)
        load, stop = Later("of the leader"), threading.Event()

        leader = asyncio.create_task(cache.aremember("key", 60, load))
        await load.began.wait()
        with pytest.raises(CallbackTimeout):
            cache.remember("key", 60, lambda: stop.wait(10), hard_timeout=SHORT)
        with pytest.raises(LookupError, match="no such row"):
            cache.remember("key", 60, _fail, hard_timeout=10)
        assert cache.remember("key", 60, lambda: "mine", hard_timeout=10) == "mine"
        assert cache.remember_many(["key"], 60, lambda keys: dict.fromkeys(keys, 1), hard_timeout=10) == {"key": 1}
        stop.set()
        load.go.set()
        assert await leader == "of the leader"
        assert await cache.aget("key") == "of the leader"
        await cache.aclose()

    asyncio.run(main())


def _fail(*_: object) -> None:
    raise LookupError("no such row")


# Several keys: the timeouts are for all of them together


def _pairs(*keys: str) -> dict[str, str]:
    return {key: f"new {key}" for key in keys}


def test_a_list_with_a_soft_timeout_gives_what_there_is_of_before(
    cache: Any, clock: Clock, slow: Callable[..., Slow]
) -> None:
    cache.remember_many(["a", "b"], 10, lambda keys: dict.fromkeys(keys, "old"), grace=60)
    clock.advance(11)
    cache.put("c", "fresh")
    told, load = _told(cache), slow(_pairs("a", "b"))
    for _ in range(3):
        found = cache.remember_many(["a", "b", "c"], 10, lambda _: load(), grace=60, soft_timeout=SHORT)
        assert found == {"a": "old", "b": "old", "c": "fresh"}
    assert set(told) == {LateCallback("a", SHORT, stale=True), LateCallback("b", SHORT, stale=True)}
    load.go()
    _let_land(cache)
    assert cache.many(["a", "b"]) == _pairs("a", "b")
    assert load.calls == 1


def test_a_list_with_a_hard_timeout_raises_and_its_values_are_stored_when_they_are_there(
    cache: Any, slow: Callable[..., Slow]
) -> None:
    load = slow(_pairs("a", "b"))
    for keys in (["a", "b", "none"], ["b"], ["other", "a"]):
        with pytest.raises(CallbackTimeout, match="hard_timeout"):
            cache.remember_many(keys, 10, lambda _: load(), hard_timeout=SHORT)
    with pytest.raises(CallbackTimeout):
        cache.remember("b", 10, load, hard_timeout=SHORT)
    load.go()
    _let_land(cache)
    assert cache.many(["a", "b", "none"]) == _pairs("a", "b")
    assert load.calls <= 2  # once for the first list, and once for the other key


def test_a_list_within_its_timeouts_is_as_one_without(cache: Any) -> None:
    assert cache.remember_many(["a", "none"], 10, lambda _: _pairs("a"), hard_timeout=10) == _pairs("a")
    cache.put("b", None)
    assert cache.remember_many(["a", "b"], 10, _fail, hard_timeout=10) == {**_pairs("a"), "b": None}
    with pytest.raises(LookupError, match="no such row"):
        cache.remember_many(["a", "c"], 10, _fail, soft_timeout=1, hard_timeout=10)
    assert cache.remember_many(["c"], 10, lambda _: _pairs("c"), soft_timeout=1) == _pairs("c")


def test_a_late_list_that_fails_is_told_and_what_was_removed_stays_removed(
    cache: Any, slow: Callable[..., Slow]
) -> None:
    told, failing, load = _told(cache), slow(LookupError("gone")), slow(_pairs("b", "c"))
    with pytest.raises(CallbackTimeout):
        cache.remember_many(["a"], 10, lambda _: failing(), hard_timeout=SHORT)
    with pytest.raises(CallbackTimeout):
        cache.remember_many(["b", "c"], 10, lambda _: load(), hard_timeout=SHORT)
    cache.forget("b")
    failing.go()
    load.go()
    _let_land(cache)
    assert [event.key for event in told if isinstance(event, RefreshFailed)] == ["a"]
    assert cache.many(["a", "b", "c"]) == _pairs("c")


def test_a_list_that_is_there_begins_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache("memory://")
    cache.put_many(_pairs("a", "b"))
    monkeypatch.setattr(threading, "Thread", None)
    assert cache.remember_many(["a", "b"], 10, _fail, hard_timeout=10) == _pairs("a", "b")
