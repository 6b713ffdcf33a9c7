"""The base class of all tasks of a `backburner.Celery`: awaitable enqueueing, and results that are `Job`.

Nothing here publishes; `Celery.send_task` does. A task whose own base is a plain ``celery.Task`` gets this
one behind it.
"""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

import celery

from backburner.queue.result import EagerJob, Job

if TYPE_CHECKING:
    from backburner.queue.app import Celery

PING = "backburner.ping"


def ping() -> str:
    """Answer: shows that a worker is there and results arrive."""
    return "pong"


class Task(celery.Task[..., Any]):
    """A Celery task that can also be enqueued from a coroutine."""

    abstract = True

    async def adelay(self, *args: Any, **kwargs: Any) -> Job:
        """``delay`` without blocking the event loop."""
        return await self.aapply_async(args, kwargs)

    async def aapply_async(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Job:
        """``apply_async`` without blocking the event loop.

        Cancelling the caller does not take back a job that is on its way.

        Raises:
            PublishError: the broker did not take the job within ``CELERY_PUBLISH_TIMEOUT``.
        """
        parent = self.app.current_worker_task
        if parent is not None:
            # The thread does not see the task that runs in this one.
            options.setdefault("parent_id", parent.request.id)
            options.setdefault("root_id", parent.request.root_id or parent.request.id)
        with cast("Celery", self.app).publish_budget():
            return await asyncio.to_thread(self.apply_async, args, kwargs, **options)

    def apply_async(  # type: ignore[override]  # all other options are passed on
        self, args: Any = None, kwargs: Any = None, **options: Any
    ) -> Any:
        """Enqueue, with Celery's options. A naive `eta` or `expires` is in the app's time zone (UTC)."""
        for name in ("eta", "expires"):
            moment = options.get(name)
            if isinstance(moment, datetime) and moment.tzinfo is None:
                options[name] = moment.replace(tzinfo=self.app.timezone)
        return super().apply_async(args, kwargs, **options)

    def apply(self, *args: Any, **options: Any) -> Any:
        """Run here and now, with Celery's options."""
        result = super().apply(*args, **options)
        value: Any = result.result
        traceback: Any = result.traceback
        return EagerJob(result.id, value, result.state, traceback=traceback, name=result.name)
