"""The tasks of these tests: a worker imports the module, a test calls `define` on an app of its own."""

import asyncio
import os
import signal
import threading
import time
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from celery import Task
from celery.exceptions import Reject
from pydantic import BaseModel

from backburner.queue import Celery, log, progress


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Order(BaseModel):
    book: int
    colours: set[Colour]
    at: datetime


class RetryTask(Task):
    autoretry_for = (ZeroDivisionError,)
    retry_kwargs = {"max_retries": 1, "countdown": 1}  # noqa: RUF012  # as guides have it


def define(app: Celery) -> Celery:
    task = partial(app.task, shared=False)  # several apps live in the test's process

    @task(name="add")
    def add(a, b):
        return a + b

    @task(name="when", bind=True)
    def when(self):
        return self.request.eta

    @task(name="reject_until", bind=True)
    def reject_until(self, path):
        """Be rejected until the file `path` is there."""
        if not Path(path).exists():
            raise Reject("not yet", requeue=False)
        return self.request.id

    @task(name="kill_until")
    def kill_until(path):
        """Kill whoever runs this until the file `path` is there."""
        if not Path(path).exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return "survived"

    @task(name="whoami")
    def whoami():
        return os.getpid()

    @task(name="divide", base=RetryTask)
    def divide(a, b):
        return a / b

    @task(name="wait_for")
    def wait_for(path, steps=0):
        """Run until the file `path` is there, counting how often this was started in ``path.runs``."""
        path = Path(path)
        with path.with_name(f"{path.name}.runs").open("a") as runs:
            runs.write("x")
        for step in range(steps):
            progress(step, steps, f"step {step}")
        while not path.exists():
            time.sleep(0.02)
        return "released"

    @task(name="tell")
    def tell(path, lines):
        """Report, wait for the file `path`, and report a last time."""
        for number in range(lines):
            log(f"line {number}", number=number)
            progress(number, lines)
        while not Path(path).exists():
            time.sleep(0.02)
        log("the last", level="warning")
        return lines

    @task(name="tell_from_thread")
    async def tell_from_thread():
        await asyncio.to_thread(log, "from another thread")
        log("from the coroutine")

    @task(name="tell_oddly")
    def tell_oddly(path):
        log("half: \ud800", big=2**70, price=Decimal("1.50"), kind="state", state="SUCCESS")
        log("no JSON", number={(1, 2): 3})
        progress(Decimal("1.5"), float("inf"), "\ud800")
        while not Path(path).exists():
            time.sleep(0.02)
        return "done"

    @task(name="chatter")
    def chatter(path):
        """Report for ever, or until cancelled."""
        Path(path).touch()
        while True:
            progress(1, 2)
            time.sleep(0.02)

    @task(name="nap_at")
    async def nap_at(path):
        """Sleep for ever; `path` appears when that begins, and ``path.ended`` when it ends."""
        await asyncio.to_thread(Path(path).touch)
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.to_thread(Path(f"{path}.ended").touch)

    begun, ended = asyncio.Event(), asyncio.Event()

    @task(name="retry_and_clean_up", bind=True)
    async def retry_and_clean_up(self):
        """The first run cleans up until the second one has begun, and ends before that does."""
        if self.request.retries:
            begun.set()
            await ended.wait()
            await asyncio.sleep(0.1)
            return "retried"
        try:
            raise self.retry(countdown=0)
        finally:
            await begun.wait()
            ended.set()

    @task(name="count")
    def count(number: int, weight: float):
        return number * weight

    @task(name="place_order")
    def place_order(
        order: Order, copies: set[int] = frozenset(), colour: Colour = Colour.RED
    ) -> dict[str, Order | str]:
        kind = f"{type(order).__name__} {copies} {colour.name}"
        return {"order": order.model_copy(update={"book": order.book + 1}), "kind": kind}

    @task(name="aplace_order", bind=True)
    async def aplace_order(self, order: Order) -> Order:
        assert self.name == "aplace_order"
        return order

    @task(name="count_copies")
    def count_copies(copies: dict[int, Any], sold: dict[date, list[dict[float, bool]]]) -> dict[int, Any]:
        assert list(map(type, copies)) == [int]
        assert sold == {date(2026, 11, 21): [{1.5: True}]}
        return copies

    @task(name="nap")
    async def nap(seconds):
        await asyncio.sleep(seconds)
        return threading.get_ident(), id(asyncio.get_running_loop())

    @task(name="ask_itself", bind=True)
    async def ask_itself(self):
        """Who it is, before and after others had their turn, here and in a thread."""
        before = app.current_task.name
        await asyncio.sleep(0.02)
        return before, self.request.id, await asyncio.to_thread(lambda: app.current_task.request.id)

    return app


app = define(Celery("jobs"))
