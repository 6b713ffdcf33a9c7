"""Stock Celery, with settings that let it run fast."""

import time

import celery
from job import RESULTS, STAMPS, URL, noop, stamp

app = celery.Celery("stock", broker=URL, backend=URL)
app.conf.update(worker_prefetch_multiplier=64, broker_connection_retry_on_startup=True, worker_send_task_events=False)
do_nothing = app.task(noop, name="noop", ignore_result=not RESULTS)
tell = app.task(stamp, name="stamp", ignore_result=True)


async def enqueue(count: int) -> None:
    with app.producer_or_acquire() as producer:
        for _ in range(count):
            do_nothing.apply_async(producer=producer)
    await stamps(STAMPS)


async def stamps(count: int) -> None:
    for _ in range(count):
        tell.delay(time.time())
