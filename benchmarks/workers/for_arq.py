"""arq."""

import asyncio
import time
from typing import Any

from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import func
from job import CONCURRENCY, RESULTS, STAMPS, URL, anoop, astamp


async def noop(_: dict[str, Any]) -> int:
    return await anoop()


async def stamp(_: dict[str, Any], sent: float) -> None:
    await astamp(sent)


class Worker:
    redis_settings = RedisSettings.from_dsn(URL)
    functions = (func(noop, keep_result=3600 if RESULTS else 0), func(stamp, keep_result=0))
    max_jobs = CONCURRENCY


async def enqueue(count: int) -> None:
    pool = await create_pool(Worker.redis_settings)
    for _ in range(0, count, 50):
        await asyncio.gather(*(pool.enqueue_job("noop") for _ in range(50)))
    await stamps(STAMPS)


async def stamps(count: int) -> None:
    pool = await create_pool(Worker.redis_settings)
    for _ in range(count):
        await pool.enqueue_job("stamp", time.time())
