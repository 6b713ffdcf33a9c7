"""streaq."""

import time

from job import CONCURRENCY, RESULTS, URL, anoop, astamp
from streaq import Worker

worker = Worker(redis_url=URL, concurrency=CONCURRENCY)


@worker.task(ttl=3600 if RESULTS else 0)
async def noop() -> int:
    return await anoop()


@worker.task(ttl=0)
async def stamp(sent: float) -> None:
    await astamp(sent)


async def start() -> None:
    await worker.__aenter__()


async def enqueue(count: int) -> None:
    for _ in range(0, count, 500):
        await worker.enqueue_many([noop.enqueue() for _ in range(min(500, count))])


async def send_stamp() -> None:
    await stamp.enqueue(time.time())
