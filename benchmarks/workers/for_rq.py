"""RQ."""

import time

import job
import redis
from rq import Queue

queue = Queue(connection=redis.Redis.from_url(job.URL))
KEPT = 3600 if job.RESULTS else 0


async def start() -> None: ...


async def enqueue(count: int) -> None:
    for _ in range(0, count, 500):
        queue.enqueue_many([Queue.prepare_data(job.noop, result_ttl=KEPT) for _ in range(min(500, count))])


async def send_stamp() -> None:
    queue.enqueue(job.stamp, time.time(), result_ttl=0)
