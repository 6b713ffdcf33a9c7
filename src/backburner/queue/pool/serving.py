"""Celery's consumer on the loop of the asyncio pool: it connects, waits and reconnects while jobs go on."""

from collections.abc import Callable
from functools import partial
from typing import Any

from celery import bootsteps
from celery.worker.consumer.consumer import Evloop
from celery.worker.consumer.events import Events

from backburner.queue.pool import bridge, shutdown
from backburner.queue.pool.announcing import Announcing


class Serving(bootsteps.StartStopStep):
    """Has the consumer of a worker with the asyncio pool run in a greenlet, and its events leave in a thread."""

    requires = (Events,)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._serve = getattr(consumer.pool, "serve", None)
        self._announcing: Announcing | None = None
        if self._serve is not None:
            consumer.start = partial(_serve, self._serve, consumer, consumer.start)

    def include_if(self, parent: Any) -> bool:  # noqa: ARG002  # Celery's name
        """In the asyncio pool."""
        return self._serve is not None

    def start(self, parent: Any) -> None:
        """A connection is there, with a new dispatcher."""
        self.shutdown(parent)
        if parent.event_dispatcher is not None and parent.event_dispatcher.enabled:
            self._announcing = Announcing(parent.event_dispatcher)

    def shutdown(self, parent: Any) -> None:  # noqa: ARG002  # Celery's name
        """The dispatcher is about to be closed."""
        if self._announcing is not None:
            self._announcing.close()
            self._announcing = None


def _serve(serve: Callable[[Callable[[], None]], None], consumer: Any, start: Callable[[], None]) -> None:
    # What connects waits for servers, in ways of its own; and when a connection was lost, there are jobs meanwhile.
    for step in consumer.steps:
        if not isinstance(step, Evloop):
            step.start = partial(bridge.in_thread, step.start)
    consumer.on_connection_error_after_connected = partial(
        bridge.in_thread, consumer.on_connection_error_after_connected
    )
    shutdown.install(consumer.pool)
    serve(start)
