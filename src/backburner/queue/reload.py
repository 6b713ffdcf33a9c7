"""``celery … worker --reload`` and ``--processes``: the command becomes the supervisor of workers (`fleet`).

``--reload`` runs changed code without losing a job. On a change the new worker starts first, and the old one leaves
when the new one is ready: it takes no more jobs, finishes those it runs, and after a while returns the rest to the
queue. If the changed code does not start, the old worker goes on. A spare interpreter that has already imported the
libraries waits for the next change, so that a switch takes only the program's own import time.
"""

import logging
import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import celery
from celery import bootsteps
from celery.bin.base import CeleryOption

from backburner.queue import supervised
from backburner.queue.fleet import Fleet

if TYPE_CHECKING:
    from celery.worker import WorkController


log = logging.getLogger("backburner.queue")

_DRAIN_ON_RELOAD = 10.0
"""Seconds that running jobs get to finish when the code has changed; after that they return to the queue."""

_DRAIN_ON_STOP = 3.0
"""The same, when the user stops the worker."""

_DEBOUNCE = 80
_TICK = 50
"""Milliseconds: to collect changes that belong together; between checks of the children."""


def install(app: celery.Celery) -> None:
    """Give the app's ``worker`` command the options ``--reload``, ``--reload-dir`` and ``--processes``."""
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
        CeleryOption(
            ("--processes",),
            type=int,
            metavar="N",
            help_group="Worker Options",
            help="Run N such workers, each in a process of its own, and start those again that die.",
        ),
    )
    app.user_options["worker"].update(options)
    app.steps["worker"].add(Supervision)


class Supervision(bootsteps.Step):
    """Turns a worker that is being built into the supervisor, or into a supervised worker."""

    def __init__(
        self,
        worker: "WorkController",
        reload: bool = False,
        reload_dir: Iterable[str] = (),
        processes: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(worker, **options)
        if processes is not None and processes < 1:
            raise SystemExit(f"--processes {processes}: there must be one, at least")
        if supervised.is_supervised():
            supervised.obey(worker)
        elif reload:
            raise SystemExit(_reload(list(reload_dir) or ["."], processes or 1))
        elif processes is not None:
            raise SystemExit(_supervise(processes))


def _supervise(count: int) -> int:
    """Keep workers running until told to stop; returns the exit code."""
    fleet = Fleet((), count, drain=math.inf)
    fleet.start()
    while fleet.look_after():
        time.sleep(_TICK / 1000)
    fleet.end(_TICK / 1000)
    return 0


def _reload(directories: list[str], count: int) -> int:
    """The same, with new ones whenever the code changed."""
    try:
        from watchfiles import PythonFilter, watch
    except ImportError:
        raise SystemExit('--reload needs the package watchfiles: pip install "backburner[dev]"') from None
    fleet = Fleet(directories, count, drain=_DRAIN_ON_STOP)
    log.info("reload: watching %s", ", ".join(str(Path(each).resolve()) for each in directories))
    started = False
    for changes in watch(
        *directories,
        watch_filter=PythonFilter(extra_extensions=(".env",)),
        debounce=_DEBOUNCE,
        step=_DEBOUNCE // 2,
        rust_timeout=_TICK,
        yield_on_timeout=True,
        raise_interrupt=False,
    ):
        goes_on = fleet.look_after()
        if changes:
            log.info("reload: %s changed", ", ".join(sorted(os.path.relpath(path) for _, path in changes)))
        if goes_on and (changes or not started):
            # The first worker starts once changes are being watched, so that none is missed.
            fleet.start(_DRAIN_ON_RELOAD)
            started = True
        if not goes_on:
            break
    fleet.end(_TICK / 1000)
    return 0
