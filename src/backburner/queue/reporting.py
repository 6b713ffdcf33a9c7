"""`progress` and `log`: what a running task reports to whoever follows its job.

The task never waits for the server: a thread sends the reports, at once if none were sent lately, otherwise together
with those that follow. All have been sent when the job's result is stored. A result backend that does not answer costs
the events and a log line, never the task.

Progress is also kept in the job's state, as the meta data of STARTED: stock Celery programs see it as
``AsyncResult.info["progress"]``.
"""

import json
import logging
import math
import os
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from contextvars import ContextVar
from threading import Condition, Lock, Thread
from typing import Any, Final

import celery
import orjson
import redis
from celery import states

from backburner.forking import in_forked_child
from backburner.queue.cancellation import end_if_cancelled
from backburner.queue.deadline import OutOfTime, deadline
from backburner.queue.defaults import results_kept
from backburner.queue.settlement import check_told
from backburner.queue.stream import KEPT, stream_key
from backburner.redis.script import Script

logger = logging.getLogger("backburner.queue")

_INTERVAL: Final = 0.2
"""Seconds between two writes for one job."""
_TIMEOUT: Final = 3.0
"""Seconds for a write, a third of them for each reply; after that its events are lost. A job that ends waits for it."""
_REPORT: Final = Script.load("states", "report", package=__package__)

_attached: ContextVar[tuple[Any, Any] | None] = ContextVar("backburner_task", default=None)


def attach(task: Any, request: Any) -> None:
    """Make `task` the one that code in this context reports for, in whatever thread it runs."""
    _attached.set((task, request))


def progress(done: float, total: float, message: str = "") -> None:
    """Report how far the running task is. Call it as often as you like.

    About five calls a second are sent, and always the last one. Functions that report progress can be called from
    anywhere: nothing happens outside of a worker (a test, a shell, an eager task), in a task whose result is ignored,
    or with a result backend other than Redis or Valkey. A job that was cancelled, but cannot be ended from outside,
    ends here.
    """
    _report("progress", {"done": done, "total": total, "message": message})


def log(message: str, *, level: str = "info", **fields: Any) -> None:
    """Report a line to whoever follows the running task's events, in order with its progress. Values in `fields` that
    JSON cannot represent are sent as text.

    Does nothing where `progress` does nothing.
    """
    _report("log", {"message": message, "level": level, **fields})


def has_reports(job_id: str) -> bool:
    """Whether there are reports to `settle`."""
    return job_id in _reports


def settle(job_id: str) -> None:
    """Send what the job has reported, and wait for that, before its result is stored."""
    with _lock:
        report = _reports.pop(job_id, None)
    if report is not None:
        report.send()


def _report(kind: str, data: dict[str, Any]) -> None:
    task: Any
    request: Any
    task, request = _attached.get() or (celery.current_app.current_task, None)
    if task is None:
        return
    request = request or task.request
    if request.called_directly or request.is_eager or request.ignore_result:
        return
    end_if_cancelled(task, request)
    if not hasattr(task.backend, "listener"):
        return
    line = _encoded(data | {"kind": kind})
    if line is None:
        return
    with _lock:
        report = _reports.get(request.id)
        if report is None or report.request is not request:
            report = _reports[request.id] = _Report(task, request)
        report.add(kind, line)
        _sender.wake()


def _encoded(event: dict[str, Any]) -> bytes | None:
    """The event as JSON, as far as possible; ``None`` if it is impossible, which must not end a task."""
    with suppress(TypeError):
        return orjson.dumps(event, default=_plain)
    try:  # a lone surrogate, or an integer beyond 64 bits
        plain = json.loads(json.dumps(event, default=_plain), parse_constant=lambda _: None)  # NaN is null, as above
        return json.dumps(plain, ensure_ascii=False).encode(errors="replace")
    except Exception as error:  # noqa: BLE001  # whatever the objects in it raise
        logger.warning("an event cannot be told, for it is no JSON: %r", error)
        return None


def _plain(value: Any) -> float | str:
    return float(value) if hasattr(value, "__float__") else str(value)


class _Report:
    """What one job has reported and the server has not got yet."""

    def __init__(self, task: Any, request: Any) -> None:
        self.request = request
        self.due = 0.0
        self.waits = False
        self._task_name = task.name
        self._backend = task.backend
        self._lines: deque[tuple[str, bytes]] = deque(maxlen=KEPT)
        self._progress: bytes | None = None
        self._sending = Lock()

    def add(self, kind: str, line: bytes) -> None:
        if kind == "progress":
            self._progress = line
            if self._lines and self._lines[-1][0] == kind:
                self._lines.pop()
        self._lines.append((kind, line))
        self.waits = True

    def send(self) -> None:
        with self._sending:
            with _lock:
                lines, self._lines = self._lines, deque(maxlen=KEPT)
                self.waits, self.due = False, time.monotonic() + _INTERVAL
            if not lines:
                return
            try:
                with deadline(_TIMEOUT):
                    self._write(lines)
            except (OutOfTime, redis.RedisError, OSError) as error:
                logger.warning(
                    "%d events of %s[%s] are lost: %s",
                    len(lines), self._task_name, self.request.id, str(error) or "no answer",
                )  # fmt: skip
            except Exception:  # whatever it is, the thread has to go on, and the task must not end
                logger.exception("%d events of %s[%s] are lost", len(lines), self._task_name, self.request.id)

    def _write(self, lines: Iterable[tuple[str, bytes]]) -> None:
        backend, job_id = self._backend, self.request.id
        backend.starts.tell(job_id)
        meta = ""
        if self._progress is not None:
            progress = orjson.loads(self._progress)
            del progress["kind"]
            for name in ("done", "total"):
                if progress[name] is None:  # how JSON represents NaN and infinity
                    progress[name] = math.nan
            told = {"pid": os.getpid(), "hostname": self.request.hostname, "progress": progress}
            meta = backend.encode(
                backend._get_result_meta(told, states.STARTED, None, self.request)  # noqa: SLF001  # has no other name
                | {"task_id": job_id}
            )
        keys = [stream_key(backend, job_id), backend.get_key_for_task(job_id)]
        events, kept = [line for _, line in lines], results_kept(backend.app.conf)
        check_told(backend.client.eval(_REPORT.text, len(keys), *keys, KEPT, kept, meta, *events))


class _Sender:
    """The thread that sends reports, one per process that reports anything."""

    def __init__(self) -> None:
        self._pid = 0
        self._work = Condition(_lock)

    def wake(self) -> None:
        if self._pid != os.getpid():
            Thread(target=self._run, name="backburner-reporting", daemon=True).start()
            self._pid = os.getpid()  # if that was interrupted, there may be two threads, which do no harm
        self._work.notify()

    def _run(self) -> None:
        while True:
            with _lock:
                due = self._due()
            for report in due:
                report.send()

    def _due(self) -> list[_Report]:
        """What is to be sent now. Waits if there is nothing."""
        now = time.monotonic()
        for job_id, report in tuple(_reports.items()):
            if not report.waits and report.due <= now:
                del _reports[job_id]  # its job may have ended before it reported this
        waiting = [report for report in _reports.values() if report.waits]
        due = [report for report in waiting if report.due <= now]
        if not due:
            self._work.wait(min((report.due for report in waiting), default=now + 3600) - now)
        return due


_lock = Lock()
_reports: dict[str, _Report] = {}
_sender = _Sender()


def _after_fork() -> None:
    global _lock, _sender  # noqa: PLW0603  # a thread of the parent's may have held it
    _lock = Lock()
    _reports.clear()
    _sender = _Sender()


in_forked_child(_after_fork)
