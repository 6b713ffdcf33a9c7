"""What decorators of the field do when it matters: a crowd, a caller who leaves, a result of None, types, a flush while
something is computed, a server that hangs.

    make bench-cache, or: python benchmarks/cache_promises.py [redis://…]

Each contender as it comes, on the same server, on asyncio, with the name of a function and its argument for a key.
Nothing here is about speed but the last question. Takes a minute, nearly all of it waiting for the hung server.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import aiocache
import cashews
import redis.asyncio
from fastapi_cache import FastAPICache
from fastapi_cache.backends.redis import RedisBackend
from fastapi_cache.decorator import cache as fastapi_cache
from harness import Report, Verdict, in_units, server

from backburner import Cache, cached
from backburner.redis.url import ServerURL
from backburner.testing import FaultProxy

PACKAGES = ("aiocache", "cashews", "fastapi-cache2")
CROWD = 10
COMPUTE = 0.1
"""Seconds that a computation takes."""
PATIENCE = 10.0
"""Seconds until a call counts as hanging."""
VALUE = {
    "at": datetime(2026, 1, 5, 9, 30, tzinfo=UTC),
    "price": Decimal("12.50"),
    "id": UUID(int=7),
    "sizes": (1, 2),
    "tags": {"a"},
}

Function = Callable[[int], Awaitable[Any]]


@dataclass(frozen=True)
class Contender:
    """A way to remember what a coroutine function gives."""

    decorate: Callable[[Function, str], Function]
    """With a name for all that the function computes."""
    flush: Callable[[str], Awaitable[object]] | None = None
    """Drop all that has the name; `None` if there is no such thing."""


def ours(url: str) -> Contender:
    cache = Cache(url)

    def decorate(function: Function, name: str) -> Function:
        return cached(ttl="1m", key=name + ":{number}", tags=[name], cache=cache)(function)

    return Contender(decorate, lambda name: cache.tags(name).aflush())


def with_cashews(url: str) -> Contender:
    cache = cashews.Cache()
    cache.setup(url)

    def decorate(function: Function, name: str) -> Function:
        decorated: Function = cache(ttl="1m", key=name + ":{number}", tags=[name])(function)
        return decorated

    return Contender(decorate, cache.delete_tags)


def with_aiocache(url: str) -> Contender:
    place = ServerURL.parse(url)

    def decorate(function: Function, name: str) -> Function:
        decorated: Function = aiocache.cached(
            ttl=60,
            cache=aiocache.Cache.REDIS,
            endpoint=place.host,
            port=place.port,
            key_builder=lambda _, number: f"aio:{name}:{number}",
        )(function)
        return decorated

    return Contender(decorate)


def with_fastapi_cache(url: str) -> Contender:
    FastAPICache.reset()
    FastAPICache.init(RedisBackend(redis.asyncio.Redis.from_url(url)), prefix="fastapi")

    def decorate(function: Function, name: str) -> Function:
        decorated: Function = fastapi_cache(expire=60, namespace=name)(function)
        return decorated

    return Contender(decorate, lambda name: FastAPICache.clear(namespace=name))


CONTENDERS: dict[str, Callable[[str], Contender]] = {
    "Backburner": ours,
    "cashews": with_cashews,
    "aiocache": with_aiocache,
    "fastapi-cache2": with_fastapi_cache,
}


class Computation:
    """Gives the same thing each time, after `COMPUTE` seconds, and counts."""

    def __init__(self, value: Any = 1) -> None:
        self.calls = 0
        self._value = value

    async def __call__(self, number: int) -> Any:  # noqa: ARG002  # it is for the key
        self.calls += 1
        await asyncio.sleep(COMPUTE)
        return self._value

    def function(self) -> Function:
        """It as a function, which is what decorators take."""

        async def compute(number: int) -> Any:
            return await self(number)

        return compute


async def crowd(contender: Contender) -> str:
    """How often is it computed, if many ask at the same moment?"""
    compute = Computation()
    function = contender.decorate(compute.function(), "crowd")
    await asyncio.gather(*(function(1) for _ in range(CROWD)))
    return "once" if compute.calls == 1 else f"{compute.calls} times"


async def leaver(contender: Contender) -> str:
    """What do those get who wait for somebody who goes away?"""
    compute = Computation()
    function = contender.decorate(compute.function(), "leaver")
    first = asyncio.ensure_future(function(1))
    await asyncio.sleep(COMPUTE / 2)
    others = [asyncio.ensure_future(function(1)) for _ in range(3)]
    await asyncio.sleep(COMPUTE / 4)
    first.cancel()
    got = await asyncio.gather(*others, return_exceptions=True)
    return "the value" if got == [1, 1, 1] else type(got[0]).__name__


async def nothing(contender: Contender) -> str:
    """Is None a result?"""
    compute = Computation(None)
    function = contender.decorate(compute.function(), "nothing")
    for _ in range(3):
        await function(1)
    return "yes" if compute.calls == 1 else "no: computed each time"


async def types(contender: Contender) -> str:
    """Does what was computed come back as it was?"""
    compute = Computation(VALUE)
    function = contender.decorate(compute.function(), "types")
    try:
        await function(1)
        found = await function(1)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is the answer
        return type(error).__name__
    if compute.calls > 1:
        return "it is not kept"
    changed = [name for name, value in VALUE.items() if type(found[name]) is not type(value) or found[name] != value]
    return "yes" if not changed else f"{len(changed)} of {len(VALUE)} do not"


async def flushed(contender: Contender) -> str:
    """Is what was flushed while it was computed served afterwards?"""
    if contender.flush is None:
        return "cannot flush by name"
    compute = Computation()
    function = contender.decorate(compute.function(), "flushed")
    first = asyncio.ensure_future(function(1))
    await asyncio.sleep(COMPUTE / 2)
    await contender.flush("flushed")
    await first
    await function(1)
    return "no" if compute.calls > 1 else "yes"


async def hung(make: Callable[[str], Contender], url: str) -> tuple[float, float]:
    """How long do the first and the third call take, computation left out, while the server accepts and is silent?"""
    place = ServerURL.parse(url)
    with FaultProxy(place.host, place.port) as proxy:
        contender = make(f"redis://127.0.0.1:{proxy.port}/0")
        function = contender.decorate(Computation().function(), "hung")
        await function(0)
        proxy.stall()
        seconds = []
        for number in range(1, 4):
            began = time.perf_counter()
            try:
                async with asyncio.timeout(PATIENCE):
                    await function(number)
            except TimeoutError:
                pass
            seconds.append(max(0.0, time.perf_counter() - began - COMPUTE))
        return seconds[0], seconds[-1]


QUESTIONS: dict[str, tuple[Callable[[Contender], Awaitable[str]], str]] = {
    f"{CROWD} ask at once: computed": (crowd, "once"),
    "the first of them is cancelled: the others get": (leaver, "the value"),
    "None is a result": (nothing, "yes"),
    "date, Decimal, UUID, tuple, set come back": (types, "yes"),
    "flushed while computed, and served": (flushed, "no"),
}


async def run(url: str, report: Report) -> None:
    """All questions, to each contender."""
    redis_url = ServerURL.parse(url).redis_url
    contenders = {name: make(redis_url) for name, make in CONTENDERS.items()}
    for title, (question, good) in QUESTIONS.items():
        answers = {name: await question(contender) for name, contender in contenders.items()}
        report.tell(title, answers, "\n  ".join(f"{name:<16} {answer}" for name, answer in answers.items()))
        kept = answers["Backburner"] == good
        report.judge([Verdict(f"kept by Backburner: {title}", kept, f"1: {good}", kept)])
    waits = {name: await hung(make, redis_url) for name, make in CONTENDERS.items()}
    lines = (
        f"{name:<16} first {in_units(first)}, third {in_units(third)}" + (", hangs" if third > PATIENCE / 2 else "")
        for name, (first, third) in waits.items()
    )
    title = "The server hangs: a call takes, beside its computation"
    report.tell(title, {name: {"first": a, "third": b} for name, (a, b) in waits.items()}, "\n  ".join(lines))


def main() -> None:
    report = Report("cache_promises", PACKAGES)
    with server() as url:
        asyncio.run(run(url, report))
        report.write(url)


if __name__ == "__main__":
    main()
