"""What happened, as small dataclasses, and who is told.

Code that does something emits an event and goes on; turning events into log lines, metrics or a dashboard is a
subscriber's business. Emitting costs one attribute read while nobody listens. Subscribers run in the thread that emits,
must be quick, and an error in one is logged and reaches nobody else.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final, Literal

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
"""Where a value came from: this process's memory, the server, or the call of another caller who was just at it."""


@dataclass(frozen=True, slots=True)
class Event:
    """The root of all events."""


@dataclass(frozen=True, slots=True)
class Hit(Event):
    """A value was given without calling back."""

    key: str
    tier: Tier
    stale: bool = False
    """It is beyond its freshness, and given while it is renewed."""


@dataclass(frozen=True, slots=True)
class Miss(Event):
    """No usable entry was found."""

    key: str


@dataclass(frozen=True, slots=True)
class StaleServed(Event):
    """The callback failed, and the caller got the entry from before."""

    key: str
    error: Exception


@dataclass(frozen=True, slots=True)
class LateCallback(Event):
    """A callback took longer than a caller's timeout, `seconds`. It goes on, and what it gives will be stored."""

    key: str
    seconds: float
    stale: bool
    """Whether the caller got the value from before (soft timeout), or a `CallbackTimeout` (hard timeout)."""


@dataclass(frozen=True, slots=True)
class LeaseLost(Event):
    """A callback will not have its result stored: its key was written or removed since it began, or this process was
    held up for longer than its lease, and another one computes."""

    key: str


@dataclass(frozen=True, slots=True)
class RefreshFailed(Event):
    """A callback failed when nobody waited for it: it was to renew an entry that may still be given, or was late."""

    key: str
    error: Exception


@dataclass(frozen=True, slots=True)
class Computed(Event):
    """A callback gave what was asked of it: the value of a key, or of several together."""

    keys: tuple[str, ...]
    seconds: float
    refresh: bool
    """Whether the values from before were still given meanwhile."""


@dataclass(frozen=True, slots=True)
class Waited(Event):
    """A caller waited while another one computed: in this process (flight), or in another one (lease)."""

    key: str
    seconds: float
    on: Literal["flight", "lease"]


@dataclass(frozen=True, slots=True)
class Stored(Event):
    """An entry was written."""

    key: str


@dataclass(frozen=True, slots=True)
class Invalidated(Event):
    """Keys or tags were removed. No keys and no tags: everything under the prefix was."""

    keys: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Degraded(Event):
    """The store could not do its part, and the caller got what it gets without a cache."""

    operation: str
    keys: tuple[str, ...]
    error: Exception


@dataclass(frozen=True, slots=True)
class LockLost(Event):
    """A lock had ended when its holder gave it back, `seconds` after it was acquired: others may have been at work."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Undecodable(Event):
    """Stored bytes could not be read (corrupt, another format, a class that changed) and count as a miss."""

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
    """A list of subscribers. A look at `listening` first spares the making of frequent events that nobody wants."""

    __slots__ = ("_subscriptions", "listening", "on_listening", "trace")

    def __init__(self) -> None:
        self._subscriptions: tuple[tuple[Subscriber, tuple[type[Event], ...]], ...] = ()
        self.listening: frozenset[type[Event]] = frozenset()
        """The kinds that somebody wants, of those that are frequent: `Hit`, `Miss`, `Stored`, `Computed`, `Waited`."""
        self.on_listening: Callable[[], None] = lambda: None
        """Called when `listening` has changed."""
        self.trace: Tracer = nullcontext
        """Makes what surrounds each call of a callback, given its keys: a span has to be there while it runs."""

    def subscribe(self, subscriber: Subscriber, *kinds: type[Event]) -> Callable[[], None]:
        """Call `subscriber` with every event from now on, or those of some kinds; the function returned ends that."""
        subscription = (subscriber, kinds or (Event,))
        self._set((*self._subscriptions, subscription))
        return lambda: self._set(tuple(other for other in self._subscriptions if other is not subscription))

    def emit(self, event: Event) -> None:
        """Tell those who want it."""
        for subscriber, kinds in self._subscriptions:
            if isinstance(event, kinds):
                try:
                    subscriber(event)
                except Exception:
                    log.exception("a subscriber of cache events failed on %r", event)

    def _set(self, subscriptions: tuple[tuple[Subscriber, tuple[type[Event], ...]], ...]) -> None:
        self._subscriptions = subscriptions
        wanted = tuple(kind for _, kinds in subscriptions for kind in kinds)
        before, self.listening = self.listening, frozenset(kind for kind in FREQUENT if issubclass(kind, wanted))
        if self.listening != before:
            self.on_listening()


FREQUENT: Final = (Hit, Miss, Stored, Computed, Waited)
