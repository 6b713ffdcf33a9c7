"""dramatiq."""

import time

import dramatiq
import job
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

broker = RedisBroker(url=job.URL)
broker.add_middleware(Results(backend=RedisBackend(url=job.URL)))
dramatiq.set_broker(broker)


@dramatiq.actor(store_results=job.RESULTS)
def noop() -> int | None:
    return job.noop() if job.RESULTS else None


@dramatiq.actor
def stamp(sent: float) -> None:
    job.stamp(sent)


async def start() -> None: ...


async def enqueue(count: int) -> None:
    for _ in range(count):
        noop.send()


async def send_stamp() -> None:
    stamp.send(time.time())
