"""huey."""

import time

import job
from huey import RedisHuey

huey = RedisHuey("bench", url=job.URL, results=job.RESULTS, blocking=True)
do_nothing = huey.task(name="noop")(job.noop)
tell = huey.task(name="stamp")(job.stamp)


async def start() -> None: ...


async def enqueue(count: int) -> None:
    for _ in range(count):
        do_nothing()


async def send_stamp() -> None:
    tell(time.time())
