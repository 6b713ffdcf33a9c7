"""What the jobs of queue_workers.py, queue_latency.py and queue_asyncio.py do, whoever runs them: nothing, or sleep, or
tell when they were run.

The modules beside this one are the same three functions for each library: `start`, `enqueue` for many jobs that do
nothing, and `send_stamp` for one that tells when it was run.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from functools import cache
from threading import Lock

import redis
import redis.asyncio

URL = os.environ["BENCH_URL"]
RESULTS = os.environ.get("BENCH_RESULTS") == "1"
NAP = float(os.environ.get("BENCH_NAP", "0"))
"""Seconds that a job sleeps, if any."""
NAPS = int(os.environ.get("BENCH_NAPS", "0"))
"""How many do; the last one tells when the first began, and when it ended."""
CONCURRENCY = int(os.environ.get("BENCH_CONCURRENCY", "100"))
"""Of workers that are not told on their command line."""


_naps: list[tuple[float, float]] = []
_lock = Lock()


def noop() -> int:
    if NAP:
        began = time.time()
        time.sleep(NAP)
        _count(began)
    return 1


def done_at() -> float:
    """When the job was done."""
    return time.time()


async def adone_at() -> float:
    """The same."""
    return time.time()


async def anoop() -> int:
    if NAP:
        began = time.time()
        await asyncio.sleep(NAP)
        _count(began)
    return 1


def _count(began: float) -> None:
    """Have the last one tell when the first one began and the last one ended."""
    with _lock:
        _naps.append((began, time.time()))
        over = len(_naps) == NAPS
    if over:
        first, last = min(began for began, _ in _naps), max(ended for _, ended in _naps)
        _client().rpush("bench:naps", f"{first} {last}")
        _naps.clear()


def stamp(sent: float) -> None:
    """Tell when this was run, and how long after it was sent."""
    now = time.time()
    _client().rpush("bench:stamps", f"{now} {now - sent}")


async def astamp(sent: float) -> None:
    """As `stamp`."""
    now = time.time()
    await _aclient().rpush("bench:stamps", f"{now} {now - sent}")


async def repeat(send_stamp: Callable[[], Awaitable[None]], count: int, every: float = 0.0) -> None:
    """Send stamps, one each so many seconds."""
    began = time.monotonic()
    for number in range(count):
        if (early := began + number * every - time.monotonic()) > 0:
            await asyncio.sleep(early)
        await send_stamp()


@cache
def _client() -> redis.Redis:
    return redis.Redis.from_url(URL)


@cache
def _aclient() -> "redis.asyncio.Redis":
    return redis.asyncio.Redis.from_url(URL)
