"""The base class of all tasks of a `backburner.Celery`: awaitable enqueueing, and results of type `Job`.

Nothing is published here: the app's `Producer` does that, or Celery where the producer leaves it to Celery. A task
class that derives from plain ``celery.Task`` gets this class as a further base.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

import celery
from celery._state import _task_stack, get_current_worker_task  # type: ignore[attr-defined]  # the stubs leave it out
from kombu import serialization
from kombu.exceptions import EncodeError

from backburner.queue.arguments import Arguments
from backburner.queue.executor import in_thread
from backburner.queue.options import check, check_arguments
from backburner.queue.pool import bridge
from backburner.queue.producer import Producer, point_out, tell_enqueued
from backburner.queue.result import EagerJob, Job
from backburner.queue.sending import Call
from backburner.queue.template import blame

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
"""The type of a direct call: a coroutine, if the task's function is a coroutine function."""
T_co = TypeVar("T_co", covariant=True)
"""The type of its jobs' results."""

PING = "backburner.ping"

CallArguments = tuple[Any, ...] | list[Any] | dict[str, Any]
"""The arguments of one call, by position or by name."""


def ping() -> str:
    """Answer: shows that a worker is there and results arrive."""
    return "pong"


class Task(celery.Task[P, R_co], Generic[P, R_co, T_co]):
    """A Celery task that can also be enqueued from a coroutine."""

    abstract = True
    Request = "backburner.queue.cancellation:Request"
    arguments: Arguments | None = None
    """The parameters by annotation; ``None`` with ``typing=False`` and for tasks written as classes."""

    if TYPE_CHECKING:
        # Attributes of Celery's class, which the stubs leave out.
        _dump_pydantic_arguments: Callable[..., Call] | None

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
            """Call the function, here and now. Said here for those who have no stubs of Celery."""

        def delay(self, *args: P.args, **kwargs: P.kwargs) -> Job[T_co]:
            """Enqueue a job with these arguments."""

        def AsyncResult(self, task_id: str, **options: Any) -> Job[T_co]:  # noqa: N802  # Celery's name
            """The job with this id."""

    async def adelay(self, *args: P.args, **kwargs: P.kwargs) -> Job[T_co]:
        """``delay`` without blocking the event loop."""
        return await self.aapply_async(args, kwargs)

    def apply_async(  # type: ignore[override]  # all other options are passed on
        self, args: Any = None, kwargs: Any = None, task_id: str | None = None, **options: Any
    ) -> Job[T_co]:
        """Enqueue a job with Celery's options. A naive `eta` or `expires` is in the app's time zone (UTC by default).

        Raises:
            PublishError: the broker did not confirm the job within ``CELERY_PUBLISH_TIMEOUT``.
        """
        if task_id is not None:
            options["task_id"] = task_id
        self._settle(options, args, kwargs)
        args, kwargs = args or (), kwargs or {}
        jobs = self._publish([(args, kwargs)], options)
        if jobs is not None:
            return jobs[0]
        with self._blaming(args, kwargs, options):
            job: Any = bridge.block(partial(super().apply_async, args, kwargs, **options))
        if isinstance(job, EagerJob) and self.arguments is not None:
            job.decode(self.arguments)  # not in `apply`, whose results a canvas passes on as they are sent
        return cast("Job[T_co]", job)

    async def aapply_async(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Job[T_co]:
        """``apply_async`` without blocking the event loop. Jobs that are enqueued at the same time are sent together.

        Cancelling the caller does not cancel a job that is on its way.

        Raises:
            PublishError: the broker did not confirm the job within ``CELERY_PUBLISH_TIMEOUT``.
        """
        self._settle(options, args, kwargs)
        jobs = (
            await self._producer.apublish(self, [(args or (), cast("Any", kwargs or {}))], options)
            if self._is_ours
            else None
        )
        if jobs is not None:
            return jobs[0]
        with self._celery.publish_budget():
            [job] = await self._aside([(cast("Any", args), cast("Any", kwargs))], options)
        return job

    def delay_many(self, calls: Iterable[CallArguments], **options: Any) -> list[Job[T_co]]:
        """Enqueue a job for each of the `calls`, in their order, with few writes.

        Args:
            calls: for each job a tuple or list of positional arguments, or a dict of keyword arguments.
            options: as for `apply_async`, the same for all.

        Raises:
            TypeError: a call is of another type, or does not fit the task. Nothing was enqueued.
            PublishError: the broker did not confirm all jobs; ``CELERY_PUBLISH_TIMEOUT`` applies to each write. A note
                on the exception tells how many were enqueued before.
        """
        several = self._several(calls, options)
        jobs = self._publish(several, options) if self._is_ours else None
        return self._one_by_one(several, options) if jobs is None else jobs

    async def adelay_many(self, calls: Iterable[CallArguments], **options: Any) -> list[Job[T_co]]:
        """`delay_many` without blocking the event loop."""
        several = self._several(calls, options)
        jobs = await self._producer.apublish(self, several, options) if self._is_ours else None
        return await self._aside(several, options) if jobs is None else jobs

    def _publish(self, calls: Sequence[Call], options: dict[str, Any]) -> list[Job[T_co]] | None:
        if bridge.is_here():
            return bridge.wait_for(self._producer.apublish(self, calls, options))
        return self._producer.publish(self, calls, options)

    @property
    def _producer(self) -> Producer:
        producer: Producer = self._celery.producer
        return producer

    @property
    def _celery(self) -> Any:
        """The app, a `backburner.Celery`; its module imports this one, so the type cannot be named here."""
        return self.app

    @property
    def arguments_check(self) -> Callable[..., None] | None:
        """Celery's check of a call; ``None`` with ``typing=False``, and for tasks written as classes."""
        return getattr(self, "__header__", None) if self.typing else None

    @property
    def _is_ours(self) -> bool:
        """Whether enqueueing is done here: no subclass overrides it."""
        return type(self).apply_async is Task.apply_async

    def _several(self, calls: Iterable[CallArguments], options: dict[str, Any]) -> list[Call]:
        if "task_id" in options:
            raise TypeError("task_id names one job; give it to apply_async")
        self._settle(options)
        several: list[Call] = []
        for arguments in calls:
            try:
                several.append(_call(arguments))
            except TypeError as error:
                point_out(error, len(several))
                raise
        return several

    def _one_by_one(self, calls: Sequence[Call], options: Mapping[str, Any]) -> list[Job[T_co]]:
        if len(calls) > 1:
            self._check(calls, options)
        jobs: list[Job[T_co]] = []
        for args, kwargs in calls:
            try:
                jobs.append(self.apply_async(args, kwargs, **options))
            except Exception as error:
                tell_enqueued(error, len(jobs), len(calls))
                raise
        return jobs

    def _check(self, calls: Sequence[Call], options: Mapping[str, Any]) -> None:
        """Raise what Celery would raise for any of the calls, before one is enqueued."""
        serializer, dump = self._form(options)
        check_call = self.arguments_check
        for place, (args, kwargs) in enumerate(calls):
            try:
                if check_call is not None:
                    check_call(*args, **kwargs)
                with self._blaming(args, kwargs, options):
                    serialization.dumps(dump(args, kwargs) if dump else (args, kwargs), serializer)
            except (TypeError, EncodeError) as error:
                point_out(error, place)
                raise

    def _form(self, options: Mapping[str, Any]) -> tuple[str, Any]:
        """How arguments are sent: the serializer, and what makes of them what it takes."""
        serializer = options.get("serializer") or self.serializer or self.app.conf.task_serializer
        return serializer, None if serializer == "pickle" else self._dump_pydantic_arguments  # as Celery

    @contextmanager
    def _blaming(self, args: Any, kwargs: Any, options: Mapping[str, Any]) -> Iterator[None]:
        """Have an error in the block say which argument cannot be sent, as the producer's do."""
        try:
            yield
        except EncodeError as error:
            serializer, dump = self._form(options)
            sent_args, sent_kwargs = dump(args, kwargs) if dump else (args, kwargs)
            if not getattr(error, "__notes__", None):
                blame(error, self.name, sent_args, sent_kwargs, lambda value: serialization.dumps(value, serializer))
            raise

    async def _aside(self, calls: Sequence[Call], options: dict[str, Any]) -> list[Job[T_co]]:
        """Take Celery's own path, which blocks, in a thread in which the task running here counts as running, too."""
        parent: Any = self.app.current_worker_task
        request = None if parent is None else parent.request

        def enqueue() -> list[Job[T_co]]:
            if parent is None or get_current_worker_task() is parent:
                return self._one_by_one(calls, options)
            _task_stack.push(parent)
            parent.request_stack.push(request)
            try:
                return self._one_by_one(calls, options)
            finally:
                parent.request_stack.pop()
                _task_stack.pop()

        return await in_thread(enqueue)

    def _settle(self, options: dict[str, Any], args: Any = None, kwargs: Any = None) -> None:
        """Check a call as far as its form is concerned, and give naive times their zone."""
        check_arguments(self.name, args, kwargs)
        if not options:
            return
        check(options)
        for name in ("eta", "expires"):
            moment = options.get(name)
            if isinstance(moment, datetime) and moment.tzinfo is None:
                options[name] = moment.replace(tzinfo=self.app.timezone)

    def apply(self, *args: Any, **options: Any) -> Any:
        """Run the task here and now, with Celery's options."""
        result = super().apply(*args, **options)
        value: Any = result.result
        traceback: Any = result.traceback
        return EagerJob(result.id, value, result.state, traceback=traceback, name=result.name)


def _call(arguments: CallArguments) -> Call:
    if isinstance(arguments, tuple | list):
        return arguments or (), {}
    if isinstance(arguments, dict):
        return (), arguments
    raise TypeError(f"a call is a tuple or list of arguments, or a dict of them by name, not {arguments!r}")
