"""`Job`, a job's truthful state, its progress and its result; `JobGroup`, several jobs.

Celery's states are kept, and one is added: UNKNOWN for an id that nobody enqueued, where Celery says PENDING. The
difference is known from the record that the producer leaves on the broker's server. With a broker that keeps none
(``amqp://``), such an id stays PENDING. Conversely, a job that a stock Celery program enqueued has no record, and is
UNKNOWN until a worker starts it.
"""

import asyncio
import math
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast

import celery.exceptions
import celery.result
import click
from celery import states
from vine import promise

from backburner.errors import JobFailed, QueueError, ResultTimeout, ResultUnavailable, UnknownJob
from backburner.queue import cancellation, stream
from backburner.queue.arguments import Arguments
from backburner.queue.deadline import check_seconds, deadline
from backburner.queue.executor import in_thread
from backburner.queue.job_record import NOTHING_KNOWN, JobRecord
from backburner.queue.outcome import outcome
from backburner.queue.pool import bridge
from backburner.queue.publishing import FOREIGN, job_record

T_co = TypeVar("T_co", covariant=True)

UNKNOWN = "UNKNOWN"

_READ_TIMEOUT = 2.0
"""Seconds that reading a state may take, whatever is wrong with the servers."""


_GRACE = 0.25
"""Seconds beyond its timeout that ``get`` may take to read a result that is already there."""


class JobTimeout(ResultTimeout, celery.exceptions.TimeoutError):
    """A `ResultTimeout` that code written for Celery also catches."""


class ResultUnread(JobTimeout, ResultUnavailable):
    """The time is up, and the job's state could not be read within it."""


class JobUnknown(click.ClickException, UnknownJob):
    """An `UnknownJob` that ``celery result`` says in one line."""

    @classmethod
    def named(cls, job_id: str) -> Self:
        return cls(f"no job {job_id} was ever enqueued, or its record has expired (CELERY_RESULT_EXPIRES)")


class ResultIgnored(QueueError):
    """Nothing is told of a job whose result is ignored, not even that it has ended."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a running job reports to be."""

    done: float
    total: float
    message: str = ""


@dataclass(frozen=True, slots=True)
class JobSnapshot:
    """The state of a job at one moment."""

    id: str
    state: str
    """PENDING, STARTED, RETRY, SUCCESS, FAILURE or REVOKED."""
    name: str | None = None
    """The task's name; ``None`` if a stock Celery program enqueued the job."""
    progress: Progress | None = None
    """While the state is STARTED, if the task reports any."""
    result: Any = None
    """What the task returned, once the state is SUCCESS."""
    error: str | None = None
    """Type and message of the exception, if the state is FAILURE, RETRY or REVOKED."""
    traceback: str | None = None
    enqueued_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def ready(self) -> bool:
        """Whether the state is final."""
        return self.state in states.READY_STATES


class _Snapshots(celery.result.AsyncResult[Any]):
    """Snapshots, blocking and awaited, for both kinds of job below."""

    if TYPE_CHECKING:  # the stubs leave them out
        _cache: dict[str, Any] | None
        _maybe_set_cache: Callable[[dict[str, Any] | None], None]
        maybe_throw: Callable[..., Any]
        _maybe_reraise_parent_error: Callable[[], None]

    def snapshot(self) -> JobSnapshot:
        """Read everything about the job at once.

        Raises:
            UnknownJob: nobody enqueued a job with this id, or so long ago that its record has expired.
            ResultUnavailable: the result backend or the broker does not answer.
        """
        with reading(self.id):
            meta: dict[str, Any] = self._get_task_meta()  # type: ignore[attr-defined]  # the stubs leave it out
            try:
                record = self._record()
            except FOREIGN:
                if meta["status"] == states.PENDING:
                    raise
                record = NOTHING_KNOWN  # only the task's name and the time of enqueueing are missing then
        if meta["status"] == states.PENDING and record is None:
            raise JobUnknown.named(self.id)
        return _snapshot(self.id, meta, record or NOTHING_KNOWN)

    async def asnapshot(self) -> JobSnapshot:
        """`snapshot` without blocking the event loop."""
        return await in_thread(self.snapshot, purpose="read")

    def _record(self) -> JobRecord | None:
        return NOTHING_KNOWN


class RemoteTraceback(Exception):
    """The traceback of a job's exception in the worker, chained as the cause of the exception raised to the waiter."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class Job(_Snapshots, Generic[T_co]):
    """A job that was enqueued: a ``celery.result.AsyncResult``, with a truthful state.

    Any property that reads the result backend raises `ResultUnavailable` after two seconds if it does not
    answer.
    """

    enqueued = False
    """Whether this process enqueued the job, so that it is known to exist."""

    def __init__(
        self,
        id: str,  # noqa: A002  # Celery's name
        backend: Any = None,
        task_name: Any = None,  # noqa: ARG002  # as above
        app: Any = None,
        parent: Any = None,
    ) -> None:
        # As Celery's, except for the promise, which most jobs never need, and which costs as much as the message.
        if not id:
            raise ValueError(f"a job needs an id, not {id!r}")
        self.id = id
        self.app = app or self.app
        self.backend = backend or self.app.backend
        self.parent = parent
        self._cache = None
        self._ignored = False

    @cached_property
    def on_ready(self) -> Any:  # type: ignore[override]  # the stubs have an attribute
        """Celery's promise, on which callbacks for the end of the job are registered."""
        return promise(self._on_fulfilled, weak=True)  # type: ignore[attr-defined]  # the stubs leave it out

    arguments: Arguments | None = None
    """The task's, if known; they convert the stored result into what the task returned."""

    def get(self, timeout: float | None = None, **options: Any) -> T_co:  # type: ignore[override]  # the rest is passed on
        """Wait for the result, as Celery's ``get``. The job's own exception is raised if it failed.

        While the result backend is away, waiting goes on: it may come back before `timeout` seconds are over.

        Raises:
            ResultTimeout: the job has not finished within `timeout` seconds. It is also a
                ``celery.exceptions.TimeoutError``, and a `ResultUnavailable` if the result backend is away at that
                moment.
            UnknownJob: nobody enqueued a job with this id.
            ResultUnavailable: what has become of it cannot be read.
            JobFailed: the job failed with an exception that cannot be made again in this process.
        """
        check_seconds(timeout=timeout)
        if bridge.is_here():
            return self._get_on_loop(timeout, **options)
        try:
            if timeout is None:
                self._check_known()
                return cast("T_co", super().get(**options))
            timeout = max(0.0, timeout)
            ends = time.monotonic() + timeout
            with deadline(timeout + _GRACE):
                self._check_known()
                return cast("T_co", super().get(max(0.0, ends - time.monotonic()), **options))
        except celery.exceptions.TimeoutError as error:
            if timeout is None or self._cache is not None:
                raise  # the job's own failure
            raise self._timeout(timeout) from error

    def _get_on_loop(
        self, timeout: float | None, *, propagate: bool = True, disable_sync_subtasks: bool = True, **options: Any
    ) -> T_co:
        """`get` in a job of the asyncio pool, which must not keep the loop waiting."""
        if disable_sync_subtasks:
            celery.result.assert_will_not_block()  # type: ignore[attr-defined]  # the stubs leave it out
        if options:  # their callbacks may block
            return bridge.in_thread(
                partial(self.get, timeout, propagate=propagate, disable_sync_subtasks=False, **options)
            )
        return bridge.wait_for(self.aget(timeout, propagate=propagate))

    async def aget(self, timeout: float | None = None, *, propagate: bool = True) -> T_co:  # noqa: ASYNC109  # as `get`
        """`get` for an event loop. All waiters of a process share one connection, and none polls."""
        check_seconds(timeout=timeout)
        if self.ignored:
            return cast("T_co", None)
        if not hasattr(self.backend, "listener"):
            return await asyncio.to_thread(self.get, timeout, propagate=propagate)
        timeout = None if timeout is None else max(0.0, timeout)
        ends = math.inf if timeout is None else time.monotonic() + timeout
        if self._needs_check() or (timeout is not None and timeout < _GRACE and self._cache is None):
            with deadline(ends + _GRACE - time.monotonic()):
                await in_thread(self._look, purpose="read")
            if self.ignored:
                return cast("T_co", None)
        if self._cache is None:
            try:
                async with asyncio.timeout(None if timeout is None else ends - time.monotonic()) as patience:
                    await self._ended(propagate=propagate)
            except TimeoutError:
                if not patience.expired():
                    raise
                raise self._timeout(timeout) from None
        if propagate and self.parent is not None and (self._cache or {}).get("status") in states.PROPAGATE_STATES:
            with deadline(ends + _GRACE - time.monotonic()):
                # As in `get`, an exception that a job before it raised says more than its own `ChordError`.
                await in_thread(self._maybe_reraise_parent_error, purpose="read")
        return cast("T_co", self.maybe_throw(propagate=propagate))

    async def _ended(self, *, propagate: bool) -> None:
        """Wait until the job has ended, or will never begin because one before it failed; that failure is raised, as by
        `get`."""
        if self.parent is None or not propagate:
            self._maybe_set_cache(await outcome(self.backend, self.id))
            return
        own = asyncio.create_task(outcome(self.backend, self.id))
        before = asyncio.create_task(_all_succeed(self._ancestors()))
        before.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # it is no loss if nobody asks
        try:
            await asyncio.wait({own, before}, return_when=asyncio.FIRST_COMPLETED)
            if before.done():
                before.result()
            self._maybe_set_cache(await own)
        finally:
            own.cancel()
            before.cancel()
            await asyncio.wait({own, before})  # a loop that closes complains of tasks that fail meanwhile

    def _ancestors(self) -> "Iterator[Job[Any]]":
        node: Any = self.parent
        while node is not None:
            yield from _jobs(node)
            node = node.parent

    async def astatus(self) -> str:
        """`status` without blocking the event loop."""
        return await in_thread(lambda: self.state, purpose="read")

    def cancel(self) -> None:
        """Cancel the job: one that waits is REVOKED at once; one that runs is ended if its pool is able to.

        Pools can end processes and coroutines; a ``def`` function in a thread ends where it next reports progress.
        Waiting for the job then raises ``celery.exceptions.TaskRevokedError``. A job that has ended stays as it is.

        Raises:
            ResultUnavailable: the result backend, or the broker, does not answer.
        """
        with reading(self.id):
            cancellation.cancel(self.app, self.id)

    async def acancel(self) -> None:
        """`cancel` without blocking the event loop."""
        await in_thread(self.cancel, purpose="read")

    async def aevents(self, after: str = stream.BEGINNING) -> AsyncGenerator[stream.JobEvent]:
        """What the job reports (`progress`, `log`) after the event with this id, and its changes of state, ending with
        the final one. Needs a result backend in Redis or Valkey.

        Raises:
            UnknownJob: nobody enqueued a job with this id.
            QueueError: its result is ignored, and so are its events.
            ResultUnavailable: what has become of it cannot be read.
            ValueError: `after` is not the id of an event.
        """
        if not stream.is_place(after):
            raise ValueError(f"after={after!r} is no event's id; those are like '1700000000000-0'")
        if self.ignored or self._needs_check():
            with suppress(ResultUnavailable):  # as where it is waited for
                await in_thread(self.check_events, purpose="read")
        async with aclosing(stream.follow(self.backend, self.id, after)) as events:
            async for event in events:
                yield event

    def check_events(self) -> None:
        """Check that the job has events, or at least a final state.

        Raises:
            UnknownJob: nobody enqueued a job with this id.
            QueueError: its result is ignored, and so are its events.
            ResultUnavailable: the result backend, or the broker, does not answer.
        """
        with reading(self.id):
            if self._get_task_meta()["status"] != states.PENDING:
                return
            self._look_at_record()
        if self.ignored:
            raise ResultIgnored(
                f"the job {self.id} cannot be followed: with ignore_result, a task tells nothing, not even that it has "
                "ended. Enqueue it with ignore_result=False"
            )

    def _set_cache(self, meta: dict[str, Any]) -> dict[str, Any]:
        if self.arguments is not None and meta["status"] == states.SUCCESS:
            meta = meta | {"result": self.arguments.decode_result(meta["result"])}
        return super()._set_cache(meta)  # type: ignore[misc, no-any-return]  # the stubs leave it out

    def throw(self, error: BaseException, traceback: Any = None) -> None:
        """Raise the job's exception."""
        text = (self._cache or {}).get("traceback")
        if not _exists_here(type(error)):
            error = JobFailed(f"the job {self.id} failed: {type(error).__name__}: {error}")
        if text and error.__cause__ is None:
            error.__cause__ = RemoteTraceback(text)
        super().throw(error, traceback)

    def _timeout(self, seconds: float | None) -> JobTimeout:
        listener = getattr(self.backend, "listener", None)
        if listener is not None and listener.trouble is not None:
            return ResultUnread(
                f"whether the job {self.id} finished could not be read within {seconds:g} s ({listener.trouble}). "
                "The job is not affected. Check the result backend (CELERY_RESULT_BACKEND or REDIS_URL)"
            )
        return JobTimeout(f"the job {self.id} did not finish within {seconds:g} s; it may still do so")

    def _needs_check(self) -> bool:
        # A job that a canvas enqueues later gets its record later; it has a parent, or this process enqueued it.
        return not self.enqueued and self.parent is None and self._cache is None

    def _check_known(self) -> None:
        if self._needs_check():
            self._look()

    def _look(self) -> None:
        # Waiting goes on while the servers are away, so this must, too.
        with suppress(ResultUnavailable), reading(self.id):
            if self._get_task_meta()["status"] == states.PENDING and self._needs_check():
                self._look_at_record()

    def _look_at_record(self) -> None:
        record = self._record()
        if record is None and self._needs_check():
            raise JobUnknown.named(self.id)
        self.ignored = self.ignored or (record is not None and record.ignored)

    @property
    def state(self) -> str:  # type: ignore[override]  # one more state than Celery has
        """One of Celery's states, or UNKNOWN."""
        with reading(self.id):
            state: str = self._get_task_meta()["status"]
            return UNKNOWN if state == states.PENDING and self._record() is None else state

    status = state  # type: ignore[assignment]  # as above

    def _record(self) -> JobRecord | None:
        return job_record(self.app, self.id)

    def _get_task_meta(self) -> dict[str, Any]:
        with reading(self.id):
            return super()._get_task_meta()  # type: ignore[no-any-return,misc]  # the stubs leave it out


class EagerJob(celery.result.EagerResult[Any], _Snapshots):
    """A job that ran on the spot (``task_always_eager``, ``task.apply``)."""

    if TYPE_CHECKING:
        _result: Any

    def decode(self, arguments: Arguments) -> None:
        """Convert the stored result into what the task returned."""
        if self.state == states.SUCCESS:
            self._result = arguments.decode_result(self._result)

    async def aget(self, timeout: float | None = None, *, propagate: bool = True) -> Any:  # noqa: ARG002, ASYNC109
        """Its result, or its exception raised, as by `Job.aget`."""
        return self.get(propagate=propagate, disable_sync_subtasks=False)

    async def astatus(self) -> str:
        """Its state."""
        return self.state

    async def aevents(self, after: str = stream.BEGINNING) -> AsyncGenerator[stream.JobEvent]:
        """Its final state, as from `Job.aevents`; its reports went to nobody."""
        yield stream.JobEvent(after, "state", {"state": self.state})

    def cancel(self) -> None:
        """Do nothing: the job has ended."""

    async def acancel(self) -> None:
        """Do nothing: the job has ended."""


class JobGroup(Generic[T_co]):
    """Several jobs, awaited together with one timeout: ``await JobGroup(jobs).aget(timeout=10)``."""

    def __init__(self, jobs: Iterable[Job[T_co]]) -> None:
        self.jobs = tuple(jobs)

    async def aget(self, timeout: float | None = None, *, propagate: bool = True) -> list[T_co]:  # noqa: ASYNC109  # as `get`
        """The results, in the order of the jobs. The first failure is raised at once, while the other jobs go on; with
        ``propagate=False``, exceptions are returned in place of results.

        Raises:
            ResultTimeout: not all jobs have finished within `timeout` seconds.
        """
        check_seconds(timeout=timeout)
        try:
            async with asyncio.timeout(timeout) as patience, _waiting() as waiting:
                results = [waiting.create_task(job.aget(propagate=propagate)) for job in self.jobs]
        except TimeoutError:
            if not patience.expired():
                raise
            ready = sum(result.done() and not result.cancelled() for result in results)
            raise JobTimeout(
                f"{ready} of {len(results)} jobs finished within {timeout:g} s; the others may still do so"
            ) from None
        return [result.result() for result in results]

    async def acancel(self) -> None:
        """Cancel them all."""
        await asyncio.gather(*(job.acancel() for job in self.jobs))


def _jobs(node: Any) -> Iterator[Job[Any]]:
    """A job, or those of a group."""
    for each in getattr(node, "results", ()):
        yield from _jobs(each)
    if isinstance(node, Job):
        yield node


async def _all_succeed(jobs: Iterable[Job[Any]]) -> None:
    """Wait until all have succeeded. The first failure is raised at once."""

    async def succeed(job: Job[Any]) -> None:
        job._maybe_set_cache(await outcome(job.backend, job.id))  # noqa: SLF001  # of our own class
        job.maybe_throw()

    async with _waiting() as waiting:
        for job in jobs:
            waiting.create_task(succeed(job))


@asynccontextmanager
async def _waiting() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group that raises the first failure by itself, not in an exception group."""
    try:
        async with asyncio.TaskGroup() as waiting:
            yield waiting
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


def _snapshot(job_id: str, meta: dict[str, Any], record: JobRecord) -> JobSnapshot:
    state, value = meta["status"], meta["result"]
    told = value.get("progress") if state == states.STARTED and isinstance(value, dict) else None
    progress = None
    if isinstance(told, dict) and {"done", "total"} <= told.keys() <= {"done", "total", "message"}:
        progress = Progress(**told)
    finished = meta.get("date_done")
    return JobSnapshot(
        id=job_id,
        state=state,
        name=record.name or meta.get("name"),
        progress=progress,
        result=value if state == states.SUCCESS else None,
        error=_said(value) if state in states.EXCEPTION_STATES else None,
        traceback=str(meta["traceback"]) if meta.get("traceback") else None,
        enqueued_at=None if record.enqueued is None else datetime.fromtimestamp(record.enqueued / 1000, UTC),
        finished_at=datetime.fromisoformat(finished) if isinstance(finished, str) else finished,
    )


def _said(error: Any) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001  # a class of the user's, whose text needs more than its arguments
        return f"{type(error).__name__}: {error.args}"


def _exists_here(kind: type) -> bool:
    """Whether a type exists in this process. Celery makes one up where it finds none."""
    found: Any = sys.modules.get(kind.__module__)
    for name in kind.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is kind


@contextmanager
def reading(job_id: str) -> Iterator[None]:
    """Let the block ask the servers about a job, for two seconds at most.

    Raises:
        ResultUnavailable: they do not answer.
    """
    try:
        with deadline(_READ_TIMEOUT):
            yield
    except FOREIGN as error:
        raise ResultUnavailable(
            f"the state of the job {job_id} could not be read within {_READ_TIMEOUT:g} s "
            f"({str(error) or 'no answer'}). The job is not affected. Check the result backend "
            "(CELERY_RESULT_BACKEND or REDIS_URL) and the broker"
        ) from error
