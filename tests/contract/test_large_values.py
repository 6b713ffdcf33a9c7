"""A value above `max_value_bytes` is refused where it is given, and not stored where it is computed."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from backburner import Cache
from backburner.errors import StoreError, ValueTooLarge
from backburner.events import Degraded

LIMIT = 1000
LARGE = ["x" * LIMIT]
TOO_LARGE = rf"the value of 'key' has \d+ bytes, and max_value_bytes is {LIMIT}"


@pytest.fixture(params=["memory", "valkey"])
def made(request: pytest.FixtureRequest) -> Iterator[Callable[..., Cache]]:
    url = "memory://" if request.param == "memory" else request.getfixturevalue("redis_url")
    caches: list[Cache] = []

    def make(**options: Any) -> Cache:
        caches.append(Cache(url, prefix="app:", max_value_bytes=LIMIT, **options))
        return caches[-1]

    yield make
    for cache in caches:
        cache.close()


@pytest.mark.parametrize("value", [LARGE, "x" * 2 * LIMIT, b"x" * 2 * LIMIT], ids=["list", "text", "bytes"])
@pytest.mark.parametrize("strict", [False, True])
def test_what_is_given_and_too_large_is_refused_and_nothing_is_written(
    made: Callable[..., Cache], value: object, strict: bool
) -> None:
    cache = made(strict=strict)
    cache.put("key", "of before")
    for refused in (
        lambda: cache.put("key", value),
        lambda: cache.put_many({"other": 1, "key": value}),
        lambda: cache.add("key", value),
        lambda: cache.forever("key", value),
        lambda: asyncio.run(cache.aput("key", value)),
    ):
        with pytest.raises(ValueTooLarge, match=TOO_LARGE):
            refused()
    assert cache.many(["key", "other"]) == {"key": "of before"}


def test_what_is_just_not_too_large_is_stored(made: Callable[..., Cache]) -> None:
    cache = made()
    for value in (["x" * (LIMIT - 5)], "x" * (LIMIT - 3)):  # and J, quotes and brackets
        assert cache.put("key", value)
        assert cache.get("key") == value


def test_what_is_computed_and_too_large_reaches_the_caller_is_not_stored_and_is_told(
    made: Callable[..., Cache], caplog: pytest.LogCaptureFixture
) -> None:
    cache = made()
    seen: list[Any] = []
    cache.events.subscribe(seen.append, Degraded)
    calls: list[int] = []

    def load() -> list[str]:
        calls.append(1)
        return LARGE

    with caplog.at_level(logging.WARNING, "backburner.cache"):
        for _ in range(2):
            assert cache.remember("key", 60, load) == LARGE
    assert len(calls) == 2, "the lease was given back, so the second caller did not wait for the first"
    assert cache.missing("key")
    assert [(event.keys, type(event.error)) for event in seen] == [(("key",), ValueTooLarge)] * 2
    assert "max_value_bytes is 1000" in caplog.text
    assert asyncio.run(cache.aremember("key", 60, load)) == LARGE


def test_of_several_computed_together_those_that_fit_are_stored(made: Callable[..., Cache]) -> None:
    cache = made()
    found = cache.remember_many(["key", "small"], 60, lambda keys: {"key": LARGE, "small": 1})
    assert found == {"key": LARGE, "small": 1}
    assert cache.many(["key", "small"]) == {"small": 1}


def test_a_strict_cache_raises_what_it_could_not_store(made: Callable[..., Cache]) -> None:
    cache = made(strict=True)
    with pytest.raises(StoreError, match=TOO_LARGE):
        cache.remember("key", 60, lambda: LARGE)
    assert cache.remember("key", 60, lambda: "small") == "small"
    assert cache.get("key") == "small"
