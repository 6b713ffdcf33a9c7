"""Jobs that could not be done, and were kept: look at them, have them tried again, let them go.

The transport puts them where they are (`backburner.queue.transport`), with the reason: what keeps killing workers, what
nobody can read, what its task rejects, what names a task that nobody knows, and what has ended in a way that cannot be
recorded. A task that raises an exception has failed too, but is done with; nothing of it is kept here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import celery
from celery.backends.base import DisabledBackend
from kombu.utils.json import loads

from backburner.errors import ConfigError, ResultUnavailable
from backburner.queue.deadline import deadline
from backburner.queue.defaults import results_kept
from backburner.queue.job_record import line_of, lines_of
from backburner.queue.keys import Keys
from backburner.queue.publishing import FOREIGN
from backburner.queue.result import reading
from backburner.queue.transport.redis import PublishingChannel
from backburner.queue.transport.wire import script
from backburner.redis.url import mask_password

_FORGET: Final = script("forget")
_RETRY: Final = script("retry")
_PATIENCE: Final = 2.0
"""Seconds for the server to answer each question."""
_AT_ONCE: Final = 100


@dataclass(frozen=True)
class FailedJob:
    """One of them."""

    name: str
    """What it is called here: the job's id, unless another message of that job is here too or there is none."""
    reason: str
    """``crashed``, ``undecodable``, ``rejected``, ``unknown task`` or ``unrecorded``."""
    detail: str
    failed_at: datetime
    queue: str
    job_id: str | None
    """``None``, as the task's name, if it cannot be read."""
    task: str | None
    message: str
    """All of it, as it was in the queue. It holds the job's arguments."""


class FailedJobs:
    """Those of an app's broker, which must be Redis or Valkey. For blocking code; in a coroutine, use a thread.

    Raises, in all that it does:
        ConfigError: the broker keeps no such jobs.
        ResultUnavailable: the server does not answer.
    """

    def __init__(self, app: celery.Celery) -> None:
        self._app = app

    def count(self) -> int:
        """How many there are."""
        with self._server() as (client, keys):
            count: int = client.zcard(keys.failed)
        return count

    def __iter__(self) -> Iterator[FailedJob]:
        """All of them, those that failed first coming first."""
        with self._server() as (client, keys):
            names = client.zrange(keys.failed, 0, -1, withscores=True)
        for first in range(0, len(names), _AT_ONCE):
            some = names[first : first + _AT_ONCE]
            with self._server() as (client, keys), client.pipeline(transaction=False) as pipeline:
                for name, _ in some:
                    pipeline.hgetall(keys.failure(name.decode()))
                records = pipeline.execute()
            for (name, at), record in zip(some, records, strict=True):
                if record:  # else it went while others were looked at
                    yield _failed(keys, name.decode(), at, record)

    def get(self, name: str) -> FailedJob | None:
        """The one of this name, if it is there."""
        with self._server() as (client, keys):
            at, record = client.zscore(keys.failed, name), client.hgetall(keys.failure(name))
        return _failed(keys, name, at or 0.0, record) if record else None

    def retry(self, name: str) -> bool:
        """Put it back to the end of its queue, as it was, with its id, its callbacks and its place in a chain. Whether
        it was there.

        Its result is forgotten, so it is PENDING. It may kill as many workers as at first until it is here again. A
        chord that has failed with it stays failed.
        """
        job = self.get(name)
        if job is None:
            return self.forget(name)
        if job.job_id is not None and not isinstance(self._app.backend, DisabledBackend):
            with reading(job.job_id):
                self._app.backend.forget(job.job_id)
        ignored = _headers(job.message).get("ignore_result")
        recorded = lines_of(line_of(job.task or "", ignored=ignored), "", job.queue)
        with self._server() as (client, keys):
            known = [keys.failed, keys.untold, keys.failure(name)]
            record = [] if job.job_id is None else [keys.job(job.job_id)]
            return bool(
                client.register_script(_RETRY.text)(
                    keys=known + record,
                    args=[name, keys.crashes, keys.unknown(""), recorded, results_kept(self._app.conf)],
                )
            )

    def forget(self, name: str) -> bool:
        """Let it go for good. Whether it was there."""
        with self._server() as (client, keys):
            known = [keys.failed, keys.untold, keys.failure(name)]
            return bool(client.register_script(_FORGET.text)(keys=known, args=[name]))

    @contextmanager
    def _server(self) -> Iterator[tuple[Any, Keys]]:
        try:
            with deadline(_PATIENCE), self._app.producer_or_acquire() as producer:
                channel: Any = producer.channel
                if not isinstance(channel, PublishingChannel):
                    raise ConfigError(
                        f"failed jobs are kept on Redis and Valkey by Backburner's transport, and not on {self._broker}"
                    )
                yield channel.plain_client, channel.keys
        except FOREIGN as error:
            raise ResultUnavailable(
                f"the failed jobs could not be reached on {self._broker} ({str(error) or 'no answer'}). Check that the "
                "broker runs (CELERY_BROKER_URL or REDIS_URL)"
            ) from error

    @property
    def _broker(self) -> str:
        return mask_password(str(self._app.conf.broker_write_url))


def _failed(keys: Keys, name: str, at: float, record: dict[bytes, bytes]) -> FailedJob:
    reason, detail, list_, message = (
        record.get(field, b"").decode(errors="replace") for field in (b"reason", b"detail", b"list", b"message")
    )
    headers = _headers(message)
    job_id, task = (value if isinstance(value, str) else None for value in (headers.get("id"), headers.get("task")))
    return FailedJob(name, reason, detail, datetime.fromtimestamp(at, UTC), keys.queue(list_), job_id, task, message)


def _headers(message: str) -> dict[str, Any]:
    try:
        return dict(loads(message)["headers"])
    except (ValueError, TypeError, LookupError):
        return {}
