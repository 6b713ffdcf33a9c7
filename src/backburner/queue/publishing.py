"""Celery's own path to the broker, bounded, and what both paths have in common: their errors, and the job's record.

Celery makes the messages here, with everything that `Producer` leaves to it, and those of remote control. The
connections use our transport, so a second attempt is the same delivery to the server, and nothing takes longer than its
budget.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import celery
import celery.app.amqp
import celery.app.control
import kombu.pidbox
import redis
from amqp.exceptions import AMQPError
from kombu import pools
from kombu.exceptions import OperationalError

from backburner.errors import PublishError
from backburner.queue.deadline import OutOfTime, deadline
from backburner.queue.delivery import NotReplicated
from backburner.queue.job_record import NOTHING_KNOWN, JobRecord
from backburner.queue.transport.redis import delivery
from backburner.redis.url import mask_password

FOREIGN: Final = (OutOfTime, OperationalError, redis.RedisError, AMQPError, OSError)
"""What may go wrong with a broker."""


class NotEnqueued(PublishError, OperationalError):
    """A `PublishError` that code written for Celery also catches: Celery promises an OperationalError."""


class AMQP(celery.app.amqp.AMQP):
    """Celery's message factory, publishing over connections of our own."""

    @property
    def producer_pool(self) -> Any:
        """The pool of producers that tasks are published with."""
        if self._producer_pool is None:  # type: ignore[has-type]  # the stubs leave it out
            app: Any = self.app  # a `backburner.Celery`
            pool = pools.producers[app.connection_for_publishing()]
            pool.limit = self.app.pool.limit
            self._producer_pool = pool
        return self._producer_pool

    publisher_pool = producer_pool

    def _handle_conf_update(self, *args: Any, **kwargs: Any) -> None:
        super()._handle_conf_update(*args, **kwargs)  # type: ignore[misc]  # the stubs leave it out
        # Celery's settings change before its router does, and jobs enqueued in between have asked the old router.
        if (producer := vars(self.app).get("producer")) is not None:
            producer.look_again()


class Mailbox(kombu.pidbox.Mailbox):
    """Where remote control is sent from. While all producers are in use, it waits for one; Celery's own fails then."""

    @contextmanager
    def producer_or_acquire(self, producer: Any = None, channel: Any = None) -> Iterator[Any]:
        """The given producer, or one of the pool's."""
        pool: Any = self.producer_pool
        if producer or not pool:
            with super().producer_or_acquire(producer, channel) as found:
                yield found
        else:
            with pool.acquire(block=True) as found:
                yield found


class Control(celery.app.control.Control):
    """Celery's remote control, with a mailbox of ours."""

    Mailbox = Mailbox


@contextmanager
def publishing(app: celery.Celery, task: str, budget: float) -> Iterator[None]:
    """Publish in the block, in Celery's way: within `budget` seconds, as one delivery, with foreign errors translated.

    Raises:
        PublishError: the broker did not take the job.
    """
    began = time.monotonic()
    try:
        with deadline(budget), delivery():
            yield
    except PublishError:
        raise
    except FOREIGN as error:
        raise not_enqueued(app, task, began, error) from error


def job_record(app: celery.Celery, job_id: str) -> JobRecord | None:
    """The record written when the job was enqueued; ``None`` if it never was.

    `NOTHING_KNOWN` where this broker keeps no records, or messages do not name their jobs (protocol 1).
    """
    if app.conf.task_protocol == 1:
        return NOTHING_KNOWN
    with app.producer_or_acquire() as producer:
        read = getattr(producer.channel, "job_record", None)
        return NOTHING_KNOWN if read is None else read(job_id)


def not_enqueued(app: celery.Celery, task: str, began: float, error: BaseException) -> NotEnqueued:
    """The error for the caller; `began` is in monotonic time."""
    broker = mask_password(str(app.conf.broker_write_url))
    if _is_refusal(error):
        return NotEnqueued(
            f"the job {task!r} was not enqueued: {broker} refuses it ({error}). It can be reached: see to its memory, "
            "its replicas, and the user, password and database of CELERY_BROKER_URL or REDIS_URL"
        )
    return NotEnqueued(
        f"the job {task!r} was not enqueued: {broker} did not confirm it within {time.monotonic() - began:.2f} s "
        f"({str(error) or 'no answer'}). Check that the broker runs and can be reached (CELERY_BROKER_URL "
        "or REDIS_URL); CELERY_PUBLISH_TIMEOUT says how long to try. A broker that is only slow may take "
        "the job later"
    )


def _is_refusal(error: BaseException | None) -> bool:
    """Whether the broker has answered that it does not want the job; kombu's errors tell by their causes."""
    if error is None or isinstance(error, NotReplicated):
        return False
    return isinstance(error, redis.ResponseError | redis.AuthenticationError) or _is_refusal(error.__cause__)
