"""A worker's events for Flower and similar monitors: a thread sends them, many in one message; the worker never waits.

While nobody listens, task events are not sent, except for one message now and then, whose reply tells whether somebody
listens by now. A new listener misses those of the first tenth of a second, as with the events of enqueueing.
"""

import logging
from collections import deque
from collections.abc import Callable
from threading import Condition, RLock, Thread
from time import monotonic
from typing import Any, Final

from celery import bootsteps
from celery.worker.consumer.events import Events
from kombu.utils.json import dumps

log = logging.getLogger("backburner.queue")

_TASKS: Final = "task.multi"
_MANY: Final = 500
"""Events in one message."""
_SILENCE: Final = 0.1
_MOST: Final = 100_000
"""Events kept at most while the server is away."""
_LAST: Final = "worker.offline"
_PATIENCE: Final = 1.0


class Announced(bootsteps.StartStopStep):
    """A bootstep that has a thread send the worker's events."""

    requires = (Events,)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._announcing: Announcing | None = None

    def start(self, parent: Any) -> None:
        """Take over the new dispatcher of a new connection."""
        self.shutdown(parent)
        dispatcher = parent.event_dispatcher
        # A loop must never wait. Elsewhere a thread is worth while only if it can find out that nobody listens.
        if dispatcher is not None and dispatcher.enabled and (hasattr(parent.pool, "serve") or _topics(dispatcher)):
            self._announcing = Announcing(dispatcher)

    def shutdown(self, parent: Any) -> None:  # noqa: ARG002  # Celery's name
        """Send what is left, before the dispatcher is closed."""
        if self._announcing is not None:
            self._announcing.close()
            self._announcing = None


class Announcing:
    """Replaces a dispatcher's own publishing.

    Args:
        dispatcher: Celery's, for one connection.
    """

    def __init__(self, dispatcher: Any) -> None:
        self._publish: Callable[..., None] = dispatcher._publish  # noqa: SLF001  # there is no public name
        dispatcher._publish = self.publish  # noqa: SLF001
        self._waiting: deque[tuple[Any, Any, str, dict[str, Any]]] = deque(maxlen=_MOST)
        self._lock = RLock()
        self._changed = Condition(self._lock)
        self._busy = False
        self._over = False
        self._silent_until = 0.0
        _overhear(dispatcher, self._heard)
        Thread(target=self._run, name="backburner-events", daemon=True).start()

    def publish(self, event: Any, producer: Any, routing_key: str, **options: Any) -> None:
        """Replaces the dispatcher's `publish`: takes an event, or a list of them."""
        if routing_key == _TASKS and monotonic() < self._silent_until:
            return
        with self._lock:
            self._waiting.append((event, producer, routing_key, options))
            self._changed.notify_all()
        if routing_key == _LAST:
            self.flush()

    def flush(self) -> None:
        """Wait until everything has been sent, but only for a moment."""
        with self._lock:
            self._changed.wait_for(lambda: not (self._waiting or self._busy), _PATIENCE)

    def close(self) -> None:
        """Send what is left, and end the thread."""
        self.flush()
        with self._lock:
            self._over = True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting or self._over)
                if not self._waiting:
                    return
                event, producer, routing_key, options = self._waiting.popleft()
                self._busy = True
                if routing_key == _TASKS:
                    event = self._with_those_behind(list(event))
            try:
                self._publish(event, producer, routing_key, **options)
            except Exception:
                log.exception("events could not be sent")

    def _with_those_behind(self, events: list[Any]) -> list[Any]:
        while self._waiting and self._waiting[0][2] == _TASKS and len(events) < _MANY:
            events += self._waiting.popleft()[0]
        return events

    def _heard(self, routing_key: str, listeners: int) -> None:
        if routing_key == _TASKS:
            self._silent_until = 0.0 if listeners else monotonic() + _SILENCE


def _overhear(dispatcher: Any, heard: Callable[[str, int], None]) -> None:
    """Have `heard` called with the number of listeners that got a message. Brokers other than Redis do not tell."""
    channel, topics_of = dispatcher.producer.channel, _topics(dispatcher)
    if topics_of is None:
        return

    def put(exchange: str, message: Any, routing_key: str, **_: Any) -> None:
        text = dumps(message)
        with channel.conn_or_acquire() as client:
            heard(routing_key, sum(client.publish(topic, text) for topic in topics_of(exchange, routing_key)))

    channel._put_fanout = put  # noqa: SLF001  # there is no public name


def _topics(dispatcher: Any) -> Any:
    """The channel where kombu publishes broadcasts, on Redis or Valkey."""
    return getattr(getattr(dispatcher.producer, "channel", None), "_get_publish_topics", None)
