"""The event loop of a worker process: one, in a thread of its own, for as long as the process lives.

Tasks that are coroutines run on it, and so do their dependencies and the lifespans. Thus all jobs can share the
connections that the user's code keeps, which are also served between jobs. Threads and processes that run tasks wait
for it. A pool with a loop of its own hands it over with `adopt`; nothing here stops that one.
"""

import asyncio
import atexit
import types
from collections.abc import Awaitable, Coroutine, Generator
from concurrent.futures import Future, wait
from contextvars import Context, ContextVar, copy_context
from functools import partial
from threading import Event, Lock, Thread, current_thread
from typing import Any, TypeVar, cast

from celery import exceptions
from celery.utils.threads import get_ident

from backburner.forking import in_forked_child

T = TypeVar("T")

_CLOSING = 5.0
"""Seconds that whatever still runs gets when the process ends."""

_waiting: ContextVar[Any] = ContextVar("backburner_waiting", default=None)
"""The thread that waits for the coroutine running in this context."""


class SoftTimeLimitExceeded(exceptions.SoftTimeLimitExceeded, asyncio.CancelledError):
    """Celery's exception, and a cancellation, because only on that do task groups that are waited for, and
    `asyncio.wait_for`, end what they have started."""

    __module__ = exceptions.SoftTimeLimitExceeded.__module__  # by which Celery stores it

    def __reduce__(self) -> tuple[Any, ...]:
        return exceptions.SoftTimeLimitExceeded, self.args


def ident() -> Any:
    """The thread under which Celery keeps what is running here: for a coroutine, the one that waits for it."""
    return _waiting.get() or get_ident()


def identify(owner: Any) -> None:
    """Make `owner` the identity by which Celery knows this context, and all copies of it."""
    _waiting.set(owner)


def run(coroutine: Coroutine[Any, Any, T], context: Context | None = None) -> T:
    """Run a coroutine on the loop, in this context or a copy of the caller's, and wait for it. Must not be called on
    the loop itself.

    An exception raised in this thread meanwhile (a time limit, by a signal) cancels the coroutine, and is raised once
    that has ended, unless the coroutine returns or raises something else. A soft time limit is raised in the coroutine.
    """
    context = context or copy_context()
    context.run(_waiting.set, ident())
    loop = _process.loop()
    if _process.rests():
        return loop.run_until_complete(loop.create_task(coroutine, context=context))
    ended: Future[T] = Future()
    tasks: list[asyncio.Task[None]] = []
    limits: list[SoftTimeLimitExceeded] = []

    def begin() -> None:
        tasks.append(loop.create_task(_settle(_limited(coroutine, limits), ended), context=context))

    def end() -> None:
        tasks[0].cancel()

    loop.call_soon_threadsafe(begin)
    try:
        return ended.result()
    except BaseException as interruption:
        if ended.done():
            raise
        if isinstance(interruption, exceptions.SoftTimeLimitExceeded):
            limits.append(SoftTimeLimitExceeded(*interruption.args))
        loop.call_soon_threadsafe(end)
        wait([ended])
        if ended.cancelled():
            raise interruption from None
        return ended.result()


def is_busy_with_this() -> bool:
    """Whether the loop waits for the caller to return."""
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        return False
    return _process.is_driven_here(running)


def adopt(loop: asyncio.AbstractEventLoop) -> None:
    """Run everything on this loop, which somebody else drives."""
    _process.adopt(loop)


def close() -> None:
    """Cancel what runs, and end the loop. The next `run` begins a new one."""
    _process.close()


@types.coroutine
def _limited(coroutine: Coroutine[Any, Any, T], limits: "list[SoftTimeLimitExceeded]") -> Generator[Any, Any, T]:
    """Run a coroutine; a cancellation raises in it what is in the list, if anything."""
    step = partial(coroutine.send, None)
    while True:
        try:
            waits = step()
        except StopIteration as ended:
            return cast("T", ended.value)
        try:
            got = yield waits
        except BaseException as error:  # noqa: BLE001  # whatever it is, it is for the coroutine
            if limits and isinstance(error, asyncio.CancelledError):
                cast("asyncio.Task[Any]", asyncio.current_task()).uncancel()
                error = limits.pop()
            step = partial(coroutine.throw, error)
        else:
            step = partial(coroutine.send, got)


async def _settle(coroutine: Awaitable[T], ended: "Future[T]") -> None:
    try:
        result = await coroutine
    except asyncio.CancelledError:
        ended.cancel()
        ended.set_running_or_notify_cancel()
    except BaseException as error:  # noqa: BLE001  # it is for the caller; a SystemExit would end everybody's loop
        ended.set_exception(error)
    else:
        ended.set_result(result)


class _Process:
    """The loop of this process, started when first needed."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: Thread | None = None
        self._owner: Thread | None = None
        """Who runs a loop that was adopted."""

    def loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                begun = Event()
                self._thread = Thread(target=self._serve, args=(begun,), name="backburner-loop", daemon=True)
                self._thread.start()
                begun.wait()
            return cast("asyncio.AbstractEventLoop", self._loop)

    def adopt(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            self._loop, self._thread, self._owner = loop, None, current_thread()

    def rests(self) -> bool:
        """Whether this thread drives the loop, but not at the moment."""
        loop = self._loop
        return loop is not None and self._owner is current_thread() and not loop.is_running()

    def is_driven_here(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether this is the loop, and this thread is driving it."""
        # All of gevent's threads seem to run the loop that one of them runs.
        return loop is self._loop and (self._thread or self._owner) is current_thread()

    def close(self) -> None:
        with self._lock:
            loop, self._loop, thread, self._thread = self._loop, None, self._thread, None
        if thread is not None and loop is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(_CLOSING)

    def _serve(self, begun: Event) -> None:
        with asyncio.Runner() as runner:  # its exit cancels what is left
            self._loop = runner.get_loop()
            begun.set()
            self._loop.run_forever()


_process = _Process()


def _after_fork() -> None:
    global _process  # noqa: PLW0603  # the parent's thread is not here
    _process = _Process()


in_forked_child(_after_fork)
atexit.register(close)
