"""One run of one task in the asyncio pool: Celery's tracer in a greenlet or in a thread, its time limits, and its end.

Every job has a context of its own, in which its tracer, its coroutine and whatever that starts find the running task.
An outcome that is decided from outside (a time limit, a cancellation) is recorded at once, and nothing that the task
does afterwards changes it.
"""

import asyncio
import logging
import os
import sys
import threading
import traceback
from asyncio import CancelledError, TimerHandle
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from contextvars import Context, ContextVar
from time import monotonic
from typing import Any, Final, Protocol

from billiard.einfo import ExceptionInfo
from celery.exceptions import TaskRevokedError, WorkerShutdown, WorkerTerminate

from backburner.queue import loop as process_loop
from backburner.queue.loop import SoftTimeLimitExceeded
from backburner.queue.pool import bridge
from backburner.queue.pool.caught import failure
from backburner.queue.pool.threads import Threads

log = logging.getLogger("backburner.queue")

_PATIENCE: Final = 5.0
"""Seconds that a cancelled coroutine may take to end."""

running: ContextVar["Job | None"] = ContextVar("backburner_pool_job", default=None)
"""The job that this context belongs to."""

Callback = Callable[..., Any]


class Pool(Protocol):
    """The parts of its pool that a job needs."""

    loop: asyncio.AbstractEventLoop
    threads: Threads

    def aside(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a function that may wait for a server."""
        ...

    def interrupt(self, error: BaseException) -> None:
        """End the worker, because a signal handler has raised this exception."""
        ...

    def forget(self, job: "Job") -> None:
        """Drop a job that has not begun."""
        ...

    def done(self, job: "Job") -> None:
        """Note that the job has ended."""
        ...

    def wake(self) -> None:
        """Check whether there is something to do."""
        ...

    def recycle(self, why: str) -> None:
        """Have another process take this one's place."""
        ...


class Job:
    """The arguments of `TaskPool.on_apply`, and the state of the run.

    Args:
        trace: Celery's tracer, called with `args`, the first two of which are the task's name and the job's id.
        limits: soft and hard, in seconds.
    """

    def __init__(
        self,
        pool: Pool,
        trace: Callback,
        args: tuple[Any, ...],
        *,
        on_accepted: Callback | None,
        on_returned: Callback | None,
        on_failed: Callback | None,
        on_timeout: Callback | None,
        limits: tuple[float | None, float | None],
    ) -> None:
        self.name: str = args[0]
        self.id: str = args[1]
        self.over = False
        """Whether its outcome is decided."""
        self._pool = pool
        self._trace = trace
        self._args = args
        self._on_accepted = on_accepted
        self._on_returned = on_returned
        self._on_failed = on_failed
        self._on_timeout = on_timeout
        self._soft, self._hard = limits
        self._timers: list[TimerHandle] = []
        self._in_body = False
        self._body_has_ended = False
        self._soft_is_due = False
        self._abandoned = False

    def __str__(self) -> str:
        return f"{self.name}[{self.id}]"

    @property
    def keeps_the_worker(self) -> bool:
        """Whether a worker that is shutting down waits for it."""
        return True

    def start(self, context: Context) -> None:
        """Run, in a context of its own."""
        raise NotImplementedError

    def terminate(self, signal: Any = None) -> None:  # Celery's name
        """End the run; somebody else has recorded or will record the outcome. Does nothing if it has ended."""
        raise NotImplementedError

    def _begins(self) -> bool:
        """Report that it runs, and start its time limits. Returns whether it may run: another worker may have it by
        now."""
        try:
            if self._on_accepted is not None:
                self._on_accepted(os.getpid(), monotonic())
        except TaskRevokedError:
            self.over = True
        if self.over:
            return False
        loop = self._pool.loop
        if self._soft:
            self._timers.append(loop.call_later(self._soft, self._soft_limit))
        if self._hard:
            self._timers.append(loop.call_later(self._hard, self._hard_limit))
        return True

    def _soft_limit(self) -> None:
        raise NotImplementedError

    def _hard_limit(self) -> None:
        if self.over or self._body_has_ended:
            return
        self.over = True
        if self._on_timeout is not None:
            self._pool.aside(self._on_timeout, False, self._hard)
        self._stop()

    def _stop(self) -> None:
        raise NotImplementedError

    def _tell(self, outcome: Any, failed: ExceptionInfo | None) -> None:
        """Report how it ended, unless the outcome was decided elsewhere."""
        if self.over:
            return
        self.over = True
        if failed is not None:
            if self._on_failed is not None:
                self._on_failed(failed)
        elif self._on_returned is not None:
            self._on_returned(outcome)

    def _done(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._pool.done(self)


class CoroutineJob(Job):
    """A job whose task is a coroutine function."""

    _task: "asyncio.Task[None] | None" = None

    def start(self, context: Context) -> None:
        self._task = self._pool.loop.create_task(self._run(), name=str(self), context=context)
        self._task.add_done_callback(self._task_done)

    def complete(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run the task's own coroutine, in the greenlet of its tracer.

        Raises:
            RuntimeError: it raised something that is not an `Exception`, such as SystemExit.
            asyncio.CancelledError: it was ended from outside.
        """
        self._in_body = True
        try:
            result = bridge.wait_for(coroutine)
        except (WorkerShutdown, WorkerTerminate):
            raise  # raised by a signal handler, which happened to run here
        except Exception:
            if self.over:
                raise CancelledError from None
            raise
        except BaseException as error:
            if self.over:
                raise CancelledError from None
            raise RuntimeError(f"{self.name} raised {error!r}, which ends the job and not the worker") from error
        finally:
            self._in_body, self._body_has_ended = False, True
        if self.over:
            raise CancelledError
        return result

    def terminate(self, signal: Any = None) -> None:  # noqa: ARG002  # Celery's name
        if not (self.over or self._body_has_ended):
            self.over = True
            self._stop()

    async def _run(self) -> None:
        running.set(self)
        process_loop.identify(self)
        await bridge.cross(self._execute, translate=self._translate)

    def _execute(self) -> None:
        if not self._begins():
            return
        try:
            outcome = self._trace(*self._args)
        except (WorkerShutdown, WorkerTerminate) as error:
            self._pool.interrupt(error)
        except BaseException as error:  # noqa: BLE001  # it must not end the loop
            self._tell(None, failure(self.name, error))
        else:
            self._tell(outcome, None)

    def _translate(self, error: BaseException) -> BaseException:
        if not isinstance(error, CancelledError):
            return error
        if self._abandoned:
            return bridge.Abandoned()
        if self._soft_is_due and not self.over:
            self._soft_is_due = False
            if self._task is not None:
                self._task.uncancel()
            return SoftTimeLimitExceeded(self._soft)
        return error

    def _soft_limit(self) -> None:
        if self._in_body and not self.over and self._task is not None:
            self._soft_is_due = True
            if self._on_timeout is not None:
                self._on_timeout(True, self._soft)
            self._task.cancel()

    def _stop(self) -> None:
        if self._task is None:
            self._pool.forget(self)
        else:
            self._task.cancel()
            self._timers.append(self._pool.loop.call_later(_PATIENCE, self._abandon))

    def _abandon(self) -> None:
        log.error("%s goes on %g s after it was cancelled; nobody waits for it any more", self, _PATIENCE)
        self._abandoned = True
        if self._task is not None:
            self._task.cancel()
        # It may now wait for something else that never ends, and then it stays. Its place is free all the same.
        self._timers.append(self._pool.loop.call_later(0.1, self._done))

    def _task_done(self, task: "asyncio.Task[None]") -> None:
        # The task's context holds this job. Without a reference back, both are freed at once, without the garbage
        # collector.
        self._task, self._body_has_ended = None, True
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s could not be run", self, exc_info=error)
        if not self.over:
            # It was cancelled before it began, or something went wrong around it.
            self._tell_aside(task)
        self._done()

    def _tell_aside(self, task: "asyncio.Task[None]") -> None:
        error = CancelledError() if task.cancelled() else task.exception() or RuntimeError("it ended without outcome")
        self._pool.aside(self._tell, None, failure(self.name, error))


class ThreadJob(Job):
    """A job whose task is a plain function."""

    _thread: threading.Thread | None = None
    _is_waiting = True

    def start(self, context: Context) -> None:
        self._pool.threads.call(lambda: context.run(self._run))

    def terminate(self, signal: Any = None) -> None:  # noqa: ARG002  # Celery's name
        if not (self.over or self._is_waiting):
            log.warning("%s runs in a thread: it ends where it next reports progress, or by itself", self)
        self.over = True
        self._pool.wake()

    @property
    def keeps_the_worker(self) -> bool:
        return not self.over

    def _run(self) -> None:
        self._is_waiting = False
        self._thread = threading.current_thread()
        running.set(self)
        process_loop.identify(self)
        # Celery's books are kept in the loop's thread.
        begins: Future[bool] = Future()
        self._call(lambda: begins.set_result(not self.over and self._begins()))
        if not begins.result():
            self._call(self._done)
            return
        outcome, failed = None, None
        try:
            outcome = self._trace(*self._args)
        except BaseException as error:  # noqa: BLE001  # it must not end the thread
            failed = failure(self.name, error)
        self._thread = None
        self._call(self._ended, outcome, failed)

    def _ended(self, outcome: Any, failed: ExceptionInfo | None) -> None:
        try:
            if failed is None and not outcome[0]:
                self._tell(outcome, None)
            elif not self.over:
                self._pool.aside(self._tell, outcome, failed)
        finally:
            self._done()

    def _soft_limit(self) -> None:
        if not self.over and self._on_timeout is not None:
            self._on_timeout(True, self._soft)

    def _stop(self) -> None:
        frame = sys._current_frames().get((self._thread and self._thread.ident) or 0)  # noqa: SLF001  # its only name
        stack = "".join(traceback.format_stack(frame)) if frame else ""
        log.error("%s runs in a thread, which nothing can end. It is at\n%s", self, stack)
        self._pool.threads.lose_one()
        self._pool.recycle(f"a thread hangs in {self}")
        self._done()

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed because the process is ending, and this thread with it
            self._pool.loop.call_soon_threadsafe(function, *args)
