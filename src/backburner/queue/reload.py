"""``celery … worker --reload``: run changed code without losing a job.

The command becomes a supervisor that watches files and starts itself again as a child, the worker proper. On a change it
starts the next worker first and lets the old one go when the new one is ready: the old one takes no more jobs, finishes what
it runs, and after a while puts what is left back into the queue. If the new code does not start, the old worker goes on.

Supervisor and worker share a pair of pipes. The worker says READY on one; on the other it is told to GIVE UP, or sees it close
because the supervisor is dead, however it died. No signals are taken from Celery, and every pool works.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from celery import bootsteps, signals
from celery.bin.base import CeleryOption

from backburner.errors import ConfigError

if TYPE_CHECKING:
    from celery.worker import WorkController

    from backburner.queue.app import Celery

log = logging.getLogger("backburner.queue")

_PIPES = "BACKBURNER_RELOAD_PIPES"
"""Environment variable that makes a worker a child of a supervisor: two file descriptors."""

_READY = b"ready\n"
_GIVE_UP = b"give up\n"

_DRAIN_ON_RELOAD = 10.0
"""Seconds that running jobs get to finish when the code changed; after that they return to the queue."""

_DRAIN_ON_STOP = 3.0
"""The same when the user stops the worker."""

_KILL_AFTER = 3.0
"""Seconds from giving up to SIGKILL."""

_DEBOUNCE = 80
_TICK = 100
"""Milliseconds: to collect changes that belong together; between looks at the children."""


def install(app: "Celery") -> None:
    """Give the app's ``worker`` command the options ``--reload`` and ``--reload-dir``."""
    app.user_options["worker"].update(
        (
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
    )
    app.steps["worker"].add(Reload)


class Reload(bootsteps.Step):
    """Turns a worker that is being built into the supervisor, or into a supervised worker."""

    def __init__(
        self, worker: "WorkController", reload: bool = False, reload_dir: Iterable[str] = (), **options: Any
    ) -> None:
        super().__init__(worker, **options)
        pipes = os.environ.pop(_PIPES, None)
        if pipes:
            orders, answers = map(int, pipes.split(","))
            _be_supervised(worker, orders, answers)
        elif reload:
            raise SystemExit(_Supervisor().run(list(reload_dir) or ["."]))


def _be_supervised(worker: Any, orders: int, answers: int) -> None:
    # Asking the neighbours takes a second, and old and new worker are never meant to know each other.
    worker.options.update(without_mingle=True, without_gossip=True)

    def ready(**_: Any) -> None:
        os.write(answers, _READY)
        os.close(answers)

    def obey() -> None:
        os.read(orders, len(_GIVE_UP))  # or the end of the file: the supervisor is dead
        _give_up(worker)

    signals.worker_ready.connect(ready, weak=False)
    threading.Thread(target=obey, name="backburner-reload", daemon=True).start()


def _give_up(worker: Any) -> None:
    """Put running jobs back into the queue and end this process and its children in the same breath."""
    try:
        channel = worker.consumer.task_consumer.channel
        channel.qos.restore_unacked()
    except Exception:
        # Nothing consumes yet, or the broker is gone; its visibility timeout covers that.
        log.debug("no jobs were returned to the queue", exc_info=True)
    finally:
        os.killpg(0, signal.SIGKILL)


class _Worker:
    """A supervised worker, seen from its supervisor."""

    def __init__(self) -> None:
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        os.set_blocking(self._answers, False)
        self._ends_at: float | None = None
        self.closed = False
        self.process = subprocess.Popen(  # noqa: S603  # the very command that runs here
            [sys.executable, *sys.orig_argv[1:]],
            env=os.environ | {_PIPES: f"{orders},{answers}"},
            pass_fds=(orders, answers),
            start_new_session=True,  # Ctrl-C is for the supervisor alone, which ends things in order
        )
        os.close(orders)
        os.close(answers)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def ready(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            return os.read(self._answers, len(_READY)) == _READY
        return False

    def leave(self, drain: float) -> None:
        """Take no more jobs, finish the running ones in `drain` seconds or return them."""
        self._ends_at = time.monotonic() + drain
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)

    def hurry(self) -> None:
        """Go on with leaving: give up when the time for draining is over, kill what does not react."""
        if self._ends_at is None or not self.alive:
            return
        late = time.monotonic() - self._ends_at
        if late > _KILL_AFTER:
            self.kill()
        elif late > 0:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._orders, _GIVE_UP)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        self.closed = True
        self.process.wait()
        os.close(self._orders)
        os.close(self._answers)


class _Supervisor:
    """Keeps one worker running: the newest that starts."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._drain_on_stop = _DRAIN_ON_STOP
        self._current: _Worker | None = None
        self._next: _Worker | None = None
        self._leaving: list[_Worker] = []

    def run(self, directories: list[str]) -> int:
        """Supervise until told to stop; returns the exit code."""
        try:
            from watchfiles import PythonFilter, watch
        except ImportError:
            raise ConfigError(
                "--reload needs the package watchfiles: pip install 'backburner[dev]'"
            ) from None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        log.info("reload: watching %s", ", ".join(os.path.abspath(each) for each in directories))  # noqa: PTH100
        started = False
        for changes in watch(
            *directories,
            watch_filter=PythonFilter(extra_extensions=(".env",)),
            debounce=_DEBOUNCE,
            step=_DEBOUNCE // 2,
            rust_timeout=_TICK,
            yield_on_timeout=True,
            stop_event=self._stop,
            raise_interrupt=False,
        ):
            if changes:
                log.info(
                    "reload: %s changed", ", ".join(sorted(os.path.relpath(path) for _, path in changes))
                )
            if changes or not started:
                # The first worker starts when changes are already noticed, so none is missed.
                self._start()
                started = True
            self._look_after()
            if self._finished():
                break
        return self._end()

    def _on_signal(self, *_: object) -> None:
        if self._stop.is_set():
            self._drain_on_stop = 0
            for worker in self._leaving:
                worker.leave(0)
        self._stop.set()

    def _start(self) -> None:
        if self._next is not None:
            self._dismiss(self._next, drain=0)
        self._next = _Worker()

    def _look_after(self) -> None:
        if self._next is not None and self._next.ready:
            if self._current is not None:
                self._dismiss(self._current, drain=_DRAIN_ON_RELOAD)
            self._current, self._next = self._next, None
        if self._next is not None and not self._next.alive:
            goes_on = (
                "the worker goes on with the code of before" if self._current else "no worker is running"
            )
            log.error("reload: the code does not start, see above; %s. Save a change to try again", goes_on)
            self._next.close()
            self._next = None
        for worker in self._leaving:
            worker.hurry()
            if not worker.alive:
                worker.close()
        self._leaving = [worker for worker in self._leaving if not worker.closed]

    def _finished(self) -> bool:
        """Whether the worker ended by itself, as after ``celery control shutdown``."""
        if self._current is None or self._current.alive:
            return False
        code = self._current.process.returncode
        self._current.close()
        self._current = None
        if code == 0:
            return True
        log.error("reload: the worker ended with exit code %d. Save a change to start it again", code)
        return False

    def _dismiss(self, worker: _Worker, drain: float) -> None:
        worker.leave(drain)
        self._leaving.append(worker)

    def _end(self) -> int:
        for worker in filter(None, (self._next, self._current)):
            self._dismiss(worker, self._drain_on_stop)
        self._next = self._current = None
        while self._leaving:
            self._look_after()
            time.sleep(_TICK / 1000)
        return 0
