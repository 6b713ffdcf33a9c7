"""A worker with lifespans: what they do is written to the file ``TALE``; ``FAILS`` says what one of them raises."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import Depends

from backburner.queue import INJECTED, Celery

app = Celery("living")
app.conf.worker_concurrency = 2


def tell(word: str) -> None:
    with Path(os.environ["TALE"]).open("a") as tale:  # one small write: whole, whoever else writes
        tale.write(f"{word} {os.getpid()}\n")


@app.lifespan
async def numbers(of: Celery) -> AsyncIterator[dict[str, int]]:
    tell("entered")
    assert of is app
    try:
        yield {"process": os.getpid(), "loop": id(asyncio.get_running_loop())}
    finally:
        tell("left")


@app.lifespan
@asynccontextmanager
async def words() -> AsyncIterator[str]:
    await asyncio.sleep(0.01)
    if os.environ.get("FAILS"):
        raise ConnectionError(os.environ["FAILS"])
    async with asyncio.timeout(3600):  # which has to be left by the task that entered it
        yield f"second, after {numbers()['process']}"


async def fail_when(lost: asyncio.Event) -> None:
    await lost.wait()
    raise ConnectionError("lost")


@app.lifespan
async def loss() -> AsyncIterator[asyncio.Event]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(fail_when(lost := asyncio.Event()))
        yield lost
        task.cancel()


@app.task
async def lose() -> None:
    loss().set()


@app.task
def use() -> tuple[dict[str, int], str, int]:
    return numbers(), words(), os.getpid()


@app.task
async def ause(wait: float = 0) -> tuple[dict[str, int], str, int]:
    tell("began")
    await asyncio.sleep(wait)
    return numbers(), words(), id(asyncio.get_running_loop())


def session(of: Annotated[dict[str, int], Depends(numbers)]) -> Iterator[str]:
    tell("opened")
    try:
        yield f"a session of {of['process']}"
    finally:
        tell("closed")


async def named(by: Annotated[str, Depends(session)]) -> AsyncIterator[str]:
    await asyncio.sleep(0)
    try:
        yield by
    finally:
        await asyncio.sleep(0)


@app.task
def depend(number: int, by: Annotated[str, Depends(named)] = INJECTED) -> tuple[int, int, str]:
    _ = 1 / (number + 1)  # -1 fails
    return number, os.getpid(), f"{by}, for {number}"


@app.task
async def adepend(number: int, by: Annotated[str, Depends(named)] = INJECTED) -> tuple[int, int, str]:
    await asyncio.sleep(0.01)
    return number, os.getpid(), f"{by}, for {number}"
