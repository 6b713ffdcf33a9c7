"""Cancelling a job, whether it waits in the queue, is delayed, or runs.

Workers are told by Celery's revoke. What that lacks is added: a delayed job is removed from the server; the ids are
kept on the server, so that a worker that starts later, or was away just then, knows them; and thread pools can end a
coroutine, where Celery can only end processes. A ``def`` function in a thread cannot be ended from outside: it ends
where it next reports progress or logs. In the pool ``solo`` a worker cannot be told anything while it works.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from threading import RLock
from typing import Any, cast

import celery.exceptions
import redis
from celery import bootsteps
from celery.backends.redis import RedisBackend
from celery.concurrency.base import BasePool
from celery.worker import state
from celery.worker.consumer.connection import Connection

from backburner.queue import recording
from backburner.queue.deadline import OutOfTime, deadline
from backburner.queue.defaults import results_kept
from backburner.queue.keys import keys_of

log = logging.getLogger("backburner.queue")

_TIMEOUT = 2.0

_running: dict[str, Callable[[], object]] = {}
"""By job, the functions that cancel the coroutines running in this process."""


def cancel(app: celery.Celery, job_id: str) -> None:
    """Remove the job if it is delayed. Tell all workers, present and future, not to run it, or to end it."""
    with app.producer_or_acquire() as producer:
        cancel_delayed = getattr(producer.channel, "cancel_delayed", None)
        if cancel_delayed is not None:  # with this broker, delayed jobs are kept on the server
            cancel_delayed(job_id)
    if isinstance(app.backend, RedisBackend):
        cancelled, now = keys_of(app.backend).cancelled, time.time()
        with app.backend.client.pipeline(transaction=False) as pipeline:
            pipeline.zremrangebyscore(cancelled, 0, now)
            pipeline.zadd(cancelled, {job_id: now + results_kept(app.conf)})
            pipeline.execute()
    app.control.revoke(job_id, terminate=True)
    if app.backend.get_state(job_id) in {"PENDING", "RETRY"}:
        # Workers do this too, but there may be none.
        app.backend.mark_as_revoked(job_id, "cancelled")


def end_if_cancelled(task: Any, request: Any) -> None:
    """End the task that runs here if its job was cancelled.

    Raises:
        celery.exceptions.Ignore: it was.
    """
    if request.id in state.revoked:
        task.backend.mark_as_revoked(request.id, "cancelled", request)
        raise celery.exceptions.Ignore


async def cancellable(job_id: str, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a task's coroutine so that cancelling the job ends it.

    Raises:
        celery.exceptions.Ignore: it was cancelled, which has already been recorded.
    """
    loop, task = asyncio.get_running_loop(), cast("asyncio.Task[Any]", asyncio.current_task())
    end = _running[job_id] = lambda: loop.call_soon_threadsafe(task.cancel)
    try:
        return await coroutine
    except asyncio.CancelledError:
        if job_id in state.revoked:
            raise celery.exceptions.Ignore from None
        raise
    finally:
        if _running.get(job_id) is end:  # a retry may have begun while this run still cleans up
            del _running[job_id]


_settling = RLock()


class Request(recording.Request):
    """A task request that can be terminated in every pool, and is settled once: the thread whose job ends by being
    cancelled does so just when the thread that cancels does, and a message settled twice would end the worker."""

    def acknowledge(self) -> None:
        """Acknowledge the message, unless that was done."""
        with _settling:
            super().acknowledge()

    def reject(self, requeue: bool = False) -> None:
        """Reject it, likewise."""
        with _settling:
            super().reject(requeue)

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """End the job if it is running."""
        if not self.time_start or getattr(pool.terminate_job, "__func__", None) is not BasePool.terminate_job:
            super().terminate(pool, signal)
        elif end := _running.get(self.id):
            end()
            self._announce_revoked("terminated", True, signal, False)  # type: ignore[attr-defined]  # the stubs leave it out


class Remembered(bootsteps.StartStopStep):
    """A bootstep that tells a connecting worker which jobs have been cancelled."""

    requires = (Connection,)

    def start(self, parent: Any) -> None:
        """Read their ids. A server that does not answer is logged, and that is all."""
        app = parent.app
        state.revoked.expires = max(state.revoked.expires, results_kept(app.conf))
        if not isinstance(app.backend, RedisBackend):
            return
        try:
            with deadline(_TIMEOUT):
                cancelled = app.backend.client.zrangebyscore(keys_of(app.backend).cancelled, time.time(), "+inf")
                state.revoked.update(map(bytes.decode, cancelled))
        except (OutOfTime, redis.RedisError, OSError) as error:
            log.warning("which jobs have been cancelled could not be read: %s", str(error) or "no answer")
