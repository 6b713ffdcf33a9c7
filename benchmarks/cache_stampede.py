"""500 callers in two processes miss the same key at the same moment: how often is the callback called?

    make bench-cache, or: python benchmarks/cache_stampede.py [redis://…]

Two real processes with 250 callers each, a callback of 50 ms, a fresh key in each round. Shown are the calls of a
round (fewest and most), and how long the slowest caller waited. Takes about a minute.
"""

import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import aiocache
import cashews
import redis
import redis.asyncio
from aiocache.serializers import PickleSerializer
from fastapi_cache import FastAPICache
from fastapi_cache.backends.redis import RedisBackend
from fastapi_cache.decorator import cache as fastapi_cache
from harness import Report, Verdict, in_units, server

from backburner import Cache
from backburner.redis.url import ServerURL

ROUNDS = {"Backburner, asyncio": 50, "Backburner, threads": 50}
FEW_ROUNDS = 10
PROCESSES = 2
CALLERS = 250
COMPUTE = 0.05
"""Seconds that the callback takes."""
PACKAGES = ("aiocache", "cashews", "fastapi-cache2")

Callback = Callable[[], Awaitable[int]]
Reader = Callable[[str, Callback], Awaitable[Any]]
"""Reads a key through the cache."""


async def ours(url: str) -> Reader:
    cache = Cache(url, timeout=5)

    async def read(key: str, callback: Callback) -> Any:
        return await cache.aremember(key, 60, callback)

    return read


async def cashews_plain(url: str, **options: Any) -> Reader:
    theirs = cashews.Cache()
    theirs.setup(url, max_connections=1000, suppress=False)
    await theirs.init()
    decorated: dict[str, Any] = {}

    async def read(key: str, callback: Callback) -> Any:
        if key not in decorated:
            decorated[key] = theirs(ttl="1m", key=key, **options)(callback)
        return await decorated[key]()

    return read


async def cashews_locked(url: str) -> Reader:
    return await cashews_plain(url, lock=True)


async def aiocache_stampede(url: str) -> Reader:
    place = ServerURL.parse(url)
    decorated: dict[str, Any] = {}

    async def read(key: str, callback: Callback) -> Any:
        if key not in decorated:
            decorated[key] = aiocache.cached_stampede(
                lease=2,
                ttl=60,
                key_builder=lambda *_, **__: key,
                cache=aiocache.RedisCache,
                serializer=PickleSerializer(),
                endpoint=place.host,
                port=place.port,
                pool_max_size=1000,
            )(callback)
        return await decorated[key]()

    return read


async def fastapi_cache2(url: str) -> Reader:
    FastAPICache.init(RedisBackend(redis.asyncio.Redis.from_url(url, max_connections=1000)), prefix="fastapi")
    decorated: dict[str, Any] = {}

    async def read(key: str, callback: Callback) -> Any:
        if key not in decorated:
            decorated[key] = fastapi_cache(expire=60, key_builder=lambda *_, **__: key)(callback)
        return await decorated[key]()

    return read


CONTENDERS: dict[str, Callable[[str], Awaitable[Reader]]] = {
    "Backburner, asyncio": ours,
    "cashews": cashews_plain,
    "cashews, lock=True": cashews_locked,
    "aiocache, cached_stampede": aiocache_stampede,
    "fastapi-cache2": fastapi_cache2,
}


def tasks(pipe: Connection, url: str, name: str) -> None:
    """A process whose callers are tasks. Waits for the word before each round, and tells how long the slowest took."""

    async def main() -> None:
        read = await CONTENDERS[name](url)
        counter: Any = redis.asyncio.Redis.from_url(url, max_connections=1000)

        async def caller(key: str, callback: Callback) -> float:
            began = time.perf_counter()
            await read(key, callback)
            return time.perf_counter() - began

        await counter.incr("calls:warm")
        pipe.send(None)
        while (key := await asyncio.to_thread(pipe.recv)) is not None:

            async def callback(key: str = key) -> int:
                await counter.incr(f"calls:{key}")
                await asyncio.sleep(COMPUTE)
                return 5

            pipe.send(max(await asyncio.gather(*(caller(key, callback) for _ in range(CALLERS)))))

    asyncio.run(main())


def threads(pipe: Connection, url: str, _: str) -> None:
    """As `tasks`, with threads."""
    cache, counter = Cache(url, timeout=5), redis.Redis.from_url(url)

    def caller(key: str) -> float:
        def callback() -> int:
            counter.incr(f"calls:{key}")
            time.sleep(COMPUTE)
            return 5

        began = time.perf_counter()
        cache.remember(key, 60, callback)
        return time.perf_counter() - began

    with ThreadPoolExecutor(CALLERS) as pool:
        counter.incr("calls:warm")
        pipe.send(None)
        while (key := pipe.recv()) is not None:
            pipe.send(max(pool.map(caller, [key] * CALLERS)))


@dataclass
class Outcome:
    """Of one contender's rounds."""

    calls: list[int]
    slowest: list[float]


def stampede(url: str, name: str, target: Callable[..., None], rounds: int) -> Outcome:
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in range(PROCESSES):
        mine, theirs = context.Pipe()
        process = context.Process(target=target, args=(theirs, url, name))
        process.start()
        pipes.append(mine)
        processes.append(process)
    for pipe in pipes:
        pipe.recv()
    outcome = Outcome([], [])
    with redis.Redis.from_url(url) as client:
        for number in range(rounds):
            key = f"{name.replace(' ', '')}:{number}"
            for pipe in pipes:
                pipe.send(key)
            outcome.slowest.append(max(pipe.recv() for pipe in pipes))
            outcome.calls.append(int(client.get(f"calls:{key}") or 0))
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join()
    return outcome


def main() -> None:
    report = Report("cache_stampede", PACKAGES)
    with server() as given:
        url = ServerURL.parse(given).redis_url
        for name in (*CONTENDERS, "Backburner, threads"):
            rounds = ROUNDS.get(name, FEW_ROUNDS)
            outcome = stampede(url, name, threads if name.endswith("threads") else tasks, rounds)
            fewest, most, slowest = min(outcome.calls), max(outcome.calls), statistics.median(outcome.slowest)
            report.tell(
                f"{name}, {rounds} rounds",
                {"calls_fewest": fewest, "calls_most": most, "slowest_caller_seconds": slowest},
                f"{fewest} to {most} calls for {PROCESSES * CALLERS} misses, slowest caller {in_units(slowest)}",
            )
            if name.startswith("Backburner"):
                report.judge(
                    [Verdict(f"callback calls of any round, {name}", most, "exactly 1", (fewest, most) == (1, 1))]
                )
        report.write(url)


if __name__ == "__main__":
    main()
