"""Blocking code that waits on an event loop, and does not block it.

Code called by `cross` runs in a greenlet of its own. Where it has to wait, `wait_for` switches back to the coroutine
that called it, which awaits in its place; so the loop goes on meanwhile. SQLAlchemy does the same for its drivers.
"""

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextvars import copy_context
from types import coroutine
from typing import Any, TypeVar, cast

from greenlet import getcurrent, greenlet

T = TypeVar("T")


class Abandoned(BaseException):
    """Thrown into code that waits: nobody waits for it any more, and it may not wait again."""


def is_here() -> bool:
    """Whether the caller was called by `cross`, and may call `wait_for`."""
    return isinstance(getcurrent(), _Bridge)


@coroutine
def cross(
    function: Callable[..., T], *args: Any, translate: Callable[[BaseException], BaseException] | None = None
) -> Generator[Any, Any, T]:
    """Call blocking code. Await this in an asyncio task.

    Args:
        function: called with `args`, in the context of the task.
        translate: given what is to be raised where the code waits, says what is raised there.
    """
    bridge = _Bridge(function, getcurrent())
    waits: Any = bridge.switch(*args)
    while not bridge.dead:
        try:
            got = yield waits
        except BaseException as error:  # noqa: BLE001  # whatever it is, it is for the code that waits
            bridge.parent = getcurrent()
            waits = bridge.throw(error if translate is None else translate(error))
        else:
            bridge.parent = getcurrent()
            waits = bridge.switch(got)
    return cast("T", waits)  # what the function returned, once the greenlet is dead


def wait_for(awaitable: Awaitable[T]) -> T:
    """Await, in blocking code called by `cross`.

    Raises:
        Abandoned: nobody waits any more. What was awaited is closed.
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
    """Call what blocks and cannot wait on the loop, in another thread and this context."""
    return wait_for(asyncio.get_running_loop().run_in_executor(None, copy_context().run, function, *args))


def give_way() -> None:
    """Let others have a turn."""
    bridge: Any = getcurrent()
    bridge.parent.switch(None)


class _Bridge(greenlet):
    def __init__(self, function: Callable[..., Any], parent: greenlet) -> None:
        super().__init__(function, parent)
        self.gr_context = parent.gr_context
