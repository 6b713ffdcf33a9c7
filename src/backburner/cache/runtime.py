"""The two worlds that the engine runs in, blocking and asyncio: everything in which they differ, side by side.

The engine is written once, as coroutines that leave all waiting to a runtime. The blocking runtime never suspends, so
`run` completes such a coroutine in one step, without an event loop, and therefore also inside a running one. A
coroutine that suspends by mistake raises at once instead of hanging.
"""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from inspect import isawaitable
from threading import Thread
from typing import Any, Protocol, TypeVar, cast

from backburner.cache.flight import Flight

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Complete a coroutine whose runtime and store never suspend, and return its result."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return cast("T", stop.value)
    finally:
        coroutine.close()
    raise RuntimeError("a blocking verb of the cache reached something that only an event loop can wait for")


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs in this thread, if one does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _nothing() -> None:
    pass


class Runtime(Protocol):
    """What the engine needs from its world."""

    def now(self) -> float:
        """Unix time in seconds."""
        ...

    def elapsed(self) -> float:
        """Seconds of a clock that never goes back."""
        ...

    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop of the caller, if it is a task."""
        ...

    def may_wait(self, flight: Flight) -> bool:
        """Whether waiting for somebody else's flight can ever end."""
        ...

    async def wait(self, flight: Flight, seconds: float = math.inf) -> None:
        """Wait until a flight lands, for so many seconds at most."""
        ...

    async def until(self, future: Future[None], seconds: float) -> None:
        """Wait for a future, for so many seconds at most."""
        ...

    async def call(self, callback: Callable[..., Any], *arguments: object) -> object:
        """Call the user's function."""
        ...

    def spawn(self, work: Coroutine[Any, Any, object], ended: Callable[[], object] = _nothing) -> None:
        """Run `work` apart from the caller, with a copy of its context variables. It must not raise.

        Args:
            ended: called when it is over, even if it was cancelled before it began.

        Raises:
            RuntimeError: no thread could be started; nothing was done.
        """
        ...


class BlockingRuntime:
    """Threads: waiting blocks, and callbacks are plain functions."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.now = clock
        self.elapsed = time.perf_counter

    def loop(self) -> None:
        return None

    def may_wait(self, flight: Flight) -> bool:
        # If both loops are the same, this call is blocking the very loop that the leader needs.
        return flight.loop is None or flight.loop is not running_loop()

    async def wait(self, flight: Flight, seconds: float = math.inf) -> None:
        with suppress(TimeoutError):
            flight.landed.result(_limit(seconds))

    async def until(self, future: Future[None], seconds: float) -> None:
        with suppress(TimeoutError):
            future.result(seconds)

    async def call(self, callback: Callable[..., Any], *arguments: object) -> object:
        value = callback(*arguments)
        if isawaitable(value):
            if asyncio.iscoroutine(value):
                value.close()
            raise TypeError(f"{callback!r} is asynchronous; await the verb with an `a` in front, such as aremember()")
        return value

    def spawn(self, work: Coroutine[Any, Any, object], ended: Callable[[], object] = _nothing) -> None:
        def work_to_the_end() -> None:
            try:
                run(work)
            finally:
                ended()

        # A daemon: a callback that hangs must not keep the program from ending.
        context = copy_context()
        try:
            Thread(target=context.run, args=(work_to_the_end,), name="backburner-callback", daemon=True).start()
        except RuntimeError:
            work.close()
            raise


class AsyncioRuntime:
    """Tasks: waiting suspends, and callbacks may be coroutine functions."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.now = clock
        self.elapsed = time.perf_counter
        self._spawned: set[asyncio.Task[object]] = set()

    def loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def may_wait(self, flight: Flight) -> bool:  # noqa: ARG002  # the loop goes on
        return True

    async def wait(self, flight: Flight, seconds: float = math.inf) -> None:
        landed = asyncio.wrap_future(flight.landed)
        if seconds == math.inf:
            await landed
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, seconds)):
                    await landed

    async def until(self, future: Future[None], seconds: float) -> None:
        await asyncio.wait((asyncio.wrap_future(future),), timeout=seconds)

    async def call(self, callback: Callable[..., Any], *arguments: object) -> object:
        value = callback(*arguments)
        return await value if isawaitable(value) else value

    def spawn(self, work: Coroutine[Any, Any, object], ended: Callable[[], object] = _nothing) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._spawned.add(task)  # the loop itself keeps no more than a weak reference
        task.add_done_callback(self._spawned.discard)
        task.add_done_callback(lambda _: ended())


def _limit(seconds: float) -> float | None:
    return None if seconds == math.inf else max(0.0, seconds)
