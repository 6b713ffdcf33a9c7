"""Values near and beyond their end: renewed ahead, given while they are renewed, given because the callback fails."""

import asyncio
from typing import Any

import pytest

from backburner import Cache
from backburner.cache.entry import refresh_point
from backburner.cache.runtime import run
from backburner.events import BreakerOpened, Event, RefreshFailed, StaleServed
from tests.conftest import Eventually
from tests.contract.conftest import Asynchronous, Clock, Later


def fail() -> None:
    raise LookupError("the database is gone")


def _seen(cache: Any) -> list[Event]:
    seen: list[Event] = []
    cache.events.subscribe(seen.append)
    return seen


def _underlying(cache: Any) -> Cache:
    return getattr(cache, "_cache", cache)


def _let_background_work(cache: Any) -> None:
    """Background work of an event loop goes on only while the loop runs."""
    if isinstance(cache, Asynchronous):
        cache.has("anything")


def test_flexible_gives_a_stale_value_at_once_and_renews_it_in_the_background(
    cache: Any, clock: Clock, eventually: Eventually
) -> None:
    values = iter(range(1, 10))
    assert cache.flexible("key", (10, 60), lambda: next(values)) == 1
    clock.advance(9)
    assert cache.flexible("key", (10, 60), lambda: next(values)) == 1
    clock.advance(2)
    assert cache.flexible("key", ttl=(10, 60), callback=lambda: next(values)) == 1
    eventually(lambda: (_let_background_work(cache), cache.get("key"))[1] == 2)
    clock.advance(61)
    assert cache.flexible("key", (10, 60), lambda: next(values)) == 3


def test_flexible_keeps_a_stale_value_when_renewing_fails_and_tries_again_after_a_moment(
    cache: Any, clock: Clock, eventually: Eventually
) -> None:
    seen = _seen(cache)
    cache.flexible("key", (10, 60), lambda: "old")
    clock.advance(11)
    assert cache.flexible("key", (10, 60), fail) == "old"
    eventually(lambda: (_let_background_work(cache), [e for e in seen if isinstance(e, RefreshFailed)])[1])
    eventually(lambda: not _underlying(cache)._flights._renewals)
    assert cache.flexible("key", (10, 60), fail) == "old"
    assert not _underlying(cache)._flights._renewals
    clock.advance(1.1)
    assert cache.flexible("key", (10, 60), lambda: "new") == "old"
    eventually(lambda: (_let_background_work(cache), cache.get("key"))[1] == "new")


def test_a_stale_value_is_nothing_to_get(cache: Any, clock: Clock) -> None:
    cache.flexible("key", (10, 60), lambda: 1)
    clock.advance(11)
    assert cache.get("key") is None
    assert cache.missing("key")


def test_a_flush_kills_stale_values_too(cache: Any, clock: Clock) -> None:
    tagged = cache.tags("books")
    tagged.flexible("key", (10, 60), lambda: "old")
    clock.advance(11)
    cache.tags("books").flush()
    assert tagged.flexible("key", (10, 60), lambda: "new") == "new"


@pytest.mark.parametrize("ttl", [(60, 10), ("1m", "30s")])
def test_flexible_refuses_a_stale_time_shorter_than_the_fresh_one(cache: Any, ttl: Any) -> None:
    with pytest.raises(ValueError, match="too old"):
        cache.flexible("key", ttl, lambda: 1)


def test_within_its_grace_a_value_stands_in_for_a_failing_callback(cache: Any, clock: Clock) -> None:
    seen = _seen(cache)
    assert cache.remember("key", 10, lambda: "old", grace="1m") == "old"
    clock.advance(11)
    assert cache.get("key") is None
    assert cache.remember("key", 10, fail, grace="1m") == "old"
    assert [event.key for event in seen if isinstance(event, StaleServed)] == ["key"]
    assert cache.stats().stale == 1
    clock.advance(60)
    with pytest.raises(LookupError):
        cache.remember("key", 10, fail, grace="1m")


def test_after_a_failure_the_value_of_before_is_given_for_a_moment_without_another_call(
    cache: Any, clock: Clock
) -> None:
    calls: list[str] = []

    def failing() -> str:
        calls.append("called")
        raise LookupError("the database is gone")

    cache.remember("key", 10, lambda: "old", grace="1m")
    clock.advance(11)
    for _ in range(3):
        assert cache.remember("key", 10, failing, grace="1m", throttle=5) == "old"
    assert len(calls) == 1
    assert cache.stats().stale == 3
    assert cache.get("key") is None
    assert cache.missing("key")
    clock.advance(5.1)
    assert cache.remember("key", 10, failing, grace="1m", throttle=5) == "old"
    assert len(calls) == 2
    assert cache.remember("key", 10, lambda: "new", throttle=0) == "new"
    assert cache.get("key") == "new"


def test_the_throttle_holds_in_all_processes(redis_url: str, clock: Clock) -> None:
    here, there = (Cache(redis_url, clock=clock, strict=True) for _ in range(2))
    here.remember("key", 10, lambda: "old", grace=60)
    clock.advance(11)
    assert here.remember("key", 10, fail, grace=60) == "old"
    assert there.remember("key", 10, lambda: "not called") == "old"
    assert there.remember("key", 10, lambda: "not called") == "old"  # from the copy
    clock.advance(1.1)
    assert there.remember("key", 10, lambda: "new") == "new"
    here.close()
    there.close()


@pytest.mark.parametrize("where", ["in this process", "in another process"])
@pytest.mark.parametrize("remove", ["forget", "flush the tag", "expire"])
def test_a_value_that_is_removed_while_the_callback_fails_is_not_given(
    cache: Any, clock: Clock, remove: str, where: str
) -> None:
    engine = _underlying(cache)._blocking
    # Another process does nothing to the flights of this one.
    target: Any = engine if where == "in this process" else engine.store

    def failing() -> None:
        match remove:
            case "forget":
                run(target.forget(["key"]))
            case "expire":
                run(target.expire("key") if target is engine else target.expire("key", clock()))
            case _:
                run(target.flush_tags(["books"]))
        fail()

    cache.tags("books").remember("key", 10, lambda: "old", grace=60)
    clock.advance(11)
    with pytest.raises(LookupError):
        cache.tags("books").remember("key", 10, failing, grace=60)


def test_nothing_is_remembered_for_as_long_as_said(cache: Any, clock: Clock) -> None:
    assert cache.remember("key", 60, lambda: None, none_ttl=5, grace=60) is None
    assert cache.has("key")
    clock.advance(5.1)
    assert cache.remember("key", 60, lambda: "found", none_ttl=5) == "found"
    clock.advance(6)
    assert cache.get("key") == "found"

    def longer(ctx: Any) -> None:
        ctx.ttl = 30

    cache.remember("other", 60, longer, none_ttl=5)
    clock.advance(20)
    assert cache.has("other")


def test_nothing_that_is_not_to_be_kept_removes_what_was_there(cache: Any, clock: Clock) -> None:
    cache.remember("key", 10, lambda: "old", grace=60)
    clock.advance(11)
    assert cache.remember("key", 10, lambda: None, none_ttl=0, grace=60) is None
    assert cache.missing("key")
    with pytest.raises(LookupError):
        cache.remember("key", 10, fail, grace=60)


def test_jitter_shortens_the_lives_of_entries(cache: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backburner.cache.plan.random", lambda: 0.5)
    cache.remember("fraction", 60, lambda: 1, jitter=0.5)
    cache.remember_many(["duration"], 60, lambda keys: dict.fromkeys(keys, 1), jitter="20s")
    clock.advance(44)
    assert cache.many(["fraction", "duration"]) == {"fraction": 1, "duration": 1}
    clock.advance(2)
    assert cache.many(["fraction", "duration"]) == {"duration": 1}
    clock.advance(5)
    assert cache.missing("duration")


@pytest.mark.parametrize("verb", ["remember", "flexible", "remember_many"])
def test_options_of_nonsense_are_refused(cache: Any, verb: str) -> None:
    def call(**options: Any) -> None:
        arguments = {"remember": ("key", 60, fail), "flexible": ("key", (1, 60), fail)}
        getattr(cache, verb)(*arguments.get(verb, (["key"], 60, fail)), **options)

    with pytest.raises(TypeError, match="'gracee'"):
        call(gracee=1)
    with pytest.raises(ValueError, match="none_ttl: 'soon' is no length of time"):
        call(none_ttl="soon")
    with pytest.raises(ValueError, match=r"jitter=1.5"):
        call(jitter=1.5)
    if verb == "flexible":
        with pytest.raises(TypeError, match="'grace'"):
            call(grace=60)


def test_shortly_before_the_end_one_caller_renews_and_a_failure_harms_nobody(cache: Any, clock: Clock) -> None:
    _takes_so_long_that_its_value_is_renewed_from_the_start(cache)
    seen = _seen(cache)
    assert cache.get("key") == "first"
    assert cache.remember("key", 60, fail) == "first"
    assert any(isinstance(event, RefreshFailed) for event in seen)
    assert cache.remember("key", 60, lambda: "not called within the throttle") == "first"
    clock.advance(1.1)
    assert cache.remember("key", 60, lambda: "second") == "second"
    assert cache.get("key") == "second"


def _takes_so_long_that_its_value_is_renewed_from_the_start(cache: Any) -> None:
    cache.remember("warm-up", 1, lambda: None)  # makes the engine of this event loop
    elapsed = [0.0]

    def load() -> str:
        elapsed[0] += 1e9
        return "first"

    engines = (_underlying(cache)._blocking, *_underlying(cache)._aengines.values())
    real = [engine.runtime.elapsed for engine in engines]
    for engine in engines:
        engine.runtime.elapsed = lambda: elapsed[0]
    assert cache.remember("key", 60, load) == "first"
    for engine, clock in zip(engines, real, strict=True):
        engine.runtime.elapsed = clock


def test_the_longer_a_value_takes_the_earlier_it_is_renewed() -> None:
    assert refresh_point(100.0, 0.0, 0.5) == 100.0
    assert refresh_point(100.0, 2.0, 1.0) == 100.0
    assert refresh_point(100.0, 2.0, 0.5) < refresh_point(100.0, 1.0, 0.5) < 100.0
    assert refresh_point(100.0, 1.0, 0.1) < refresh_point(100.0, 1.0, 0.5)


def test_remember_many_computes_what_is_missing_with_one_call(cache: Any) -> None:
    calls: list[list[str]] = []

    def load(keys: list[str]) -> dict[str, str]:
        calls.append(keys)
        return {key: key.upper() for key in keys if key != "none"}

    cache.put("b", "cached")
    assert cache.remember_many(["a", "b", "c", "none", "a"], 60, load) == {"a": "A", "b": "cached", "c": "C"}
    assert cache.remember_many(["a", "b", "c"], ttl=60, callback=load) == {"a": "A", "b": "cached", "c": "C"}
    assert calls == [["a", "c", "none"]]
    assert cache.remember_many([], 60, load) == {}
    assert cache.missing("none")


def test_remember_many_tags_and_lets_errors_through(cache: Any) -> None:
    tagged = cache.tags("books")
    tagged.remember_many(["a", "b"], 60, lambda keys: dict.fromkeys(keys, 1))
    cache.tags("books").flush()
    assert cache.many(["a", "b"]) == {}
    with pytest.raises(LookupError):
        cache.remember_many(["a"], 60, lambda _: fail())
    with pytest.raises(TypeError, match="must give a dict"):
        cache.remember_many(["a"], 60, lambda keys: keys)
    assert cache.remember_many(["a"], 60, lambda keys: dict.fromkeys(keys, 2)) == {"a": 2}


def test_a_callback_of_remember_many_that_asks_for_its_own_keys_is_told_instead_of_hanging(cache: Any) -> None:
    blocking = _underlying(cache)

    def load(keys: list[str]) -> dict[str, int]:
        return blocking.remember_many(["other", *keys], 60, lambda missing: dict.fromkeys(missing, 1))

    with pytest.raises(RuntimeError, match="would wait for itself"):
        cache.remember_many(["a", "b"], 60, load)
    assert not blocking._flights._under_way
    assert cache.remember_many(["a", "other"], 60, lambda keys: dict.fromkeys(keys, 2)) == {"a": 2, "other": 2}


def test_values_of_before_stand_in_for_a_list_only_if_each_key_has_one(cache: Any, clock: Clock) -> None:
    calls: list[list[str]] = []

    def failing(keys: list[str]) -> dict[str, int]:
        calls.append(keys)
        raise LookupError("the database is gone")

    cache.remember_many(["a", "b"], 10, lambda keys: dict.fromkeys(keys, 1), grace=60)
    clock.advance(11)
    with pytest.raises(LookupError):
        cache.remember_many(["a", "b", "c"], 10, failing)
    clock.advance(1.1)
    for _ in range(2):
        assert cache.remember_many(["a", "b"], 10, failing) == {"a": 1, "b": 1}
    assert calls == [["a", "b", "c"], ["a", "b"]]
    clock.advance(1.1)
    assert cache.remember_many(["a", "b"], 10, lambda keys: dict.fromkeys(keys, 2)) == {"a": 2, "b": 2}


def test_a_list_may_hold_values_that_are_nothing(cache: Any, clock: Clock) -> None:
    assert cache.remember_many(["a", "b"], 60, lambda _: {"a": None, "b": 1}, none_ttl=5) == {"a": None, "b": 1}
    clock.advance(6)
    assert cache.many(["a", "b"]) == {"b": 1}


def test_a_renewal_that_ends_with_its_event_loop_makes_nobody_take_the_server_for_ill(redis_url: str) -> None:
    cache = Cache(redis_url, strict=True, timeout=5)
    told: list[Event] = []
    cache.events.subscribe(told.append, BreakerOpened)

    async def leave_before_it_is_renewed(key: str) -> None:
        load = Later(2)
        await cache.aflexible(key, (0, 60), lambda: 1)
        assert await cache.aflexible(key, (0, 60), load) == 1
        await load.began.wait()

    for number in range(20):  # which task ends first, the renewal or the connection's, varies
        asyncio.run(leave_before_it_is_renewed(f"key {number}"))
        assert cache.missing("other")
    assert told == []
    cache.close()
