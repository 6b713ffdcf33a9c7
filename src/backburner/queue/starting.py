"""Stores the state STARTED, but only of jobs that run for more than a moment: most end before anybody could look.

A thread stores it in one write for all jobs of the process that have run for `_MOMENT`; for a job that has ended
meanwhile, only its result is stored. If the thread fails, that is logged, and does not affect any job.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from threading import Event, Lock, Thread
from typing import Final

import redis

from backburner.queue.deadline import OutOfTime, deadline
from backburner.queue.pool import bridge
from backburner.queue.settlement import Stored

log = logging.getLogger("backburner.queue")

_MOMENT: Final = 0.02
"""Seconds."""
_TIMEOUT: Final = 2.0

_Waiting = dict[str, tuple[float, str, Callable[[], Stored]]]
"""By job: when its start is to be told, when it began, and what makes the state."""


class Starts:
    """The jobs that have started here without the server knowing it.

    Args:
        write: stores states at once.
    """

    def __init__(self, write: Callable[[Sequence[Stored]], object]) -> None:
        self._write = write
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._waiting: _Waiting = {}
        self._any = Event()
        self._telling = Lock()
        self._starting = Lock()
        self._thread: Thread | None = None

    def add(self, job_id: str, began: str, state: Callable[[], Stored]) -> None:
        """Note that a job has started; `state` is to be stored if it goes on."""
        if self._pid != os.getpid():
            self._begin()  # a forked child does not have its parent's thread
        self._waiting[job_id] = time.monotonic() + _MOMENT, began, state
        if not self._any.is_set():
            self._any.set()
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    thread = Thread(target=self._run, name="backburner-starts", daemon=True)
                    thread.start()
                    self._thread = thread  # if that was interrupted, there may be two, which do no harm

    def end(self, job_id: str) -> str:
        """Another state of the job is about to be stored. Returns when it began, if the server has not been told and
        will not be."""
        if (waiting := self._waiting.pop(job_id, None)) is not None:
            return waiting[1]
        # STARTED must not be stored after what follows.
        if self._telling.locked() and bridge.is_here():
            bridge.in_thread(self._told)
        else:
            self._told()
        return ""

    def tell(self, job_id: str) -> None:
        """Store the job's start now, if that has not been done.

        Raises:
            redis.RedisError: the server cannot be reached.
        """
        waiting = self._waiting.pop(job_id, None)
        if waiting is not None:
            self._write([waiting[2]()])

    def _told(self) -> None:
        """Wait until the write in progress is done."""
        with self._telling:
            pass

    def _run(self) -> None:
        waiting = self._waiting
        while True:
            self._any.wait()
            time.sleep(_MOMENT)
            with self._telling:
                self._tell_those_that_are_due(waiting)
            if not waiting:
                self._any.clear()
                if waiting:
                    self._any.set()  # one has come in between

    def _tell_those_that_are_due(self, waiting: _Waiting) -> None:
        now = time.monotonic()
        due = [job_id for job_id, (at, _, _) in waiting.copy().items() if at <= now]
        found = [waiting.pop(job_id, None) for job_id in due]
        states = [each[2] for each in found if each is not None]
        if not states:
            return
        try:
            with deadline(_TIMEOUT):
                self._write([state() for state in states])
        except (OutOfTime, redis.RedisError, OSError) as error:
            log.warning("that %d jobs have started was not stored: %s", len(states), str(error) or "no answer")
        except Exception:  # whatever it is, the thread has to go on
            log.exception("that %d jobs have started was not stored", len(states))
