"""Lets blocking code wait on an event loop without blocking it.

Code called by `cross` runs in a greenlet of its own. When it has to wait, `wait_for` switches back to the coroutine
that called it, which awaits on its behalf while the loop goes on. SQLAlchemy does the same for its asyncio drivers.
"""

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextvars import copy_context
from threading import local
from types import coroutine
from typing import Any, Final, TypeVar, cast

from greenlet import getcurrent, greenlet

T = TypeVar("T")

_MOST_IDLE: Final = 1000
"""Greenlets that a thread keeps for its next calls, 5 KiB each."""


class Abandoned(BaseException):
    """Thrown into waiting code whose caller has gone: it must not wait again."""


def prepare(count: int) -> None:
    """Make as many bridges as will be needed at a time, up to the number that is kept."""
    while len(_idle.bridges) < min(count, _MOST_IDLE):
        _idle.bridges.append(_Bridge())


def is_here() -> bool:
    """Whether the caller runs inside `cross`, and so may call `wait_for`."""
    return isinstance(getcurrent(), _Bridge)


@coroutine
def cross(
    function: Callable[..., T], *args: Any, translate: Callable[[BaseException], BaseException] | None = None
) -> Generator[Any, Any, T]:
    """Call blocking code. Await this in an asyncio task.

    Args:
        function: called with `args`, in the context of the task.
        translate: maps an exception to be raised where the code waits to the one that is raised there instead.
    """
    bridge = _idle.bridges.pop() if _idle.bridges else _Bridge()
    bridge.parent = parent = getcurrent()
    bridge.gr_context = parent.gr_context
    bridge.is_busy = True
    waits = bridge.switch(function, args)
    while bridge.is_busy:
        try:
            got = yield waits
        except BaseException as error:  # noqa: BLE001  # whatever it is, it is for the code that waits
            bridge.parent = getcurrent()
            waits = bridge.throw(error if translate is None else translate(error))
        else:
            bridge.parent = getcurrent()
            waits = bridge.switch(got)
    return cast("T", bridge.take_outcome())


def wait_for(awaitable: Awaitable[T]) -> T:
    """Await something, in blocking code called by `cross`.

    Raises:
        Abandoned: the caller of `cross` has gone. What was awaited is closed.
    """
    bridge: Any = getcurrent()
    steps: Any = awaitable.__await__()
    step = steps.send
    value: Any = None
    while True:
        try:
            waits = step(value)
        except StopIteration as stop:
            return cast("T", stop.value)
        try:
            value = bridge.parent.switch(waits)
        except Abandoned:
            # Raises what its clean-up raises: a RuntimeError if it goes on waiting nevertheless.
            steps.close()
            raise
        except BaseException as error:  # noqa: BLE001  # as above
            step, value = steps.throw, error
        else:
            step = steps.send


def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Call a function that blocks and cannot wait on the loop, in another thread but in this context."""
    return wait_for(asyncio.get_running_loop().run_in_executor(None, copy_context().run, function, *args))


def block(function: Callable[..., T], *args: Any) -> T:
    """Call a function that blocks: `in_thread` if the caller runs inside `cross`, whose loop is to go on; else here."""
    return in_thread(function, *args) if is_here() else function(*args)


def give_way() -> None:
    """Let other tasks have a turn."""
    bridge: Any = getcurrent()
    bridge.parent.switch(None)


class _Bridge(greenlet):
    """A greenlet that makes one call after another. A new one for each call would cost more than many calls do: Python
    maps 16 KiB for each one's frames, and unmaps them in the end."""

    parent: Any
    is_busy = False
    result: Any = None
    failure: BaseException | None = None

    def __init__(self) -> None:
        super().__init__(_make_calls)
        self.switch()

    def take_outcome(self) -> Any:
        """Return or raise what the call did, and forget it: the bridge is free for the next call."""
        result, error = self.result, self.failure
        self.result = self.failure = self.gr_context = None
        if len(_idle.bridges) < _MOST_IDLE:
            _idle.bridges.append(self)
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback refers to this frame
        return result


def _make_calls() -> None:
    # Refers to the bridge only during a call; otherwise nothing would ever free the bridges of a thread that has ended.
    here: Any = getcurrent
    while True:
        function, args = here().parent.switch()
        bridge = here()
        try:
            bridge.result = function(*args)
        except BaseException as error:  # noqa: BLE001  # for the caller
            bridge.failure = error
        bridge.is_busy = False
        del function, args, bridge


class _Idle(local):
    """Idle bridges, per thread: a greenlet cannot leave its thread."""

    def __init__(self) -> None:
        self.bridges: list[_Bridge] = []


_idle = _Idle()
