"""What it costs to read 1 KB from the server, beside the field: asyncio with 1 to 256 coroutines, and threads.

    make bench-cache, or: python benchmarks/cache_server.py [--short] [redis://…]

Every contender stores the same dict, with a date and a time in it, and must give it back equal; Backburner without
copies in memory, so that each read reaches the server. By hand is redis-py and pickle. Takes a minute and a half, and
twenty seconds if it is to be short.
"""

import asyncio
import pickle
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Any

import aiocache
import cashews
import django
import redis
import redis.asyncio
from aiocache.serializers import PickleSerializer
from django.conf import settings
from dogpile.cache import make_region
from fastapi_cache.backends.redis import RedisBackend
from fastapi_cache.coder import PickleCoder
from harness import SHORT, Bar, Report, Round, book, compete, server

from backburner import Cache
from backburner.redis.url import ServerURL

ROUNDS = 7
SPAN = 0.25
"""Seconds that each round lasts, so that all have the same time to warm up after the one before."""
KEYS = [f"book:{number}" for number in range(200)]
COROUTINES = (64,) if SHORT else (1, 4, 16, 64, 256)
THREADS = (8,) if SHORT else (1, 8)
PACKAGES = ("aiocache", "cashews", "django", "dogpile.cache", "fastapi-cache2")
BY_HAND = "redis-py + pickle, by hand"
ASYNC_BARS = (Bar("Backburner", 1 / 8, "cashews"), Bar("Backburner", 1 / 5, BY_HAND))
THREAD_BARS = (Bar("Backburner", 1 / 2, BY_HAND),)

AsyncGet = Callable[[str], Awaitable[Any]]
Get = Callable[[str], Any]


async def async_contenders(url: str) -> dict[str, AsyncGet]:
    """Each with its own copies of the values, in its own form."""
    cache = Cache(url, l1=False, timeout=5)
    by_hand: Any = redis.asyncio.Redis.from_url(url, max_connections=1000)
    theirs = cashews.Cache()
    theirs.setup(url, max_connections=1000, suppress=False)
    place = ServerURL.parse(url)
    aio = aiocache.RedisCache(
        endpoint=place.host, port=place.port, serializer=PickleSerializer(), namespace="aio", pool_max_size=1000
    )
    backend = RedisBackend(redis.asyncio.Redis.from_url(url, max_connections=1000))
    for number, key in enumerate(KEYS):
        value = book(number)
        await cache.aput(key, value, 600)
        await by_hand.set(f"hand:{key}", pickle.dumps(value, 5), ex=600)
        await theirs.set(key, value, expire=600)
        await aio.set(key, value, ttl=600)
        await backend.set(f"fastapi:{key}", PickleCoder.encode(value), 600)

    async def read_by_hand(key: str) -> object:
        return pickle.loads(await by_hand.get(f"hand:{key}"))

    async def read_fastapi(key: str) -> object:
        _, data = await backend.get_with_ttl(f"fastapi:{key}")
        return PickleCoder.decode(data)

    return {
        "Backburner": cache.aget,
        BY_HAND: read_by_hand,
        "cashews": theirs.get,
        "aiocache, pickle": aio.get,
        "fastapi-cache2, pickle": read_fastapi,
    }


def contenders(url: str) -> dict[str, Get]:
    """As `async_contenders`, for threads."""
    from django.core.cache import cache as django_cache

    cache = Cache(url, l1=False, timeout=5)
    by_hand = redis.Redis.from_url(url)
    region = make_region().configure("dogpile.cache.redis", expiration_time=600, arguments={"url": url})
    for number, key in enumerate(KEYS):
        value = book(number)
        cache.put(key, value, 600)
        by_hand.set(f"hand:{key}", pickle.dumps(value, 5), ex=600)
        region.set(key, value)
        django_cache.set(key, value, 600)
    return {
        "Backburner": cache.get,
        BY_HAND: lambda key: pickle.loads(by_hand.get(f"hand:{key}")),
        "dogpile": region.get,
        "Django": django_cache.get,
    }


def by_coroutines(get: AsyncGet, coroutines: int) -> Round:
    async def caller(number: int, until: float) -> int:
        reads = 0
        while time.perf_counter() < until:
            await get(KEYS[(17 * number + reads) % len(KEYS)])
            reads += 1
        return reads

    async def measure() -> float:
        began = time.perf_counter()
        reads = await asyncio.gather(*(caller(number, began + SPAN) for number in range(coroutines)))
        return (time.perf_counter() - began) / sum(reads)

    return measure


def by_threads(get: Get, threads: int) -> Round:
    def caller(number: int, until: float) -> int:
        reads = 0
        while time.perf_counter() < until:
            get(KEYS[(17 * number + reads) % len(KEYS)])
            reads += 1
        return reads

    pool = ThreadPoolExecutor(threads)

    def measure() -> float:
        began = time.perf_counter()
        reads = sum(pool.map(caller, range(threads), repeat(began + SPAN, threads)))
        return (time.perf_counter() - began) / reads

    return measure


async def run_async(report: Report, url: str) -> None:
    gets = await async_contenders(url)
    for name, get in gets.items():
        if await get(KEYS[3]) != book(3):
            raise SystemExit(f"{name} does not give back what it was given")
    for coroutines in COROUTINES:
        rounds = {name: by_coroutines(get, coroutines) for name, get in gets.items()}
        bars = ASYNC_BARS if coroutines == 64 else ()
        report.compare(f"A read by one of {coroutines} coroutines", await compete(rounds, ROUNDS), BY_HAND, bars)


async def run_threads(report: Report, url: str) -> None:
    gets = contenders(url)
    for threads in THREADS:
        rounds = {name: by_threads(get, threads) for name, get in gets.items()}
        bars = THREAD_BARS if threads == 8 else ()
        report.compare(f"A read by one of {threads} threads", await compete(rounds, ROUNDS), BY_HAND, bars)


def main() -> None:
    report = Report("cache_server", PACKAGES)
    with server() as given:
        url = ServerURL.parse(given).redis_url
        settings.configure(
            CACHES={"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": url}}
        )
        django.setup()
        asyncio.run(run_async(report, url))
        asyncio.run(run_threads(report, url))
        report.write(url)


if __name__ == "__main__":
    main()
