"""Handing a job to the broker: within a budget, once, and without asking anybody else.

Stock Celery subscribes to the result before it enqueues, waits for a silent broker without end and may enqueue twice when
a reply is lost. Here the whole call has one deadline, and a second attempt is the same delivery to the server's script.
How long a name lookup takes is the one thing that nobody can bound.
"""

import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import celery.app.amqp
import kombu
import redis
from kombu import pools
from kombu.exceptions import OperationalError

from backburner.errors import PublishError
from backburner.queue.deadline import OutOfTime, deadline
from backburner.queue.servers import celery_url
from backburner.queue.transport import publishing as transports
from backburner.redis.url import mask_password

if TYPE_CHECKING:
    from backburner.queue.app import Celery

log = logging.getLogger("backburner.queue")

_TRANSPORTS = {"redis": transports.PLAIN, "rediss": transports.PLAIN, "sentinel": transports.SENTINEL}


class NotEnqueued(PublishError, OperationalError):
    """A `PublishError` that code written for Celery also knows: its documentation promises an OperationalError."""


class AMQP(celery.app.amqp.AMQP):
    """Celery's message factory, publishing over connections of our own."""

    @property
    def producer_pool(self) -> Any:
        """The pool of producers that tasks are published with."""
        if self._producer_pool is None:
            self._producer_pool = pools.producers[_publishing_connection(self.app)]
            self._producer_pool.limit = self.app.pool.limit
        return self._producer_pool

    publisher_pool = producer_pool


def _publishing_connection(app: "Celery") -> kombu.Connection:
    stock: kombu.Connection = app.connection_for_write()
    transport = _TRANSPORTS.get(stock.transport_cls)
    if transport is None:
        return stock
    expires = app.conf.result_expires or 86_400
    options: dict[str, Any] = {"job_record_expires": getattr(expires, "total_seconds", lambda: expires)()}
    url, _ = celery_url(app.conf.broker_write_url)
    if isinstance(url, str) and url.startswith("redis+"):
        return app.connection_for_write(url.replace("redis+", f"{transport}+", 1), transport_options=options)
    # After an error kombu moves on to the next Sentinel's URL and takes the transport from it. All the Sentinels are
    # asked each time anyway, so it may stay where it is.
    stay = {"failover_strategy": _first_host_again} if transport == transports.SENTINEL else {}
    return app.connection_for_write(transport=transport, transport_options=options, **stay)


def _first_host_again(urls: list[str]) -> Iterator[str]:
    return itertools.repeat(urlsplit(urls[0]).hostname or "")


@contextmanager
def publishing(app: "Celery", task: str, budget: float) -> Iterator[None]:
    """Publish in the block: in `budget` seconds, as one delivery, with errors of kombu and redis-py translated.

    Raises:
        PublishError: the broker did not take the job.
    """
    try:
        with deadline(budget), transports.delivery():
            yield
    except PublishError:
        raise
    except (OutOfTime, OperationalError, redis.RedisError, OSError) as error:
        broker = mask_password(str(app.conf.broker_write_url))
        reason = (
            f"no answer within {budget:g} s"
            if isinstance(error, OutOfTime)
            else f"{error} (tried for {budget:g} s at most)"
        )
        raise NotEnqueued(
            f"the job {task!r} was not enqueued, the broker {broker} did not take it: {reason}. Check that it runs and can be "
            "reached (CELERY_BROKER_URL or REDIS_URL); CELERY_PUBLISH_TIMEOUT says how long to try"
        ) from error


def job_record(app: "Celery", job_id: str) -> dict[str, str] | None:
    """What was written when the job was enqueued: name, queue, enqueued (ms). Empty if it never was.

    ``None`` means that nothing can be said: this broker keeps no records.
    """
    with app.producer_or_acquire() as producer:
        read = getattr(producer.channel, "job_record", None)
        return None if read is None else read(job_id)
