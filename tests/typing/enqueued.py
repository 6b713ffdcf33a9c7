"""Checked by type checkers, not run: what a task's own signature makes of enqueueing it. Each `ignore` stands for an
error that there must be, since an ignore without one is an error itself."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, assert_type

from fastapi import Depends

from backburner import Celery
from backburner.queue import INJECTED, Job, JobGroup, Lifespan

app = Celery("typed")


@app.task
def add(a: int, b: int = 1) -> float:
    return a / b


@app.task(name="fetch", max_retries=3)
async def fetch(url: str) -> dict[str, int]:
    return {url: 1}


@app.task(bind=True)
def count(self: Any, text: str) -> int:
    return len(text)


@app.task(bind=True, name="acount")
async def acount(self: Any, text: str) -> int:
    return len(text)


def get_text() -> str:
    return "text"


@app.task
async def old_way(url: str, db: str = Depends(get_text)) -> int:
    return len(db)


@app.task
def new_way(url: str, count: int = 1, *, db: Annotated[str, Depends(get_text)] = INJECTED) -> int:
    return len(db)


@app.lifespan
async def resources() -> AsyncIterator[dict[str, int]]:
    yield {}


@app.lifespan
@asynccontextmanager
async def client(of: Celery) -> AsyncGenerator[str]:
    yield "client"


async def main() -> None:
    assert_type(add.delay(1, b=2), Job[float])
    assert_type(add.delay(1).get(timeout=1), float)
    assert_type(await add.adelay(1), Job[float])
    assert_type(await (await add.adelay(1)).aget(timeout=1), float)
    assert_type(add.apply_async((1,), countdown=3), Job[float])
    assert_type(await add.aapply_async((1,), countdown=3), Job[float])
    assert_type(add.delay_many([(1, 2), {"a": 1}]), list[Job[float]])
    assert_type(await add.adelay_many([(1, 2)]), list[Job[float]])
    assert_type(add(1), float)
    add.delay("1")  # type: ignore[arg-type]
    add.delay()  # type: ignore[call-arg]
    add.delay(1, c=2)  # type: ignore[call-arg]
    await add.adelay("1")  # type: ignore[arg-type]

    assert_type(await fetch("url"), dict[str, int])
    assert_type(fetch.delay("url"), Job[dict[str, int]])
    assert_type(await (await fetch.adelay("url")).aget(), dict[str, int])
    fetch.delay(5)  # type: ignore[arg-type]

    assert_type(fetch.AsyncResult("id"), Job[dict[str, int]])

    assert_type(count.delay("text").get(), int)
    assert_type(await (await acount.adelay("text")).aget(), int)
    count.delay(None, "text")  # type: ignore[call-arg, arg-type]
    assert_type(await JobGroup([add.delay(1), add.delay(2)]).aget(), list[float])
    assert_type(await JobGroup(add.delay_many([(1,), (2,)])).aget(timeout=1), list[float])
    several: JobGroup[Any] = JobGroup([add.delay(1), fetch.delay("url")])
    assert_type(await several.aget(), list[Any])

    assert_type(old_way.delay("url"), Job[int])
    assert_type(await new_way.adelay("url", 2), Job[int])
    new_way.delay("url", 1, "db")  # type: ignore[call-arg]
    assert_type(await old_way("url", "mine"), int)
    assert_type(resources, Lifespan[dict[str, int]])
    assert_type(resources(), dict[str, int])
    assert_type(client(), str)
