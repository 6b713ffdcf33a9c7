"""Names in the log what blocks the loop: a task that computes, or waits for something without ``await``.

Nothing can be done about it from outside, except having the process replaced when it goes on for too long. Until the
transport takes the worker for hung, leases are renewed by a thread that does not need the loop.
"""

import asyncio
import logging
import sys
import traceback
from collections.abc import Callable
from threading import Event, Thread
from time import monotonic
from typing import Final

log = logging.getLogger("backburner.queue")

_GROWTH: Final = 4
"""The factor by which the time until the next report grows while the loop stays blocked."""
_OURS: Final = ("/backburner/queue/pool/", "/celery/", "/kombu/")


class Watchdog:
    """Checks now and then whether the loop is running.

    Args:
        loop: the one to watch.
        ident: of its thread.
        limit: seconds for which it may be blocked without a report.
        hangs_after: seconds of being blocked after which `on_hang` is called.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        ident: int,
        limit: float,
        *,
        hangs_after: float,
        on_hang: Callable[[], object],
    ) -> None:
        self._loop = loop
        self._ident = ident
        self._limit = limit
        self._hangs_after = hangs_after
        self._on_hang = on_hang
        self._over = Event()
        self._answered = Event()
        self._thread = Thread(target=self._run, name="backburner-watchdog", daemon=True)

    def start(self) -> None:
        """Watch from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._over.set()
        self._answered.set()

    def _run(self) -> None:
        while not self._over.is_set():
            self._answered.clear()
            try:
                self._loop.call_soon_threadsafe(self._answered.set)
            except RuntimeError:
                return  # the loop is closed
            asked = monotonic()
            told = 0
            patience = next_telling = self._limit
            while self._loop.is_running() and not self._answered.wait(patience):
                blocked = monotonic() - asked
                if blocked >= next_telling:
                    told += 1
                    self._tell(blocked)
                    next_telling = blocked * _GROWTH
                if blocked >= self._hangs_after:
                    self._on_hang()
                patience = self._limit
            if told:
                log.warning("the event loop runs again; it was blocked for %.1f s", monotonic() - asked)
            self._over.wait(self._limit / 2)

    def _tell(self, seconds: float) -> None:
        frame = sys._current_frames().get(self._ident)  # noqa: SLF001  # has no other name
        task = asyncio.current_task(self._loop)
        log.error(
            "the event loop has been blocked for %.1f s by %s, so that no other job goes on. It is at\n%s",
            seconds,
            "something that is no task" if task is None else task.get_name(),
            "".join(traceback.format_list(_users_part(traceback.extract_stack(frame)))),
        )


def _users_part(stack: list[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    """The inner part of the stack, from where it leaves our code and Celery's."""
    last = max((i for i, frame in enumerate(stack) if any(part in frame.filename for part in _OURS)), default=-1)
    return stack[last + 1 :] or stack
