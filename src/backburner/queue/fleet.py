"""Workers under one supervisor, each in a place that also holds the next one while it starts, or the last one as it
leaves.

A worker is replaced when it dies, when it asks for that (`supervised.ask_for_a_replacement`), and when the code has
changed (`reload`). A worker that is alive leaves only when the next one is ready.
"""

import logging
import math
import os
import signal
import time
from collections.abc import Sequence
from typing import Final

from backburner.queue import supervised

log = logging.getLogger("backburner.queue")

_PAUSES: Final = (0.5, 30.0)
"""Seconds until a worker that died is started again, at first and at most."""
_HEALTHY: Final = 60.0
"""Seconds after which a death counts as a first one again."""
_HUNG: Final = 5.0
"""Seconds that a hung worker gets to end, once there is another one."""


class Place:
    """Where one worker is kept running: the newest that starts.

    Args:
        directories: of the code that may change meanwhile. Without any, a worker that dies is started again.
        number: of this place; part of the workers' names.
    """

    def __init__(self, directories: Sequence[str], number: int | None) -> None:
        self.is_over = False
        """Whether its worker ended normally without a request from here, as by ``celery control shutdown``."""
        self._directories = directories
        self._number = number
        self._current: supervised.Worker | None = None
        self._next: supervised.Worker | None = None
        self._spare: supervised.Worker | None = None
        self._leaving: list[supervised.Worker] = []
        self._drain = math.inf
        self._pause = _PAUSES[0]
        self._start_at = math.inf
        self._ready_at = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether no process is left."""
        return not (self._current or self._next or self._spare or self._leaving)

    def start(self, drain: float) -> None:
        """Start the next worker. Once it is ready, the previous one gets `drain` seconds to finish."""
        self._dismiss(self._next, drain=0)
        self._next = self._spare or self._new()
        self._next.go()
        self._spare = None
        self._drain = drain
        self._start_at = math.inf

    def look_after(self) -> None:
        """Check all workers. To be called a few times a second."""
        if self._next is not None and self._next.ready:
            self._take_over(self._next)
        if self._next is not None and not self._next.alive:
            self._failed(self._next)
        if self._current is not None and not self._current.alive:
            self._ended(self._current)
        if self._current is not None and self._current.wants_to_leave and self._next is None:
            self.start(_HUNG if self._current.hangs else math.inf)
        if time.monotonic() >= self._start_at:
            self.start(math.inf)
        for worker in self._leaving:
            worker.hurry()
            if not worker.alive:
                worker.close()
                log.info("process %d has ended", worker.process.pid)
        self._leaving = [worker for worker in self._leaving if not worker.closed]

    def end(self, drain: float) -> None:
        """Have all workers leave; those that take jobs get `drain` seconds to finish."""
        self._start_at = math.inf
        self._dismiss(self._spare, drain=0)
        self._dismiss(self._next, drain=0)
        self._dismiss(self._current, drain)
        self._spare = self._next = self._current = None
        for worker in self._leaving:
            worker.leave(drain)

    def pass_on(self, number: int) -> None:
        """Send all a signal."""
        for worker in (self._current, self._next, *self._leaving):
            if worker is not None and worker.alive:
                worker.process.send_signal(number)

    def _take_over(self, worker: supervised.Worker) -> None:
        self._dismiss(self._current, self._drain)
        log.info("process %d takes over", worker.process.pid)
        self._current, self._next = worker, None
        self._ready_at = time.monotonic()
        if self._directories:
            self._spare = self._new()

    def _failed(self, worker: supervised.Worker) -> None:
        """The next worker did not start."""
        worker.close()
        self._next = None
        if not self._directories:
            self._start_later(f"process {worker.process.pid} did not start (code {worker.process.returncode})")
            return
        goes_on = "the worker goes on with the code from before" if self._current else "no worker is running"
        log.error("reload: the code does not start, see above; %s. Save a change to try again", goes_on)
        self._spare = self._spare or self._new()

    def _ended(self, worker: supervised.Worker) -> None:
        worker.close()
        self._current = None
        code = worker.process.returncode
        if code == 0:
            self.is_over = self._next is None
        elif self._directories:
            log.error("reload: the worker ended with code %d. Save a change to start it again", code)
        else:
            if time.monotonic() - self._ready_at > _HEALTHY:
                self._pause = _PAUSES[0]
            self._start_later(f"process {worker.process.pid} ended with code {code}")

    def _start_later(self, why: str) -> None:
        log.error("%s; another one starts in %g s", why, self._pause)
        self._start_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, _PAUSES[1])

    def _new(self) -> supervised.Worker:
        return supervised.Worker(self._directories, self._number)

    def _dismiss(self, worker: supervised.Worker | None, drain: float) -> None:
        if worker is not None:
            worker.leave(drain)
            self._leaving.append(worker)


class Fleet:
    """All places, and the signals that end them.

    The first signal lets jobs finish (SIGTERM, SIGINT) or ends them (SIGQUIT); further ones are more urgent.

    Args:
        drain: seconds that running jobs get on the first signal.
    """

    def __init__(self, directories: Sequence[str], count: int, drain: float) -> None:
        if os.name == "nt":
            raise SystemExit("--reload and --processes need process groups, which Windows does not have")
        self.stopping = False
        self.places = [Place(directories, number if count > 1 else None) for number in range(1, count + 1)]
        self._drain = drain
        self._signals: list[int] = []
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
            signal.signal(number, self._on_signal)

    def start(self, drain: float = math.inf) -> None:
        """Start a new worker in each place; jobs that run there then have `drain` seconds to finish."""
        for place in self.places:
            place.start(drain)

    def look_after(self) -> bool:
        """Check all workers. Returns whether there is anything left to do."""
        for place in self.places:
            place.look_after()
        return not (self.stopping or all(place.is_over for place in self.places))

    def end(self, tick: float) -> None:
        """Have all leave, and wait for that."""
        for place in self.places:
            place.end(self._drain)
        while not all(place.is_empty for place in self.places):
            self._press()
            for place in self.places:
                place.look_after()
            time.sleep(tick)

    def _on_signal(self, number: int, _: object) -> None:
        self.stopping = True
        self._signals.append(number)

    def _press(self) -> None:
        """Act on signals since the first one, or on the first if it is not a friendly one."""
        while self._signals:
            number = self._signals.pop(0)
            if number == signal.SIGQUIT:
                for place in self.places:
                    place.pass_on(number)
            elif self._pressed:
                for place in self.places:
                    place.end(0)
            self._pressed = True

    _pressed = False
