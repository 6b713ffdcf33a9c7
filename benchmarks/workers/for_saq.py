"""saq, which always stores results."""

import asyncio
import time
from typing import Any

from job import CONCURRENCY, RESULTS, STAMPS, URL, anoop, astamp
from saq import Queue

queue = Queue.from_url(URL)


async def noop(_: Any) -> int:
    return await anoop()


async def stamp(_: Any, *, sent: float) -> None:
    await astamp(sent)


settings = {"queue": queue, "functions": [noop, stamp], "concurrency": CONCURRENCY}
KEPT = 3600 if RESULTS else 1


async def enqueue(count: int) -> None:
    await queue.connect()
    for _ in range(0, count, 50):
        await asyncio.gather(*(queue.enqueue("noop", ttl=KEPT) for _ in range(50)))
    await stamps(STAMPS)


async def stamps(count: int) -> None:
    for _ in range(count):
        await queue.enqueue("stamp", sent=time.time())
