"""Every store and both APIs under one body of tests.

A test takes `cache` and calls the blocking names; the adapter turns them into the awaited ones where the parameter says
so. Time is a clock that tests advance.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from backburner import Cache

STORES = [
    "memory://?policy=lru&max_items=1000",
    "memory://?policy=s3fifo&max_bytes=10MB",
    pytest.param("memory://?policy=ttl&max_items=1000", marks=pytest.mark.slow),
    "valkey",
    pytest.param("redis7", marks=pytest.mark.slow),
    pytest.param("cluster", marks=pytest.mark.slow),
]


class Clock:
    """Unix time that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.time = 1_700_000_000.0

    def __call__(self) -> float:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += seconds


class Asynchronous:
    """A cache whose verbs are the asyncio ones, run to their end on one event loop."""

    def __init__(self, cache: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._cache = cache
        self._loop = loop

    def tags(self, *tags: str) -> "Asynchronous":
        return Asynchronous(self._cache.tags(*tags), self._loop)

    def __getattr__(self, verb: str) -> Any:
        twin = getattr(self._cache, f"a{verb}", None)
        if twin is None:
            return getattr(self._cache, verb)
        # The call itself happens on the loop too, as in a user's coroutine.
        return lambda *args, **kwargs: self._loop.run_until_complete(_awaited(twin, args, kwargs))


class Later:
    """A callback that is a coroutine function, and computes until it is let go."""

    def __init__(self, value: object) -> None:
        self.began = asyncio.Event()
        self.go = asyncio.Event()
        self._value = value

    async def __call__(self) -> object:
        self.began.set()
        await self.go.wait()
        return self._value


async def _awaited(verb: Any, args: Any, kwargs: Any) -> Any:
    return await verb(*args, **kwargs)


def through(api: str, cache: Cache) -> Iterator[Any]:
    """A cache through its blocking or its asyncio verbs, closed in the end: what a fixture yields."""
    if api == "blocking":
        yield cache
        cache.close()
        return
    with asyncio.Runner() as runner:
        yield Asynchronous(cache, runner.get_loop())
        runner.run(cache.aclose())


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=STORES, ids=lambda store: store.partition("&")[0])
def url(request: pytest.FixtureRequest) -> str:
    return _url(request)


def _url(request: pytest.FixtureRequest) -> str:
    match request.param:
        case "valkey":
            return request.getfixturevalue("redis_url")
        case "redis7":
            return request.getfixturevalue("redis7_url")
        case "cluster":
            return request.getfixturevalue("cluster_url")
        case url:
            return url


@pytest.fixture(params=["memory://", "valkey", pytest.param("redis7", marks=pytest.mark.slow)])
def plain_cache(request: pytest.FixtureRequest) -> Iterator[Cache]:
    """A cache as users have it, in memory and on servers, for what brings its own blocking and asyncio halves."""
    cache = Cache(_url(request), prefix="contract:", strict=True, timeout=5)
    yield cache
    cache.close()


@pytest.fixture(params=["blocking", "asyncio"])
def cache(request: pytest.FixtureRequest, url: str, clock: Clock) -> Iterator[Any]:
    # The hash tag keeps it on one node of a cluster.
    cache = Cache(url, prefix="{contract}:", default_ttl=3600, strict=True, clock=clock)
    cache.flush()
    yield from through(request.param, cache)
