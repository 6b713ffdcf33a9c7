"""What happens in a cache, as small dataclasses, and the subscribers that are told.

Code emits an event and goes on; turning events into log lines, metrics or a dashboard is up to subscribers. Subscribers
run in the thread that emits and must be quick; an error in one is logged and affects nobody else. For frequent events,
the emitter first looks whether anybody listens, which costs one attribute read.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final, Literal

from backburner.interruptions import interruptions

__all__ = [
    "BreakerClosed",
    "BreakerOpened",
    "Computed",
    "Degraded",
    "Event",
    "Events",
    "Hit",
    "Invalidated",
    "LateCallback",
    "LeaseLost",
    "LockLost",
    "Miss",
    "RefreshFailed",
    "StaleServed",
    "Stored",
    "Tier",
    "Undecodable",
    "Waited",
]

log = logging.getLogger("backburner.cache")

Tier = Literal["memory", "server", "flight"]
"""Where a value came from: this process's memory, the server, or the computation of another caller that was waited
for."""


@dataclass(frozen=True, slots=True)
class Event:
    """The root of all events."""


@dataclass(frozen=True, slots=True)
class Hit(Event):
    """A value was returned without calling the callback."""

    key: str
    tier: Tier
    stale: bool = False
    """Whether the value was past its freshness, and returned while it was being renewed."""


@dataclass(frozen=True, slots=True)
class Miss(Event):
    """No usable entry was found."""

    key: str


@dataclass(frozen=True, slots=True)
class StaleServed(Event):
    """The callback failed, and the caller got the previous value."""

    key: str
    error: Exception


@dataclass(frozen=True, slots=True)
class LateCallback(Event):
    """A callback took longer than a caller's timeout of `seconds`. It goes on, and its result will be stored."""

    key: str
    seconds: float
    stale: bool
    """Whether the caller got a value past its freshness. Otherwise it got the current one, or a `CallbackTimeout`."""


@dataclass(frozen=True, slots=True)
class LeaseLost(Event):
    """The result of a running callback will not be stored: its key was written or removed after the callback began, or
    this process stalled for longer than its lease, and another one computes the value now."""

    key: str


@dataclass(frozen=True, slots=True)
class RefreshFailed(Event):
    """A callback failed that nobody was waiting for: it was renewing an entry still in use, or had exceeded a
    timeout."""

    key: str
    error: Exception


@dataclass(frozen=True, slots=True)
class Computed(Event):
    """A callback returned: it computed the value of one key, or of several together, in `seconds`."""

    keys: tuple[str, ...]
    seconds: float
    refresh: bool
    """Whether it was a renewal: the previous values were still in use meanwhile."""


@dataclass(frozen=True, slots=True)
class Waited(Event):
    """A caller waited `seconds` for another one's computation: in this process (flight), or in another one (lease)."""

    key: str
    seconds: float
    on: Literal["flight", "lease"]


@dataclass(frozen=True, slots=True)
class Stored(Event):
    """An entry was written."""

    key: str


@dataclass(frozen=True, slots=True)
class Invalidated(Event):
    """Keys or tags were removed. Without keys and tags: everything under the prefix."""

    keys: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Degraded(Event):
    """The store failed, and the caller got what it would have got without a cache."""

    operation: str
    keys: tuple[str, ...]
    error: Exception


@dataclass(frozen=True, slots=True)
class LockLost(Event):
    """A lock had expired by the time its holder released it, `seconds` after acquiring it: others may have held it."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Undecodable(Event):
    """Stored bytes could not be read (corrupt, in another format, of a class that has changed) and count as a miss."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class BreakerOpened(Event):
    """The server does not answer; it is left alone for `seconds`."""

    server: str
    seconds: float
    error: Exception


@dataclass(frozen=True, slots=True)
class BreakerClosed(Event):
    """The server answers again, after `seconds` without it."""

    server: str
    seconds: float


Subscriber = Callable[[Event], None]


Tracer = Callable[[Sequence[str]], AbstractContextManager[object]]


class Events:
    """The subscribers of one cache. Emitters of frequent events look at `listening` before they build an event."""

    __slots__ = ("_subscriptions", "listening", "on_listening", "trace")

    def __init__(self) -> None:
        self._subscriptions: tuple[tuple[Subscriber, tuple[type[Event], ...]], ...] = ()
        self.listening: frozenset[type[Event]] = frozenset()
        """Which of the frequent kinds have a subscriber: `Hit`, `Miss`, `Stored`, `Computed`, `Waited`."""
        self.on_listening: Callable[[], None] = lambda: None
        """Called when `listening` has changed."""
        self.trace: Tracer = nullcontext
        """Given the keys, makes a context manager around each call of a callback. For tracing: events come too late."""

    def subscribe(self, subscriber: Subscriber, *kinds: type[Event]) -> Callable[[], None]:
        """Call `subscriber` with every event, or with those of some kinds. Returns a function that ends the
        subscription."""
        subscription = (subscriber, kinds or (Event,))
        self._set((*self._subscriptions, subscription))
        return lambda: self._set(tuple(other for other in self._subscriptions if other is not subscription))

    def emit(self, event: Event) -> None:
        """Call the subscribers of this kind of event."""
        for subscriber, kinds in self._subscriptions:
            if isinstance(event, kinds):
                try:
                    subscriber(event)
                except interruptions():
                    raise
                except Exception:
                    log.exception("a subscriber of cache events failed on %r", event)

    def _set(self, subscriptions: tuple[tuple[Subscriber, tuple[type[Event], ...]], ...]) -> None:
        self._subscriptions = subscriptions
        wanted = tuple(kind for _, kinds in subscriptions for kind in kinds)
        before, self.listening = self.listening, frozenset(kind for kind in FREQUENT if issubclass(kind, wanted))
        if self.listening != before:
            self.on_listening()


FREQUENT: Final = (Hit, Miss, Stored, Computed, Waited)
