"""Blocking code that waits on an event loop: what it gets, what is raised where it waits, and how it is abandoned."""

import asyncio
import gc
import threading
import weakref
from contextvars import ContextVar
from typing import Any

import pytest
from greenlet import getcurrent

from backburner.queue.pool import bridge

here: ContextVar[str] = ContextVar("here", default="nowhere")


async def answer(value: Any) -> Any:
    await asyncio.sleep(0)
    if isinstance(value, BaseException):
        raise value
    return value


def test_blocking_code_gets_what_it_waits_for_while_others_go_on() -> None:
    order: list[str] = []

    def blocking(name: str) -> str:
        order.append(f"{name} begins")
        got = bridge.wait_for(answer(name))
        order.append(f"{name} ends")
        return f"{got}, done"

    async def both() -> list[str]:
        return await asyncio.gather(bridge.cross(blocking, "one"), bridge.cross(blocking, "two"))

    assert asyncio.run(both()) == ["one, done", "two, done"]
    assert order == ["one begins", "two begins", "one ends", "two ends"]


def test_errors_cross_in_both_directions() -> None:
    def blocking() -> None:
        with pytest.raises(LookupError):
            bridge.wait_for(answer(LookupError()))
        raise KeyError("out")

    async def call() -> None:
        await bridge.cross(blocking)

    with pytest.raises(KeyError, match="out"):
        asyncio.run(call())


def test_the_context_is_that_of_the_task() -> None:
    def blocking() -> str:
        before = here.get()
        here.set("inside")
        return f"{before}, {bridge.wait_for(answer(here.get()))}, {bridge.in_thread(here.get)}"

    async def call() -> tuple[str, str]:
        here.set("task")
        return await bridge.cross(blocking), here.get()

    assert asyncio.run(call()) == ("task, inside, inside", "inside")
    assert not bridge.is_here()


def test_what_is_raised_from_outside_can_be_translated() -> None:
    async def caught() -> str:
        try:
            await asyncio.sleep(3600)
        except TimeoutError:
            return "in time"
        return "too late"

    def translated(_: BaseException) -> BaseException:
        return TimeoutError()

    async def call() -> str:
        task = asyncio.ensure_future(run())
        await asyncio.sleep(0)
        task.cancel()
        return await task

    async def run() -> str:
        return await bridge.cross(lambda: bridge.wait_for(caught()), translate=translated)

    assert asyncio.run(call()) == "in time"


def test_who_is_abandoned_cannot_go_on() -> None:
    told: list[str] = []

    async def stubborn() -> None:
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                told.append("ignored")

    def blocking() -> None:
        try:
            bridge.wait_for(stubborn())
        except bridge.Abandoned:
            told.append("abandoned")

    def abandon(error: BaseException) -> BaseException:
        return bridge.Abandoned() if told else error

    async def run() -> None:
        await bridge.cross(blocking, translate=abandon)

    async def call() -> None:
        task = asyncio.ensure_future(run())
        for _ in range(2):
            await asyncio.sleep(0)
            task.cancel()
        await task

    asyncio.run(call())
    assert told == ["ignored", "abandoned"]


def test_code_gives_way_without_waiting() -> None:
    order: list[str] = []

    def blocking() -> None:
        order.append("before")
        bridge.give_way()
        order.append("after")

    async def other() -> None:
        order.append("other")

    async def call() -> None:
        await asyncio.gather(bridge.cross(blocking), other())

    asyncio.run(call())
    assert order == ["before", "other", "after"]


class Held:
    """What a call has, and nobody after it may."""


@pytest.mark.parametrize("fails", [False, True])
def test_calls_share_greenlets_and_nothing_else(fails: bool) -> None:
    left: list[weakref.ref[Any]] = []
    greenlets: list[Any] = []
    variable: ContextVar[Any] = ContextVar("variable", default=None)

    def blocking(held: Held) -> Held:
        assert variable.get() is None
        variable.set(held)
        greenlets.append(getcurrent())
        bridge.wait_for(answer(None))
        if fails:
            raise KeyError(held)
        return held

    async def call() -> None:
        held = Held()
        left.append(weakref.ref(held))
        await bridge.cross(blocking, held)

    async def calls() -> None:
        for _ in range(3):
            await asyncio.gather(asyncio.create_task(call()), return_exceptions=True)

    asyncio.run(calls())
    assert len(greenlets) == 3
    assert len(set(greenlets)) == 1
    gc.collect()
    assert [reference() for reference in left] == [None] * 3


def test_more_calls_can_wait_than_greenlets_are_kept() -> None:
    async def call(count: int) -> list[int]:
        return await asyncio.gather(
            *(bridge.cross(lambda number: bridge.wait_for(answer(number)), number) for number in range(count))
        )

    bridge.prepare(10)
    for _ in range(2):
        assert asyncio.run(call(1200)) == list(range(1200))


def test_a_thread_that_ends_leaves_no_greenlets() -> None:
    left: list[weakref.ref[Any]] = []

    async def call() -> None:
        await bridge.cross(lambda: left.append(weakref.ref(getcurrent())))

    thread = threading.Thread(target=lambda: asyncio.run(call()))
    thread.start()
    thread.join()
    gc.collect()
    getcurrent()  # greenlets of threads that are gone are freed when one of another thread is used
    assert [reference() for reference in left] == [None]
