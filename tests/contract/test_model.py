"""Any sequence of verbs does what a dict with ends and tags would do."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.conftest import Clock

KEYS = st.sampled_from(["a", "b", "c"])
TAGS = st.lists(st.sampled_from(["x", "y"]), max_size=2, unique=True)
TTLS = st.sampled_from([5, 20])
VALUES = st.one_of(st.integers(-5, 5), st.text(max_size=3), st.none())

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, VALUES, TTLS, TAGS),
        st.tuples(st.just("add"), KEYS, VALUES, TTLS, TAGS),
        st.tuples(st.just("remember"), KEYS, VALUES, TTLS, TAGS),
        st.tuples(st.just("increment"), KEYS, st.integers(-3, 3)),
        st.tuples(st.just("get"), KEYS),
        st.tuples(st.just("pull"), KEYS),
        st.tuples(st.just("forget"), KEYS),
        st.tuples(st.just("touch"), KEYS, TTLS),
        st.tuples(st.just("expire"), KEYS),
        st.tuples(st.just("flush tags"), st.sampled_from(["x", "y"])),
        st.tuples(st.just("wait"), st.sampled_from([3, 10])),
    ),
    max_size=30,
)


class Model:
    """What a cache is, in the simplest words. Entries: value, end, tags."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.entries: dict[str, tuple[Any, float, list[str]]] = {}

    def alive(self, key: str) -> bool:
        return key in self.entries and self.entries[key][1] > self.clock()

    def get(self, key: str) -> Any:
        return self.entries[key][0] if self.alive(key) else "nothing"

    def put(self, key: str, value: Any, ttl: float, tags: list[str]) -> None:
        self.entries[key] = (value, self.clock() + ttl, tags)


def _tagged(cache: Any, tags: list[str]) -> Any:
    return cache.tags(*tags) if tags else cache


@given(steps=STEPS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_cache_behaves_as_a_dict_with_ends_and_tags(cache: Any, clock: Clock, steps: list[tuple[Any, ...]]) -> None:
    cache.flush()
    model = Model(clock)
    for step in steps:
        match step:
            case "put", key, value, ttl, tags:
                _tagged(cache, tags).put(key, value, ttl)
                model.put(key, value, ttl, tags)
            case "add", key, value, ttl, tags:
                assert _tagged(cache, tags).add(key, value, ttl) is not model.alive(key)
                if not model.alive(key):
                    model.put(key, value, ttl, tags)
            case "remember", key, value, ttl, tags:
                got = _tagged(cache, tags).remember(key, ttl, lambda value=value: value)
                if not model.alive(key):
                    model.put(key, value, ttl, tags)
                assert got == model.get(key)
            case "increment", key, amount:
                if not model.alive(key):
                    model.put(key, 0, 3600, [])
                value, end, tags = model.entries[key]
                if type(value) is not int:
                    with pytest.raises(TypeError):
                        cache.increment(key, amount)
                else:
                    assert cache.increment(key, amount) == value + amount
                    model.entries[key] = (value + amount, end, tags)
            case "get", key:
                assert cache.get(key, "nothing") == model.get(key)
            case "pull", key:
                assert cache.pull(key, "nothing") == model.get(key)
                model.entries.pop(key, None)
            case "forget", key:
                cache.forget(key)
                model.entries.pop(key, None)
            case "touch", key, ttl:
                assert cache.touch(key, ttl) is model.alive(key)
                if model.alive(key):
                    value, _, tags = model.entries[key]
                    model.put(key, value, ttl, tags)
            case "expire", key:
                cache.expire(key)
                model.entries.pop(key, None)
            case "flush tags", tag:
                cache.tags(tag).flush()
                model.entries = {key: entry for key, entry in model.entries.items() if tag not in entry[2]}
            case "wait", seconds:
                clock.advance(seconds)
        for key in ("a", "b", "c"):
            assert cache.get(key, "nothing") == model.get(key)
