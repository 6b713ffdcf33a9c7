"""Values near and beyond their end: renewed ahead, given while they are renewed, given because the callback fails."""

from typing import Any

import pytest

from backburner.cache.entry import refresh_point
from backburner.events import Event, RefreshFailed, StaleServed
from tests.conftest import Eventually
from tests.contract.conftest import Asynchronous, Clock


def fail() -> None:
    raise LookupError("the database is gone")


def _seen(cache: Any) -> list[Event]:
    seen: list[Event] = []
    cache.events.subscribe(seen.append)
    return seen


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


def test_flexible_keeps_a_stale_value_when_renewing_fails_and_tries_again(
    cache: Any, clock: Clock, eventually: Eventually
) -> None:
    seen = _seen(cache)
    cache.flexible("key", (10, 60), lambda: "old")
    clock.advance(11)
    assert cache.flexible("key", (10, 60), fail) == "old"
    eventually(lambda: (_let_background_work(cache), [e for e in seen if isinstance(e, RefreshFailed)])[1])
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


def test_shortly_before_the_end_one_caller_renews_and_a_failure_harms_nobody(cache: Any, clock: Clock) -> None:
    blocking = getattr(cache, "_cache", cache)
    cache.remember("warm-up", 1, lambda: None)  # makes the engine of this event loop
    elapsed = iter([0.0, 1e9, *[0.0] * 4])  # the first callback took so long that its value is renewed from the start
    for engine in (blocking._blocking, *blocking._aengines.values()):
        engine.runtime.elapsed = elapsed.__next__
    assert cache.remember("key", 60, lambda: "first") == "first"
    seen = _seen(cache)
    assert cache.get("key") == "first"
    assert cache.remember("key", 60, fail) == "first"
    assert any(isinstance(event, RefreshFailed) for event in seen)
    assert cache.remember("key", 60, lambda: "second") == "second"
    assert cache.get("key") == "second"


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
    blocking = getattr(cache, "_cache", cache)

    def load(keys: list[str]) -> dict[str, int]:
        return blocking.remember_many(["other", *keys], 60, lambda missing: dict.fromkeys(missing, 1))

    with pytest.raises(RuntimeError, match="would wait for itself"):
        cache.remember_many(["a", "b"], 60, load)
    assert not blocking._flights._under_way
    assert cache.remember_many(["a", "other"], 60, lambda keys: dict.fromkeys(keys, 2)) == {"a": 2, "other": 2}
