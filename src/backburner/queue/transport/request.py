"""Celery's task request, for messages that are leased.

It checks that the lease holds just before the task begins: the process may have been suspended, and its messages given
to others. It acknowledges as soon as the task ends, where Celery waits until its event loop comes round; in a solo
worker, that is after all jobs that came along. When a worker is told to stop, messages that have not begun are given
back at once and can no longer begin. And the transport is told when a pool process died of a message, which Celery
returns to the queue (`task_reject_on_worker_lost`) like any other rejected one.
"""

import logging
from typing import Any

from billiard.einfo import ExceptionWithTraceback  # type: ignore[attr-defined]  # the stubs leave it out
from billiard.exceptions import WorkerLostError
from celery.concurrency.base import BasePool
from celery.exceptions import TaskRevokedError
from celery.worker import state

from backburner.queue.carrying import OFFER, Carried
from backburner.queue.transport import worker
from backburner.queue.transport.consumer import offer_for

log = logging.getLogger("backburner.queue")


def leased(request: type[Any]) -> type[Any]:
    """A request class that takes care of its message's lease."""
    return request if issubclass(request, _Leased) else type(request.__name__, (_Leased, request), {})


class _Leased:
    id: str
    name: str
    message: Any
    acknowledged: bool
    ignore_result: bool
    task: Any
    _apply_result: Any
    reject: Any
    _request_dict: dict[str, Any]

    def __init__(self, message: Any, *, body: Any = None, decoded: bool = False, **options: Any) -> None:
        if not decoded and not worker.starts_elsewhere():
            # Celery decodes it here already, and where it runs once more, for that is in another process.
            body, decoded = message.payload, True
        # Of the class this stands before.
        super().__init__(message, body=body, decoded=decoded, **options)  # type: ignore[call-arg]
        if worker.starts_elsewhere() and self.task.acks_late and not self.ignore_result:
            self._request_dict[OFFER] = offer_for(message.delivery_tag)
        if (eta := self._request_dict.pop("backburner_eta", None)) is not None:
            # The worker need not wait for it, but the task may want to know.
            self._request_dict["eta"] = eta

    def acknowledge(self) -> None:
        """Acknowledge in the current thread, together with the result, if that was carried along."""
        if self.acknowledged:
            return
        carried = self._carried()
        if carried is not None and carried.state is None:
            self.message.forget()
        elif carried is not None and not self.task.backend.store_carried(carried.state):
            self.message.unrecorded = "the result could not be stored"
            self.reject(requeue=True)  # the job must run again
            return
        done = getattr(self.message, "done", None)
        if done is not None and done() and worker.needs_no_acknowledgement():
            self.acknowledged = True
        else:
            super().acknowledge()  # type: ignore[misc]  # of the class this stands before

    def _carried(self) -> Carried | None:
        """The result that a pool process has carried here, or has stored itself."""
        if self._request_dict.get(OFFER) is None:
            return None
        ended = self._apply_result and self._apply_result()
        if ended is None or not ended.ready() or not ended.successful():
            return None
        _, value, _ = ended.get()
        return value if isinstance(value, Carried) else None

    def revoked(self) -> bool:
        """Whether the task must not be run; called before it goes to the pool, and maybe when it arrives."""
        if not worker.starts_elsewhere() or self not in state.reserved_requests:
            return bool(super().revoked())  # type: ignore[misc]  # of the class this stands before
        return not self._begins() or bool(super().revoked())  # type: ignore[misc]  # as above

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """Begin, as Celery does.

        Raises:
            TaskRevokedError: the message was given back, or another worker may have it by now.
        """
        if not worker.starts_elsewhere() and not self._begins():
            raise TaskRevokedError(self.id)
        super().on_accepted(pid, time_accepted)  # type: ignore[misc]  # as above

    def cancel(self, pool: Any, *args: Any, **kwargs: Any) -> None:
        """End the job in a cold shutdown, if that is possible. Otherwise the worker ends when the job has."""
        if getattr(pool.terminate_job, "__func__", None) is BasePool.terminate_job:
            log.warning("%s[%s] runs in a thread, which nobody can end: the worker waits for it", self.name, self.id)
        else:
            super().cancel(pool, *args, **kwargs)  # type: ignore[misc]  # as above

    def _begins(self) -> bool:
        begins = getattr(self.message, "begin", None)
        if begins is None or begins():
            return True
        state.task_ready(self)
        return False

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        """Handle the failure as Celery does."""
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        # The latter two are what a process that exits reports itself.
        if isinstance(error, WorkerLostError | SystemExit | KeyboardInterrupt):
            self.message.killed = True
        return super().on_failure(exc_info, *args, **kwargs)  # type: ignore[misc]  # of the class this stands before
