"""Threads for blocking functions: as many as needed, up to a limit, none of which keeps the process from ending."""

import logging
from collections import deque
from collections.abc import Callable
from threading import Condition, RLock, Thread

log = logging.getLogger("backburner.queue")

_IDLE = 30.0
"""Seconds after which an idle thread ends."""


class Threads:
    """Calls functions in the order in which they come."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._work: deque[Callable[[], object]] = deque()
        self._lock = RLock()
        self._changed = Condition(self._lock)
        self._count = 0
        self._idle = 0
        self._told = 0
        """With how many threads the log said that there are no more."""

    def call(self, function: Callable[[], object]) -> None:
        """Have a function called, which must not raise.

        Raises:
            RuntimeError: the system lets the process have no thread, not a single one.
        """
        with self._lock:
            self._work.append(function)
            if self._idle >= len(self._work):
                self._changed.notify()
            elif self._count < self.limit:
                self._begin()

    def lose_one(self) -> None:
        """Note that a thread will not come back; another one may take its place."""
        with self._lock:
            self.limit += 1

    def __len__(self) -> int:
        return self._count

    def _begin(self) -> None:
        self._count += 1
        # Daemons: a thread that hangs must not keep the process from ending.
        thread = Thread(target=self._run, name=f"backburner-task-{self._count}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._count -= 1
            if not self._count:
                self._work.pop()
                raise
            # Those that there are do the work, later. Raised, it would end the worker.
            if self._count != self._told:
                self._told = self._count
                log.warning("no more than %d threads for functions can be had (%s)", self._count, error)

    def _run(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
                found = self._changed.wait_for(lambda: self._work, _IDLE)
                self._idle -= 1
                if not found:
                    self._count -= 1
                    return
                function = self._work.popleft()
            function()
            del function
