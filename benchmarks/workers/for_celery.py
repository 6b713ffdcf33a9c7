"""Stock Celery, with settings that let it run fast."""

import asyncio
import time

import celery
from job import RESULTS, URL, done_at, noop, stamp

app = celery.Celery("stock", broker=URL, backend=URL)
app.conf.update(worker_prefetch_multiplier=64, broker_connection_retry_on_startup=True, worker_send_task_events=False)
do_nothing = app.task(noop, name="noop", ignore_result=not RESULTS)
tell = app.task(stamp, name="stamp", ignore_result=True)
ask = app.task(done_at, name="done_at")


async def start() -> None: ...


async def enqueue(count: int) -> None:
    with app.producer_or_acquire() as producer:
        for _ in range(count):
            do_nothing.apply_async(producer=producer)


async def send_stamp() -> None:
    tell.delay(time.time())


async def waits(count: int) -> list[float]:
    """Seconds from the end of a job until its result is here, for so many jobs one by one."""
    return [-float(ask.delay().get(timeout=30)) + time.time() for _ in range(count)]


async def waits_in_threads(count: int) -> list[float]:
    """As `waits`, by what a coroutine has to do with Celery's `get` if its loop is not to stand still."""
    seconds = []
    for _ in range(count):
        job = ask.delay()
        ended = await asyncio.to_thread(job.get, timeout=30)
        seconds.append(time.time() - ended)
    return seconds


async def trips(count: int) -> list[float]:
    """Seconds from the call until the result is here, for so many jobs one by one."""
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        ask.delay().get(timeout=30)
        seconds.append(time.perf_counter() - began)
    return seconds
