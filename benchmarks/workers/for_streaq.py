"""streaq."""

import time

from job import CONCURRENCY, RESULTS, STAMPS, URL, anoop, astamp
from streaq import Worker

worker = Worker(redis_url=URL, concurrency=CONCURRENCY)


@worker.task(ttl=3600 if RESULTS else 0)
async def noop() -> int:
    return await anoop()


@worker.task(ttl=0)
async def stamp(sent: float) -> None:
    await astamp(sent)


async def enqueue(count: int) -> None:
    async with worker:
        for _ in range(0, count, 500):
            await worker.enqueue_many([noop.enqueue() for _ in range(min(500, count))])
        for _ in range(STAMPS):
            await stamp.enqueue(time.time())


async def stamps(count: int) -> None:
    async with worker:
        for _ in range(count):
            await stamp.enqueue(time.time())
