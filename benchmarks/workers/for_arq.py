"""arq."""

import asyncio
import time
from typing import Any

from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import func
from job import CONCURRENCY, RESULTS, URL, anoop, astamp


async def noop(_: dict[str, Any]) -> int:
    return await anoop()


async def stamp(_: dict[str, Any], sent: float) -> None:
    await astamp(sent)


class Worker:
    redis_settings = RedisSettings.from_dsn(URL)
    functions = (func(noop, keep_result=3600 if RESULTS else 0), func(stamp, keep_result=0))
    max_jobs = CONCURRENCY


pools: list[Any] = []


async def start() -> None:
    pools.append(await create_pool(Worker.redis_settings))


async def enqueue(count: int) -> None:
    for _ in range(0, count, 50):
        await asyncio.gather(*(pools[0].enqueue_job("noop") for _ in range(50)))


async def send_stamp() -> None:
    await pools[0].enqueue_job("stamp", time.time())
