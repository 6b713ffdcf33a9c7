"""Lets Celery's hub wait on the asyncio loop instead of blocking in the kernel.

The files that the hub watches stay in its own epoll (or kqueue), which the loop watches like any other file.
"""

import asyncio
from typing import Any

from backburner.errors import ConfigError
from backburner.queue.pool import bridge


class Poller:
    """Wraps the hub's kombu poller."""

    def __init__(self, hub: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._hub = hub
        self._inner = hub.poller
        self._loop = loop
        self._waiter: asyncio.Future[None] | None = None
        self._woken = False
        self._watches = False
        kernel = getattr(self._inner, "_epoll", None) or getattr(self._inner, "_kqueue", None)
        if kernel is None:
            raise ConfigError("--pool=asyncio needs epoll or kqueue, which this system does not have")
        self._file: int = kernel.fileno()

    def poll(self, timeout: float | None) -> Any:
        """As kombu's, called in the hub's greenlet. Always gives other tasks a turn."""
        if self._woken or self._hub._ready or timeout == 0:  # noqa: SLF001  # there is no public name
            bridge.give_way()
        else:
            self._wait(timeout)
        self._woken = False
        return self._inner.poll(0)

    def wake(self) -> None:
        """Have the hub go round once more. To be called in the loop's thread."""
        self._woken = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        """As kombu's."""
        self._unwatch()
        self._inner.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _wait(self, timeout: float | None) -> None:
        self._waiter = self._loop.create_future()
        timer = None if timeout is None else self._loop.call_later(timeout, self.wake)
        if not self._watches:
            self._loop.add_reader(self._file, self._readable)
            self._watches = True
        try:
            bridge.wait_for(self._waiter)
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _readable(self) -> None:
        if self._waiter is None:
            # The hub is busy, and the loop would report the same file again and again.
            self._unwatch()
        else:
            self.wake()

    def _unwatch(self) -> None:
        if self._watches:
            self._watches = False
            if not self._loop.is_closed():
                self._loop.remove_reader(self._file)
