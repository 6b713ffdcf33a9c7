"""huey."""

import time

import job
from huey import RedisHuey

huey = RedisHuey("bench", url=job.URL, results=job.RESULTS, blocking=True)
do_nothing = huey.task(name="noop")(job.noop)
tell = huey.task(name="stamp")(job.stamp)


async def enqueue(count: int) -> None:
    for _ in range(count):
        do_nothing()
    await stamps(job.STAMPS)


async def stamps(count: int) -> None:
    for _ in range(count):
        tell(time.time())
