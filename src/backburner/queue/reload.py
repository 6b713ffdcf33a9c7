"""``celery … worker --reload``: run changed code without losing a job.

The command becomes a supervisor that watches files; the worker proper is its child. On a change the next
worker starts first, and the old one leaves when the new one is ready: it takes no more jobs, finishes what
it runs, and after a while puts the rest back into the queue. If the changed code does not start, the old
worker goes on. A spare interpreter with the libraries already imported waits for the next change, which
makes the switch a matter of the program's own import time.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import bootsteps
from celery.bin.base import CeleryOption

from backburner.queue import supervised

if TYPE_CHECKING:
    from celery.worker import WorkController

    from backburner.queue.app import Celery

log = logging.getLogger("backburner.queue")

_DRAIN_ON_RELOAD = 10.0
"""Seconds that running jobs get to finish when the code changed; after that they return to the queue."""

_DRAIN_ON_STOP = 3.0
"""The same when the user stops the worker."""

_DEBOUNCE = 80
_TICK = 50
"""Milliseconds: to collect changes that belong together; between looks at the children."""


def install(app: "Celery") -> None:
    """Give the app's ``worker`` command the options ``--reload`` and ``--reload-dir``."""
    options = (
        CeleryOption(
            ("--reload",),
            is_flag=True,
            help_group="Development",
            help="Run changed code within seconds of saving it, without losing a job.",
        ),
        CeleryOption(
            ("--reload-dir",),
            multiple=True,
            metavar="DIRECTORY",
            help_group="Development",
            help="Watch this directory instead of the current one. Can be repeated.",
        ),
    )
    app.user_options["worker"].update(options)
    app.steps["worker"].add(Reload)


class Reload(bootsteps.Step):
    """Turns a worker that is being built into the supervisor, or into a supervised worker."""

    def __init__(
        self, worker: "WorkController", reload: bool = False, reload_dir: Iterable[str] = (), **options: Any
    ) -> None:
        super().__init__(worker, **options)
        if supervised.is_supervised():
            supervised.obey(worker)
        elif reload:
            raise SystemExit(_Supervisor(list(reload_dir) or ["."]).run())


class _Supervisor:
    """Keeps one worker running: the newest that starts."""

    def __init__(self, directories: list[str]) -> None:
        self._directories = directories
        self._stop = threading.Event()
        self._current: supervised.Worker | None = None
        self._next: supervised.Worker | None = None
        self._spare: supervised.Worker | None = None
        self._leaving: list[supervised.Worker] = []

    def run(self) -> int:
        """Supervise until told to stop; returns the exit code."""
        if os.name == "nt":
            raise SystemExit("--reload needs process groups, which Windows does not have: restart the worker by hand")
        try:
            from watchfiles import PythonFilter, watch
        except ImportError:
            raise SystemExit("--reload needs the package watchfiles: pip install 'backburner[dev]'") from None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        log.info("reload: watching %s", ", ".join(str(Path(each).resolve()) for each in self._directories))
        started = False
        for changes in watch(
            *self._directories,
            watch_filter=PythonFilter(extra_extensions=(".env",)),
            debounce=_DEBOUNCE,
            step=_DEBOUNCE // 2,
            rust_timeout=_TICK,
            yield_on_timeout=True,
            stop_event=self._stop,
            raise_interrupt=False,
        ):
            self._look_after()
            if changes:
                log.info("reload: %s changed", ", ".join(sorted(os.path.relpath(path) for _, path in changes)))
            if changes or not started:
                # The first worker starts when changes are already noticed, so that none is missed.
                self._start()
                started = True
            if self._ended_by_itself():
                break
        self._end()
        return 0

    def _on_signal(self, *_: object) -> None:
        if self._stop.is_set():
            for worker in self._leaving:
                worker.leave(drain=0)
        self._stop.set()

    def _start(self) -> None:
        self._dismiss(self._next, drain=0)
        self._next = self._spare or supervised.Worker(self._directories)
        self._next.go()
        self._spare = None

    def _look_after(self) -> None:
        if self._next is not None and self._next.ready:
            self._dismiss(self._current, drain=_DRAIN_ON_RELOAD)
            log.info("reload: process %d takes over", self._next.process.pid)
            self._current, self._next = self._next, None
            self._spare = supervised.Worker(self._directories)
        if self._next is not None and not self._next.alive:
            goes_on = "the worker goes on with the code of before" if self._current else "no worker is running"
            log.error("reload: the code does not start, see above; %s. Save a change to try again", goes_on)
            self._next.close()
            self._next, self._spare = None, self._spare or supervised.Worker(self._directories)
        for worker in self._leaving:
            worker.hurry()
            if not worker.alive:
                worker.close()
                log.info("reload: process %d has ended", worker.process.pid)
        self._leaving = [worker for worker in self._leaving if not worker.closed]

    def _ended_by_itself(self) -> bool:
        """Whether the worker ended well without being asked from here, as by ``celery control shutdown``."""
        if self._current is None or self._current.alive:
            return False
        worker, self._current = self._current, None
        worker.close()
        if worker.process.returncode == 0:
            return True
        log.error(
            "reload: the worker ended with code %d. Save a change to start it again",
            worker.process.returncode,
        )
        return False

    def _dismiss(self, worker: supervised.Worker | None, drain: float) -> None:
        if worker is not None:
            worker.leave(drain)
            self._leaving.append(worker)

    def _end(self) -> None:
        self._dismiss(self._spare, drain=0)
        self._dismiss(self._next, drain=0)
        self._dismiss(self._current, drain=_DRAIN_ON_STOP)
        self._spare = self._next = self._current = None
        for worker in self._leaving:
            worker.leave(_DRAIN_ON_STOP)
        while self._leaving:
            self._look_after()
            time.sleep(_TICK / 1000)
