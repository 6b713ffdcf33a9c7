"""taskiq, on lists and on streams."""

import asyncio
import os
import time

from job import RESULTS, URL, anoop, astamp
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend, RedisStreamBroker

broker = (RedisStreamBroker if os.environ.get("BENCH_STREAM") == "1" else ListQueueBroker)(URL)
if RESULTS:
    broker = broker.with_result_backend(RedisAsyncResultBackend(URL, result_ex_time=3600))
do_nothing = broker.register_task(anoop, task_name="noop")
tell = broker.register_task(astamp, task_name="stamp")


async def start() -> None:
    await broker.startup()


async def enqueue(count: int) -> None:
    for _ in range(0, count, 100):
        await asyncio.gather(*(do_nothing.kiq() for _ in range(100)))


async def send_stamp() -> None:
    await tell.kiq(time.time())
