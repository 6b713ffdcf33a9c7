"""Backburner: with the same settings as stock Celery, or as it comes."""

import os
import time

from job import RESULTS, URL, adone_at, anoop, astamp, done_at, noop, stamp

from backburner.queue import Celery
from backburner.settings import Settings

app = Celery("ours", settings=Settings(redis_url=URL, celery_publish_timeout=30))
if os.environ.get("BENCH_AS_IT_COMES") != "1":
    app.conf.update(worker_prefetch_multiplier=64, worker_send_task_events=False, task_send_sent_event=False)
IS_ASYNC = os.environ.get("BENCH_ASYNC") == "1"
do_nothing = app.task(anoop if IS_ASYNC else noop, name="noop", ignore_result=not RESULTS)
tell = app.task(astamp if IS_ASYNC else stamp, name="stamp", ignore_result=True)
ask = app.task(adone_at if IS_ASYNC else done_at, name="done_at")


async def start() -> None: ...


async def enqueue(count: int) -> None:
    for start in range(0, count, 10_000):
        await do_nothing.adelay_many([()] * min(10_000, count - start))


async def send_stamp() -> None:
    await tell.adelay(time.time())


async def waits(count: int) -> list[float]:
    """Seconds from the end of a job until its result is here, for so many jobs one by one."""
    return [-(await (await ask.adelay()).aget(timeout=30)) + time.time() for _ in range(count)]


async def trips(count: int) -> list[float]:
    """Seconds from the call until the result is here, for so many jobs one by one."""
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        await (await ask.adelay()).aget(timeout=30)
        seconds.append(time.perf_counter() - began)
    return seconds
