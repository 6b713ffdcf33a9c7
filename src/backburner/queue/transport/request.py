"""Celery's request of a task, telling the transport when a pool's process died of it.

Celery puts such a message back into the queue (`task_reject_on_worker_lost`) like any other that is rejected, and so
does this. But the transport counts.
"""

from typing import Any

from billiard.einfo import ExceptionWithTraceback  # type: ignore[attr-defined]  # the stubs leave it out
from billiard.exceptions import WorkerLostError


def counting(request: type[Any]) -> type[Any]:
    """The class of requests, made to tell its message when a process was lost."""
    return request if issubclass(request, _Counting) else type(request.__name__, (_Counting, request), {})


class _Counting:
    message: Any

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        """Handle the failure as Celery does."""
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        # The latter two are what a process that exits reports itself.
        if isinstance(error, WorkerLostError | SystemExit | KeyboardInterrupt):
            self.message.killed = True
        return super().on_failure(exc_info, *args, **kwargs)  # type: ignore[misc]  # of the class this stands before
