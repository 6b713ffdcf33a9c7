"""Celery's Redis result backend, taught when to leave the server alone and what to do when it is gone.

Nothing is subscribed when a job is enqueued. Waiting for a result subscribes and then looks once a second, so
that an announcement that is missed costs a second at most. The server may go and come back while somebody
waits: the waiter's own timeout decides. Keys, messages and chords are stock Celery's.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import celery.backends.redis as stock

from backburner.errors import ResultUnavailable
from backburner.queue.deadline import OutOfTime, deadline, limited, remaining

log = logging.getLogger("backburner.queue")

_PATIENCE = 2.0
"""Seconds for one exchange with the server while waiting."""

_LOOK_EVERY = 1.0
"""Seconds between looks at results whose announcement may have been missed."""

_PAUSE = 0.25
"""Seconds between attempts to reach a server that is gone."""


class ResultConsumer(stock.ResultConsumer):  # type: ignore[name-defined,misc]  # the stubs leave it out
    """Waits for results on one subscribed connection."""

    _outage = False
    _looked = 0.0

    def start(self, initial_task_id: str, **options: Any) -> None:
        with self._surviving():
            super().start(initial_task_id, **options)

    def consume_from(self, task_id: str) -> None:
        with self._surviving():
            super().consume_from(task_id)

    def _flush_pending_unsubscribe(self) -> None:
        # Also called when a result is collected as garbage, where nobody could catch anything.
        with self._surviving():
            super()._flush_pending_unsubscribe()

    def on_wait_for_pending(self, result: Any, **options: Any) -> None:
        with self._surviving():
            super().on_wait_for_pending(result, **options)

    def drain_events(self, timeout: float | None = None) -> None:
        left = remaining()
        wait = min(1.0 if timeout is None else timeout, 1.0 if left is None else left)
        with self._surviving():
            if self._pubsub is None:
                self._reconnect_pubsub()
            super().drain_events(wait)
            self._look()
            return
        time.sleep(min(wait, _PAUSE))

    def _look(self) -> None:
        """Read what is waited for. What finished before its subscription arrived was announced to nobody."""
        if time.monotonic() - self._looked < _LOOK_EVERY:
            return
        with self._locked():
            self._looked = time.monotonic()
            keys = list(self.subscribed_to)
        for meta in filter(None, self.backend.client.mget(keys) if keys else ()):
            self.on_state_change(self._decode_result(meta), None)

    @contextmanager
    def reconnect_on_error(self) -> Iterator[None]:
        # Stock Celery reconnects here for twenty seconds and then declares itself unusable.
        yield

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        try:
            with deadline(_PATIENCE):
                yield
        except (OutOfTime, ResultUnavailable, *self._connection_errors) as error:
            if not self._outage:
                log.warning(
                    "result backend %s: %s; trying again until the caller's timeout",
                    self.backend.as_uri(),
                    error,
                )
            self._outage = True
            with self._locked():
                pubsub, self._pubsub = self._pubsub, None  # type: ignore[has-type]  # as above
                if pubsub is not None:
                    pubsub.close()
        else:
            self._outage = False


class _Patient:
    """What both backends below have in common; stands before a backend of Celery's."""

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Do nothing. Stock Celery subscribes here, so that without the backend nothing can be enqueued."""

    def ensure(self, fun: Callable[..., Any], args: tuple[Any, ...], **policy: Any) -> Any:
        """Call `fun`; retry as stock Celery does (for twenty seconds), but never inside a deadline."""
        if remaining() is not None:
            return fun(*args)
        return super().ensure(fun, args, **policy)  # type: ignore[misc]  # of the backend this stands before

    def _get_pool(self, **options: Any) -> Any:
        pool = super()._get_pool(**options)  # type: ignore[misc]  # of the backend this stands before
        pool.connection_class = limited(pool.connection_class)
        return pool


class RedisBackend(_Patient, stock.RedisBackend):
    """Results in a Redis or Valkey server."""

    ResultConsumer = ResultConsumer


class SentinelBackend(_Patient, stock.SentinelBackend):
    """Results in the master that Sentinels name."""

    ResultConsumer = ResultConsumer


OVERRIDES = {
    scheme: f"{__name__}:{backend.__name__}"
    for scheme, backend in {
        "redis": RedisBackend,
        "rediss": RedisBackend,
        "sentinel": SentinelBackend,
    }.items()
}
"""For Celery's loader: which of its backends these replace."""
