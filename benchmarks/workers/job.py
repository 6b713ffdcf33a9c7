"""What the jobs of queue_workers.py and queue_latency.py do, whoever runs them: nothing, or tell when they were run."""

import os
import time
from functools import cache

import redis
import redis.asyncio

URL = os.environ["BENCH_URL"]
RESULTS = os.environ.get("BENCH_RESULTS") == "1"
STAMPS = 16
"""Jobs that follow the others and tell when they are run: the last of them tells when all is done."""


def noop() -> int:
    return 1


async def anoop() -> int:
    return 1


def stamp(sent: float) -> None:
    """Tell when this was run, and how long after it was sent."""
    now = time.time()
    _client().rpush("bench:stamps", f"{now} {now - sent}")


async def astamp(sent: float) -> None:
    """As `stamp`."""
    now = time.time()
    await _aclient().rpush("bench:stamps", f"{now} {now - sent}")


@cache
def _client() -> redis.Redis:
    return redis.Redis.from_url(URL)


@cache
def _aclient() -> "redis.asyncio.Redis":
    return redis.asyncio.Redis.from_url(URL)
