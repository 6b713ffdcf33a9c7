"""Runs Celery's consumer on the loop of the asyncio pool: it connects, waits and reconnects while jobs go on."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from celery import bootsteps
from celery.worker.consumer.consumer import Evloop
from celery.worker.consumer.events import Events

from backburner.queue import shutdown
from backburner.queue.pool import bridge

_PAUSE: Final = 0.25
"""Seconds before a lost connection is reopened. After five attempts within a second, Celery itself would sleep for one,
and the loop with it."""


class Serving(bootsteps.StartStopStep):
    """A bootstep that runs the consumer of a worker with the asyncio pool in a greenlet."""

    requires = (Events,)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._serve = getattr(consumer.pool, "serve", None)
        if self._serve is not None:
            consumer.start = partial(_serve, self._serve, consumer, consumer.start)

    def include_if(self, parent: Any) -> bool:  # noqa: ARG002  # Celery's name
        """Only with the asyncio pool."""
        return self._serve is not None


def _serve(serve: Callable[[Callable[[], None]], None], consumer: Any, start: Callable[[], None]) -> None:
    # Connecting blocks in ways of its own; and while a lost connection is reopened, jobs are running.
    for step in consumer.steps:
        if not isinstance(step, Evloop):
            step.start = partial(bridge.in_thread, step.start)
    tell = consumer.on_connection_error_after_connected

    def lost(error: Exception) -> None:
        tell(error)
        time.sleep(_PAUSE)

    consumer.on_connection_error_after_connected = partial(bridge.in_thread, lost)
    shutdown.install(consumer.pool)
    serve(start)
