"""What it costs to enqueue a job, beside Celery and the field: one at a time, 64 coroutines at a time, many at once.

    make bench-queue, or: python benchmarks/queue_enqueue.py [redis://…]

Each contender enqueues the same call with two arguments in the way its documentation recommends. Celery is stock, with
results, as it comes; Backburner as it comes too, so with a record of each job. Nobody works. Rounds take some tenths of
a second each: in the first hundredths after another contender's turn everything is cold. Takes about three minutes.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import celery
import dramatiq
import redis
from arq import create_pool
from arq.connections import RedisSettings
from dramatiq.brokers.redis import RedisBroker
from harness import Bar, Report, Round, called, compete, server
from huey import RedisHuey
from rq import Queue
from saq import Queue as SaqQueue
from taskiq_redis import ListQueueBroker

from backburner.queue import Celery
from backburner.settings import Settings

ROUNDS = 7
ONE_BY_ONE = 1_500
COROUTINES = 64
TOGETHER = 100
"""Jobs that each coroutine enqueues."""
MANY = 2_000
TIMES = 5
"""That as many are enqueued at once, in each round."""
CHUNK = 500
"""For those that leave the size of a chunk to the caller."""
PACKAGES = ("arq", "celery", "dramatiq", "huey", "kombu", "rq", "saq", "taskiq", "taskiq-redis")
CELERY = "Celery"
DELAY, ADELAY, MANY_AT_ONCE = "Backburner, delay", "Backburner, adelay", "Backburner, delay_many"


def add(a: int, b: int) -> int:
    """What is to be done."""
    return a + b


def together(call: Callable[[], Awaitable[Any]]) -> Round:
    """A round of many coroutines at a time."""

    async def caller() -> None:
        for _ in range(TOGETHER):
            await call()

    async def measure() -> float:
        began = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(COROUTINES)))
        return (time.perf_counter() - began) / (COROUTINES * TOGETHER)

    return measure


def at_once(call: Callable[[], Any]) -> Round:
    """A round of calls that enqueue `MANY` jobs each."""

    def measure() -> float:
        return called(call, TIMES)() / MANY

    return measure


async def awaited_at_once(call: Callable[[], Awaitable[Any]]) -> float:
    """As `at_once`."""
    began = time.perf_counter()
    for _ in range(TIMES):
        await call()
    return (time.perf_counter() - began) / (TIMES * MANY)


def costs(client: "redis.Redis", ways: dict[str, Callable[[], int]]) -> dict[str, dict[str, float]]:
    """Microseconds of processor time per job, in this process and in the server."""

    def spent() -> tuple[float, float]:
        used = client.info("cpu")
        return time.process_time(), used["used_cpu_user"] + used["used_cpu_sys"]

    told: dict[str, dict[str, float]] = {}
    for name, enqueue in ways.items():
        before = spent()
        jobs = enqueue()
        here, there = (1e6 * (after - earlier) / jobs for after, earlier in zip(spent(), before, strict=True))
        told[name] = {"here": round(here, 1), "server": round(there, 1)}
    return told


async def run(url: str, report: Report) -> None:
    """All three questions."""
    emptied = redis.Redis.from_url(url)
    ours = Celery("ours", settings=Settings(redis_url=url, celery_publish_timeout=30), set_as_current=False)
    mine = ours.task(add, name="add", shared=False)
    stock: Any = celery.Celery("stock", broker=url, backend=url, set_as_current=False)
    theirs = stock.task(add, name="add", shared=False)
    dramatiq_actor = dramatiq.actor(add, broker=RedisBroker(url=url))
    rq = Queue(connection=redis.Redis.from_url(url))
    huey_task = RedisHuey(url=url).task()(add)
    taskiq_broker = ListQueueBroker(url)
    taskiq_task = taskiq_broker.register_task(add, task_name="add")
    await taskiq_broker.startup()
    saq = SaqQueue.from_url(url)
    await saq.connect()
    arq = await create_pool(RedisSettings.from_dsn(url))

    def rq_many() -> None:
        for _ in range(MANY // CHUNK):
            rq.enqueue_many([Queue.prepare_data("queue_enqueue.add", (1, 2)) for _ in range(CHUNK)])

    calls = [(1, 2)] * MANY
    base = called(lambda: theirs.delay(1, 2), ONE_BY_ONE)
    questions: dict[str, tuple[dict[str, Round], Iterable[Bar]]] = {
        "One at a time": (
            {
                CELERY: base,
                DELAY: called(lambda: mine.delay(1, 2), ONE_BY_ONE),
                "dramatiq": called(lambda: dramatiq_actor.send(1, 2), ONE_BY_ONE),
                "rq": called(lambda: rq.enqueue("queue_enqueue.add", 1, 2), ONE_BY_ONE),
                "huey": called(lambda: huey_task(1, 2), ONE_BY_ONE),
            },
            (Bar(DELAY, 1 / 4, CELERY), *(Bar(DELAY, 1, peer) for peer in ("dramatiq", "rq", "huey"))),
        ),
        f"{COROUTINES} coroutines at a time": (
            {
                CELERY: base,
                ADELAY: together(lambda: mine.adelay(1, 2)),
                "taskiq": together(lambda: taskiq_task.kiq(1, 2)),
                "saq": together(lambda: saq.enqueue("add", a=1, b=2)),
                "arq": together(lambda: arq.enqueue_job("add", 1, 2)),
            },
            (Bar(ADELAY, 1 / 20, CELERY), *(Bar(ADELAY, 1, peer) for peer in ("taskiq", "saq", "arq"))),
        ),
        f"{MANY:,} at once": (
            {
                CELERY: base,
                MANY_AT_ONCE: at_once(lambda: mine.delay_many(calls)),
                "Backburner, adelay_many": lambda: awaited_at_once(lambda: mine.adelay_many(calls)),
                f"rq, {CHUNK} at once": at_once(rq_many),
            },
            (Bar(MANY_AT_ONCE, 1 / 30, CELERY), Bar(MANY_AT_ONCE, 1, f"rq, {CHUNK} at once")),
        ),
    }
    for title, (contenders, bars) in questions.items():
        emptied.flushdb()
        report.compare(title, await compete(contenders, ROUNDS), CELERY, bars)
    emptied.flushdb()

    def each(delay: Callable[[int, int], Any]) -> int:
        return len([delay(1, 2) for _ in range(MANY)])

    spent = costs(
        emptied,
        {
            CELERY: lambda: each(theirs.delay),
            DELAY: lambda: each(mine.delay),
            MANY_AT_ONCE: lambda: len(mine.delay_many(calls)),
        },
    )
    lines = (f"{name}: {used['here']} us, in the server {used['server']} us" for name, used in spent.items())
    report.tell("Processor time for each job", spent, "\n  ".join(lines))
    await taskiq_broker.shutdown()
    await saq.disconnect()
    await arq.aclose()
    ours.close()
    stock.close()


def main() -> None:
    report = Report(Path(__file__).stem, PACKAGES)
    with server() as url:
        asyncio.run(run(url, report))
        report.write(url)


if __name__ == "__main__":
    main()
