"""An API that waits for jobs and streams what they tell, and measures how late its own event loop is meanwhile.

`queue_streams` runs it in a process of its own; BENCH_URL is the server's. Nobody works on its jobs.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psutil
from fastapi import FastAPI

from backburner.queue import Celery, JobGroup
from backburner.queue.http import jobs_router
from backburner.settings import Settings

TICK = 0.005
"""Seconds that the loop is asked to sleep; what it sleeps longer is its lag."""

celery_app = Celery("streams", settings=Settings(redis_url=os.environ["BENCH_URL"]))
jobs = jobs_router(celery_app, auth=lambda: "everybody")
lags: list[float] = []


@celery_app.task
def work() -> str:
    """What nobody does."""
    return "done"


async def measure_lag() -> None:
    """Until cancelled."""
    clock = time.perf_counter  # uvloop's own counts milliseconds
    while True:
        began = clock()
        await asyncio.sleep(TICK)
        lags.append(clock() - began - TICK)


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Measures the loop's lag all the time."""
    measuring = asyncio.create_task(measure_lag())
    yield
    measuring.cancel()


app = FastAPI(lifespan=lifespan)
app.include_router(jobs)


@app.post("/many")
async def enqueue(count: int) -> list[str]:
    """So many jobs, which anybody may follow."""
    enqueued = await work.adelay_many([()] * count)
    for job in enqueued:
        await asyncio.to_thread(jobs.claim, job.id, {"owner": None, "asked": ""}, lasting=True)
    return [job.id for job in enqueued]


@app.post("/results")
async def wait_for(ids: list[str]) -> int:
    """The number of results, when all are there."""
    return len(await JobGroup([celery_app.AsyncResult(each) for each in ids]).aget(timeout=60))


@app.post("/census")
async def count() -> dict[str, Any]:
    """What was measured since the last time, and what there is."""
    while not lags:  # noqa: ASYNC110  # it may be asked again before the next one
        await asyncio.sleep(TICK)
    process, measured = psutil.Process(), sorted(lags)
    lags.clear()
    return {
        "lag_p50": measured[len(measured) // 2],
        "lag_p99": measured[len(measured) * 99 // 100],
        "lag_most": measured[-1],
        "processor": sum(process.cpu_times()[:2]),
        "memory": process.memory_info().rss,
        "subscriptions": celery_app.backend.listener.subscriptions,
    }
