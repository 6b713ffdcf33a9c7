"""Jobs as an HTTP resource: submitted with 202, read, followed and cancelled at their own URL.

    jobs = jobs_router(celery_app, auth=user_id)
    app.include_router(jobs)

    @app.post("/reports", status_code=202)
    async def create_report(submission: Annotated[Submission, Depends(jobs.submission)]) -> JobAccepted:
        return await submission.aaccept(make_report, ("2026",))

A job belongs to the user who submitted it; for everybody else it does not exist, nor do jobs that were enqueued
elsewhere. The owner is stored on the result backend's server, which must be Redis or Valkey, for as long as results are
kept.
"""

import asyncio
import json
import re
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from datetime import datetime
from functools import partial
from hashlib import blake2b
from typing import Annotated, Any, Final, Generic, TypeVar, Union, get_type_hints

import orjson
from kombu.utils.json import dumps
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic_core import PydanticSerializationError

from backburner.errors import ConfigError, ResultUnavailable, UnknownJob
from backburner.extras import extra
from backburner.queue.app import Celery
from backburner.queue.arguments import signature_source
from backburner.queue.defaults import results_kept
from backburner.queue.executor import in_thread
from backburner.queue.keys import keys_of
from backburner.queue.result import Job, ResultIgnored, reading
from backburner.queue.stream import BEGINNING, JobEvent, is_place

with extra("fastapi", needed_by="backburner.queue.http"):
    import anyio
    from fastapi import APIRouter, Depends, Header, HTTPException, Path, Query, Request, Response
    from fastapi.responses import StreamingResponse

__all__ = ["JobAccepted", "JobResource", "JobsRouter", "Submission", "jobs_router"]

T = TypeVar("T")

HEARTBEAT: Final = 15.0
"""Seconds of silence after which a stream of events gives a sign of life."""
LONGEST_WAIT: Final = 60.0
"""The most seconds that ``Prefer: wait=…`` can ask for."""
_RETRY_AFTER: Final = 1
_SUBMITTING: Final = 30
"""Seconds after which a submission that was never completed is forgotten."""
_CLOCKS_DIFFER: Final = 5.0
_END: Final = "/end"
"""Ends the id of a stream's last event, so that a browser that reconnects is told that there is nothing more."""

Owner = str | int | uuid.UUID
JobId = Annotated[str, Path(max_length=200, pattern=r"^[ -~]+$")]


class JobAccepted(BaseModel):
    """A job was enqueued."""

    id: str
    url: str = Field(description="Where to read how it is")
    events: str = Field(description="Where to follow it, as server-sent events")


class JobProgress(BaseModel):
    """How far a job says it is."""

    model_config = ConfigDict(from_attributes=True)

    done: float
    total: float
    message: str = ""


class JobResource(BaseModel, Generic[T]):
    """A job, as it is now."""

    model_config = ConfigDict(from_attributes=True, ser_json_bytes="base64")

    id: str
    name: str | None = Field(description="The task's name")
    state: str = Field(description="`PENDING`, `STARTED`, `RETRY`, `SUCCESS`, `FAILURE` or `REVOKED`")
    progress: JobProgress | None = None
    result: T | None = Field(None, description="What the job gave, once it succeeded")
    error: str | None = Field(None, description="What went wrong, if it failed or is about to be retried")
    enqueued_at: datetime | None = None
    finished_at: datetime | None = None


class Submission:
    """A request that enqueues a job; routes get it from the dependency `JobsRouter.submission`."""

    def __init__(self, jobs: "JobsRouter", request: Request, response: Response, owner: Owner, key: str | None) -> None:
        self._jobs = jobs
        self._request = request
        self._response = response
        self._owner = owner
        self._has_key = key is not None
        place = f"{request.method} {request.url.path}"
        self.job_id = str(uuid.uuid5(_NAMESPACE, dumps([place, str(owner), key]))) if key else str(uuid.uuid4())
        """The id that the job will have: the same for the same ``Idempotency-Key``."""

    def accept(
        self, task: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, *, public: bool = False,
        **options: Any,
    ) -> JobAccepted:  # fmt: skip
        """Enqueue a job, and answer 202 with its URL in ``Location``. `options` are those of ``apply_async``.

        A second request with the same ``Idempotency-Key`` gets the same job; it is not run again.

        Args:
            public: whether everybody whom the router's `auth` lets in may see and cancel it.

        Raises:
            HTTPException: 409, the first request with this key is still in progress; 422, it had other arguments.
            TypeError: an argument does not match its annotation.
            PublishError: the broker did not take the job. The key can be used again.
        """
        job_id = options.setdefault("task_id", self.job_id)
        call = tuple(args), dict(kwargs or {})
        sent = call if task.arguments is None else task.arguments.encode(*call)  # of what is no JSON by itself
        record = {
            "owner": None if public else str(self._owner),
            "asked": blake2b(dumps([task.name, *sent]).encode(), digest_size=16).hexdigest(),
        }
        with _translated(job_id):
            is_new = self._jobs.claim(job_id, record, lasting=not self._has_key)
        if is_new:
            try:
                task.apply_async(*call, **options)
            except BaseException:
                with suppress(ResultUnavailable):  # then this id has an owner but no job, until it expires
                    self._jobs.disown(job_id)
                raise
            if self._has_key:
                with _translated(job_id):
                    self._jobs.claim(job_id, record, lasting=True)
        else:
            self._response.headers["Idempotency-Replayed"] = "true"
        within = self._request.app.url_path_for(self._jobs.read_name, job_id=job_id)
        url = f"{self._request.scope.get('root_path', '')}{within}"
        self._response.status_code = 202
        self._response.headers["Location"] = url
        self._response.headers["Retry-After"] = str(_RETRY_AFTER)
        return JobAccepted(id=job_id, url=url, events=f"{url}/events")

    async def aaccept(
        self, task: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> JobAccepted:
        """`accept` without blocking the event loop."""
        return await in_thread(partial(self.accept, task, args, kwargs, **options))


class JobsRouter(APIRouter):
    """The routes; made by `jobs_router`."""

    submission: Callable[..., Submission]
    """A dependency for routes that enqueue."""

    def __init__(self, celery_app: Celery, prefix: str, **options: Any) -> None:
        super().__init__(prefix=prefix, **options)
        self.celery_app = celery_app
        self.read_name = f"read_job_of_{prefix.strip('/').replace('/', '_')}"

    @property
    def _backend(self) -> Any:
        backend = self.celery_app.backend
        if not hasattr(backend, "listener"):
            raise ConfigError("jobs_router needs results in Redis or Valkey: set CELERY_RESULT_BACKEND")
        return backend

    def claim(self, job_id: str, record: dict[str, Any], *, lasting: bool) -> bool:
        """Store the owner of a job. ``False`` if the same submission was made before, and enqueued.

        Raises:
            ResultUnavailable: the result backend does not answer.
        """
        with reading(job_id):
            key, backend = keys_of(self._backend).submission(job_id), self._backend
            value = orjson.dumps(record | {"enqueued": lasting})
            seconds = results_kept(self.celery_app.conf) if lasting else _SUBMITTING
            if lasting or backend.client.set(key, value, nx=True, ex=seconds):
                if lasting:
                    backend.client.set(key, value, ex=seconds)
                return True
            before = orjson.loads(backend.client.get(key) or value)
            if before["asked"] != record["asked"] or before["owner"] != record["owner"]:
                raise HTTPException(422, "This Idempotency-Key was used for another request.")
            if not before["enqueued"] and self.celery_app.AsyncResult(job_id).state == "UNKNOWN":
                raise HTTPException(
                    409, "The first request with this Idempotency-Key is being worked on.", {"Retry-After": "1"}
                )
            return False

    def disown(self, job_id: str) -> None:
        """Forget the owner of a job.

        Raises:
            ResultUnavailable: the result backend does not answer.
        """
        with reading(job_id):
            self._backend.client.delete(keys_of(self._backend).submission(job_id))

    def job_of(self, owner: Owner, job_id: str) -> Job[Any]:
        """The job, if this user may see it.

        Raises:
            HTTPException: 404, they may not, or there is no such job.
            ResultUnavailable: the result backend does not answer.
        """
        with reading(job_id):
            record = self._backend.get(keys_of(self._backend).submission(job_id))
        if record is None or orjson.loads(record)["owner"] not in {None, str(owner)}:
            raise _not_found(job_id)
        return self.celery_app.AsyncResult(job_id)


def jobs_router(
    celery_app: Celery, *, auth: Callable[..., Any], tasks: Sequence[Any] = (), prefix: str = "/jobs", **options: Any
) -> JobsRouter:
    """Routes to read, follow and cancel jobs, and the dependency for routes that submit them.

    Args:
        auth: a dependency that returns who is asking: a text, a number or a UUID that stays the same for the same user.
            It raises a 401 for strangers.
        tasks: the tasks of these jobs; their return annotations are the type of `result` in the OpenAPI document.
        prefix: of the routes.
        options: as for ``fastapi.APIRouter``.

    Raises:
        ConfigError: `auth` is not callable.
    """
    if not callable(auth):
        raise ConfigError(f"auth={auth!r}: give a dependency that says who asks; jobs are for who handed them in")
    router = JobsRouter(celery_app, prefix, **{"tags": ["jobs"]} | options)
    Asker = Annotated[Any, Depends(auth)]  # noqa: N806  # a type

    def submission(
        request: Request,
        response: Response,
        asker: Asker,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
    ) -> Submission:
        return Submission(router, request, response, _checked(asker), idempotency_key)

    router.submission = submission

    async def job(job_id: JobId, asker: Asker) -> Job[Any]:
        with _translated(job_id):  # in no thread of FastAPI's, which other routes need while the server is silent
            return await in_thread(router.job_of, _checked(asker), job_id, purpose="read")

    Theirs = Annotated[Job[Any], Depends(job)]  # noqa: N806  # as above

    @router.get(
        "/{job_id}",
        name=router.read_name,
        summary="Read one",
        responses={200: {"model": JobResource[_result_of(tasks)]}, 304: {"description": "Not changed"}},  # type: ignore[misc]  # made here
    )
    async def read_job(
        job: Theirs,
        if_none_match: Annotated[str | None, Header()] = None,
        prefer: Annotated[str | None, Header(description="`wait=10`: answer when it has changed, or ended")] = None,
    ) -> Response:
        """The job as it is now. With `Prefer: wait=…`, as it is once it differs from `If-None-Match` or, without that
        header, once it has ended; at the latest after the seconds asked for.
        """
        asked = re.search(r"\bwait=(\d{1,9})", prefer or "")
        wait = min(int(asked[1]), LONGEST_WAIT) if asked else 0.0
        with _translated(job.id):
            body, tag, ready = await _represented(job)
            if wait and not ready and (if_none_match is None or _is_known(tag, if_none_match)):
                body, tag, ready = await _changed(job, wait, if_none_match)
        headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
        if not ready:
            headers["Retry-After"] = str(_RETRY_AFTER)
        if asked:
            headers["Preference-Applied"] = f"wait={int(wait)}"
        if if_none_match is not None and _is_known(tag, if_none_match):
            return Response(status_code=304, headers=headers)
        return Response(body, media_type="application/json", headers=headers)

    @router.get(
        "/{job_id}/events",
        summary="Follow one",
        response_class=StreamingResponse,
        responses={
            200: {"content": {"text/event-stream": {}}},
            204: {"description": "There is nothing more"},
        },
    )
    async def follow_job(
        job: Theirs,
        last_event_id: Annotated[str | None, Header()] = None,
        after: Annotated[str | None, Query(description="As `Last-Event-ID`, which browsers send")] = None,
    ) -> Response:
        """What the job reports, as server-sent events `progress`, `log` and `state`. The last one is its final
        state."""
        place = last_event_id or after or BEGINNING
        if place.endswith(_END):
            return Response(status_code=204)
        if not is_place(place):
            raise HTTPException(422, "Last-Event-ID is none of this stream.")
        with _translated(job.id):
            await in_thread(job.check_events, purpose="read")  # what cannot be followed is an error, not a stream
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(_frames(job, place), media_type="text/event-stream", headers=headers)

    @router.delete("/{job_id}", status_code=204, summary="Cancel one")
    async def cancel_job(job: Theirs) -> None:
        """Cancel the job, whether it waits or runs. One that has ended stays as it is."""
        with _translated(job.id):
            if not (await job.asnapshot()).ready:
                await job.acancel()

    return router


_NAMESPACE = uuid.UUID("8f2d6f0e-6c58-4c0b-9c1e-0b7a2f1f5e77")


async def _represented(job: Job[Any]) -> tuple[bytes, str, bool]:
    """The body of a response, its entity tag, and whether the job has ended."""
    snapshot = await job.asnapshot()
    resource = JobResource[Any].model_validate(snapshot)
    try:
        body = resource.model_dump_json().encode()
    except PydanticSerializationError:  # a lone surrogate cannot be encoded, but JSON can escape it
        body = json.dumps(resource.model_dump(mode="json")).encode()
    return body, f'"{blake2b(body, digest_size=12).hexdigest()}"', snapshot.ready


def _is_known(tag: str, if_none_match: str) -> bool:
    return tag in if_none_match or if_none_match.strip() == "*"


async def _changed(job: Job[Any], seconds: float, known: str | None) -> tuple[bytes, str, bool]:
    """As `_represented`, once that differs from the known one, or at the latest after so many seconds."""
    # Only what happens from now on is news; the server's clock may be behind.
    after = f"{int((time.time() - _CLOCKS_DIFFER) * 1000)}-0"
    with suppress(TimeoutError, ResultIgnored):
        async with asyncio.timeout(seconds), aclosing(job.aevents(after)) as events:
            async for event in events:
                if event.kind != "log" and (known is not None or _is_end(event)):
                    now = await _represented(job)
                    if now[2] or (known is not None and not _is_known(now[1], known)):
                        return now
    return await _represented(job)


async def _frames(job: Job[Any], after: str) -> AsyncGenerator[bytes]:
    """The events as they are sent, with a sign of life while there are none."""
    yield b": here\n\n"
    async with aclosing(job.aevents(after)) as events:
        upcoming = asyncio.ensure_future(anext(events))
        try:
            while True:
                done, _ = await asyncio.wait([upcoming], timeout=HEARTBEAT)
                if not done:
                    yield b": still here\n\n"
                    continue
                try:
                    event = upcoming.result()
                except StopAsyncIteration:
                    return
                place = event.id + _END if _is_end(event) else event.id
                yield b"id: %b\nevent: %b\ndata: %b\n\n" % (
                    place.encode(), event.kind.encode(), orjson.dumps(event.data),
                )  # fmt: skip
                upcoming = asyncio.ensure_future(anext(events))
        finally:
            upcoming.cancel()
            with anyio.CancelScope(shield=True):  # when a client has gone, anyio cancels again and again
                await asyncio.wait([upcoming])  # a generator that is running cannot be closed


def _is_end(event: JobEvent) -> bool:
    return event.kind == "state" and event.data["state"] in {"SUCCESS", "FAILURE", "REVOKED"}


def _result_of(tasks: Sequence[Any]) -> Any:
    """The type of these tasks' results."""
    types = [_result_of_one(task) for task in tasks]
    return Union[tuple(types)] if types else Any  # noqa: UP007  # of a list made here


def _result_of_one(task: Any) -> Any:
    """The type of a task's result, if its annotation exists at run time and pydantic understands it."""
    try:
        result = get_type_hints(signature_source(task.run)).get("return", Any)
        TypeAdapter(result)
    except Exception:  # noqa: BLE001  # annotations are anybody's expressions
        return Any
    return result


def _checked(asker: Any) -> Owner:
    if not isinstance(asker, Owner):
        raise TypeError(f"auth of jobs_router must give a text, a number or a UUID that names who asks, not {asker!r}")
    return asker


def _not_found(job_id: str) -> HTTPException:
    return HTTPException(404, f"There is no job {job_id}.")


@contextmanager
def _translated(job_id: str) -> Iterator[None]:
    try:
        yield
    except UnknownJob as error:
        raise _not_found(job_id) from error
    except ResultIgnored as error:
        raise HTTPException(409, "The result of this job is ignored, so it cannot be followed.") from error
    except ResultUnavailable as error:
        raise HTTPException(
            503, "Background jobs cannot be reached at the moment; try again.", {"Retry-After": "5"}
        ) from error
