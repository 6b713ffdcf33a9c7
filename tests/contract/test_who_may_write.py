"""A write wins over a computation that began before it, in whichever process: what is computed is given, not stored.

Keys without a value and values that are renewed, and every verb that writes: from another cache on the same server,
which knows nothing of the computation. In memory that is the cache itself.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from backburner import Cache
from tests.contract.conftest import Clock

Verb = Callable[[Cache, str], Any]

ON_NOTHING: dict[str, tuple[Verb, Any]] = {
    "put": (lambda other, key: other.put(key, "newer"), "newer"),
    "put_many": (lambda other, key: other.put_many({"more": 1, key: "newer"}), "newer"),
    "add": (lambda other, key: other.add(key, "newer"), "newer"),
    "increment": (lambda other, key: other.increment(key, 5), 5),
    "decrement": (lambda other, key: other.decrement(key, 5), -5),
    "forget": (lambda other, key: other.forget(key), None),
    "expire": (lambda other, key: other.expire(key), None),
    "pull": (lambda other, key: other.pull(key), None),
    "flush": (lambda other, key: other.flush(), None),
}
ON_A_VALUE: dict[str, tuple[Verb, Any]] = ON_NOTHING | {
    "add": (lambda other, key: (other.expire(key), other.add(key, "newer")), "newer"),
    "increment": (lambda other, key: other.increment(key, 5), 15),
    "decrement": (lambda other, key: other.decrement(key, 5), 5),
    "touch": (lambda other, key: other.touch(key, 1000), 10),
}
READS: dict[str, tuple[Verb, Any]] = {
    "get": (lambda other, key: other.get(key), "computed"),
    "add that finds something": (lambda other, key: other.add(key, "newer"), "computed"),
    "touch of another": (lambda other, key: other.touch("more", 60), "computed"),
}


@pytest.fixture
def other(cache: Any, url: str, clock: Clock) -> Iterator[Cache]:
    mine: Cache = getattr(cache, "_cache", cache)  # a blocking verb works inside a running event loop too
    if mine._memory is not None:
        yield mine
        return
    other = Cache(url, prefix=mine.prefix, strict=True, clock=clock)
    yield other
    other.close()


def test_what_is_written_while_a_missing_value_is_computed_stays(cache: Any, other: Cache) -> None:
    for key, (interfere, left) in ON_NOTHING.items():
        computed = cache.remember(key, 60, lambda: (interfere(other, key), "computed")[1])  # noqa: B023  # called at once
        assert (computed, other.get(key), cache.get(key)) == ("computed", left, left), key


def test_what_is_written_while_a_value_is_renewed_stays(
    cache: Any, other: Cache, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backburner.cache.engine.refresh_point", lambda fresh_until, *_: fresh_until - 30)
    for key, (interfere, left) in (ON_A_VALUE | READS).items():
        assert cache.remember(key, 60, lambda: 10) == 10
        clock.advance(40)
        computed = cache.remember(key, 60, lambda: (interfere(other, key), "computed")[1])  # noqa: B023
        assert (computed, other.get(key), cache.get(key)) == ("computed", left, left), key


def test_what_is_written_while_a_list_is_computed_stays(cache: Any, other: Cache) -> None:
    def load(missing: list[str]) -> dict[str, str]:
        other.add("added", "newer")
        other.increment("counted")
        return dict.fromkeys(missing, "computed")

    keys = ["added", "counted", "key"]
    assert cache.remember_many(keys, 60, load) == dict.fromkeys(keys, "computed")
    assert cache.many(keys) == {"added": "newer", "counted": 1, "key": "computed"}


def test_a_value_that_was_touched_while_it_was_renewed_has_its_new_end(
    cache: Any, other: Cache, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backburner.cache.engine.refresh_point", lambda fresh_until, *_: fresh_until - 30)
    cache.remember("key", 60, lambda: "value")
    clock.advance(40)
    cache.remember("key", 60, lambda: other.touch("key", 1000))
    clock.advance(990)
    assert cache.get("key") == "value"
