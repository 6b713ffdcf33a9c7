"""Caches that the tests of the HTTP cache run against: in memory, and on a server with copies and without."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from backburner import Cache
from backburner.http import CacheMiddleware, Policy
from tests.http.exchanges import Origin


class Clock:
    """Unix time that a test sets."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def origin() -> Origin:
    return Origin()


@pytest.fixture(params=["memory", "server", "copies"])
async def cache(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[Cache]:
    if request.param == "memory":
        yield Cache("memory://", clock=clock)
        return
    cache = Cache(request.getfixturevalue("redis_url"), l1=request.param == "copies", timeout=5, clock=clock)
    yield cache
    await cache.aclose()


@pytest.fixture
def through(cache: Cache, origin: Origin) -> Callable[..., CacheMiddleware]:
    """Puts the cache in front of the origin, with a policy."""

    def make(**policy: Any) -> CacheMiddleware:
        return CacheMiddleware(origin, cache=cache, policy=Policy(cache_status="bb", **policy))

    return make
