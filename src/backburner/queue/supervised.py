"""A worker under a supervisor: the process, and the two pipes between them, seen from either end.

On one pipe the worker says that it is READY, and that it wants to be replaced because it is TIRED or HANGS. On the
other it is told to GO, to LEAVE and to GIVE UP, and sees it close if the supervisor has died, however that happened.
Celery's signals keep their meaning, and every pool works.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from celery import signals
from celery.app.trace import setup_worker_optimizations

from backburner.queue import warm

log = logging.getLogger("backburner.queue")

_PIPES = "BACKBURNER_RELOAD_PIPES"
"""Environment variable that makes a worker a supervised one: the two file descriptors of its pipes."""

_NUMBER = "BACKBURNER_WORKER_NUMBER"
"""Environment variable: the number of this worker among several."""

_READY = b"ready\n"
_TIRED = b"tired\n"
_HANGS = b"hangs\n"
_LEAVE = b"leave\n"
_GIVE_UP = b"abort\n"

_KILL_AFTER = 3.0
"""Seconds from giving up to SIGKILL."""

_POLL = 0.1
"""Seconds that a BRPOP of a supervised worker blocks: with kombu's one second, it would take jobs for that long."""

_PRELOAD = {
    "anyio",
    "billiard",
    "celery",
    "click",
    "fastapi",
    "hiredis",
    "kombu",
    "orjson",
    "pydantic",
    "pydantic_core",
    "pydantic_settings",
    "redis",
    "sqlalchemy",
    "starlette",
    "vine",
}
"""Packages whose import does not depend on what the program did before."""


class Worker:
    """A worker process, as seen by its supervisor. It runs no user code before `go`."""

    def __init__(self, changing: Iterable[str], number: int | None = None) -> None:
        """Start an interpreter that imports nothing from the directories `changing` yet. The `number` becomes part of
        the worker's name.
        """
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        os.set_blocking(self._answers, False)
        self._said: set[bytes] = set()
        self._ends_at: float | None = None
        self.closed = False
        self.process = subprocess.Popen(  # noqa: S603  # the very command that runs here
            [
                sys.executable,
                *_interpreter_flags(),
                "-c",
                Path(warm.__file__).read_text("utf-8"),
                _order(orders, changing),
            ],
            env=os.environ | {_PIPES: f"{orders},{answers}"} | ({} if number is None else {_NUMBER: str(number)}),
            pass_fds=(orders, answers),
            start_new_session=True,  # Ctrl-C must reach only the supervisor, which ends workers in order
        )
        os.close(orders)
        os.close(answers)

    @property
    def alive(self) -> bool:
        """Whether the process is running."""
        return self.process.poll() is None

    @property
    def ready(self) -> bool:
        """Whether it takes jobs."""
        return self._has_said(_READY)

    @property
    def wants_to_leave(self) -> bool:
        """Whether it has asked for a replacement."""
        return self._has_said(_TIRED) or self.hangs

    @property
    def hangs(self) -> bool:
        """Whether its event loop is stuck, so that it will not end by itself."""
        return self._has_said(_HANGS)

    def _has_said(self, what: bytes) -> bool:
        with contextlib.suppress(BlockingIOError):
            while word := os.read(self._answers, len(_READY)):
                self._said.add(word)
        return what in self._said

    def go(self) -> None:
        """Import the program and start working."""
        self._tell(warm.GO)

    def leave(self, drain: float) -> None:
        """Have it take no more jobs, and finish the running ones in `drain` seconds or return them to the queue."""
        ends_at = time.monotonic() + drain
        if self._ends_at is None and _READY in self._said:
            self._tell(_LEAVE)
        elif self._ends_at is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)
        self._ends_at = ends_at if self._ends_at is None else min(ends_at, self._ends_at)

    def hurry(self) -> None:
        """End what takes too long while it leaves; to be called now and then."""
        late = time.monotonic() - self._ends_at if self._ends_at is not None else 0
        if late > _KILL_AFTER:
            self.kill()
        elif late > 0:
            self._tell(_GIVE_UP)

    def kill(self) -> None:
        """End it at once, with its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Release the resources of a process that has ended."""
        self.closed = True
        self.process.wait()
        os.close(self._orders)
        os.close(self._answers)

    def _tell(self, order: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(self._orders, order)


def is_supervised() -> bool:
    """Whether this process was started by `Worker`."""
    return _PIPES in os.environ


def number() -> int:
    """The number of this worker among several, from 1. To be read before the worker is built."""
    return int(os.environ.get(_NUMBER, "1"))


def ask_for_a_replacement(*, hangs: bool = False) -> bool:
    """Have the supervisor start another worker, and tell this one to leave when that takes jobs.

    Returns whether there is a supervisor.
    """
    if _answers is None:
        return False
    with contextlib.suppress(BrokenPipeError):
        os.write(_answers, _HANGS if hangs else _TIRED)
    return True


_answers: int | None = None
"""The pipe to the supervisor, in a supervised worker."""


def obey(worker: Any) -> None:
    """Make the Celery worker being built here a supervised one."""
    global _answers  # noqa: PLW0603  # there is one worker in a process
    # Processes that the worker itself starts are not supervised.
    orders, answers = map(int, os.environ.pop(_PIPES).split(","))
    _answers = answers
    if number := os.environ.pop(_NUMBER, None):
        name, _, host = worker.hostname.partition("@")
        worker.hostname = f"{name}-{number}@{host}"
        setup_worker_optimizations(worker.app, worker.hostname)
    # Asking the neighbours takes a second, and old and new worker need not know each other.
    worker.options.update(without_mingle=True, without_gossip=True)
    conf = worker.app.conf
    conf.broker_transport_options = {"polling_interval": _POLL} | conf.broker_transport_options

    def say_ready(**_: Any) -> None:
        os.write(answers, _READY)

    def listen() -> None:
        while os.read(orders, len(_LEAVE)) == _LEAVE:
            _stop_taking_jobs(worker)
            os.kill(os.getpid(), signal.SIGTERM)
        # Told to give up; or at the end of file, because the supervisor is dead.
        _give_up(worker)

    signals.worker_ready.connect(say_ready, weak=False)
    threading.Thread(target=listen, name="backburner-supervised", daemon=True).start()


def _stop_taking_jobs(worker: Any) -> None:
    # Celery's own way, SIGTERM, first takes another job and then keeps it waiting for those that run. What
    # this cancels goes straight back into the queue instead.
    consumer = getattr(worker.consumer, "task_consumer", None)
    if consumer is not None and worker.hub is not None:
        worker.hub.call_soon(consumer.cancel)
        time.sleep(3 * _POLL)


def _give_up(worker: Any) -> None:
    """Return unfinished jobs to the queue, and end this process and its children at the same moment."""
    end = threading.Timer(_KILL_AFTER, os.killpg, (0, signal.SIGKILL))
    end.daemon = True
    end.start()
    _stop_taking_jobs(worker)
    consumer = getattr(worker.consumer, "task_consumer", None)
    try:
        if consumer is not None:  # or nothing was consumed yet
            consumer.channel.qos.restore_unacked()
    except Exception:
        # The broker is gone, and then the lease runs out.
        log.warning("no jobs were returned to the queue", exc_info=True)
    os.killpg(0, signal.SIGKILL)


def _order(orders: int, changing: Iterable[str]) -> str:
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    roots = tuple(f"{Path(each).resolve()}{os.sep}" for each in changing)
    libraries = tuple(path for path in sys.path if path.endswith("-packages"))
    preload = [
        name
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in _PRELOAD
        and (file := getattr(module, "__file__", None))
        and (file.startswith(libraries) or not file.startswith(roots))
    ]
    return json.dumps(
        {
            "orders": orders,
            "preload": preload,
            "module": spec.name.removesuffix(".__main__") if spec else None,
            "argv": sys.argv,
            "path": str(Path.cwd()) if spec else str(Path(sys.argv[0]).resolve().parent),
        }
    )


def _interpreter_flags() -> list[str]:
    # multiprocessing uses this for the same purpose; it has no public name.
    return list(subprocess._args_from_interpreter_flags())  # type: ignore[attr-defined]  # noqa: SLF001
