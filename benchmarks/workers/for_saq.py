"""saq, which always stores results."""

import asyncio
import time
from typing import Any

from job import CONCURRENCY, RESULTS, URL, anoop, astamp
from saq import Queue

queue = Queue.from_url(f"{URL}?max_connections=2000")  # one for each job at a time


async def noop(_: Any) -> int:
    return await anoop()


async def stamp(_: Any, *, sent: float) -> None:
    await astamp(sent)


settings = {"queue": queue, "functions": [noop, stamp], "concurrency": CONCURRENCY}
KEPT = 3600 if RESULTS else 1


async def start() -> None:
    await queue.connect()


async def enqueue(count: int) -> None:
    for _ in range(0, count, 50):
        await asyncio.gather(*(queue.enqueue("noop", ttl=KEPT) for _ in range(50)))


async def send_stamp() -> None:
    await queue.enqueue("stamp", sent=time.time())
