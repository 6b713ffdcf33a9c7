"""How often what happened in this process, by namespace of the keys.

A namespace is what a key has before its first colon; a key without one is in the namespace ``""``. Only so many are
told apart, or keys that begin with an identifier would fill the memory, here and in whatever collects metrics.

Counting is a plain addition, without a lock. CPython lets threads take turns at calls and at the ends of loops, not
between reading a number and writing it back, so with its global lock nothing is lost; without it (free-threaded builds)
additions of two threads at once may count as one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from threading import Lock
from typing import Final, Self, get_args

from backburner.events import Degraded, Event, Invalidated, LateCallback, StaleServed, Tier, Undecodable

__all__ = ["COUNTED", "OTHER", "Counters", "Counts", "TierCounts"]

COUNTED: Final = (Invalidated, Degraded, LateCallback, StaleServed, Undecodable)
"""The events that `Counters.note` counts. What is frequent is counted where it happens."""

MOST_NAMESPACES: Final = 200
OTHER: Final = "other"
"""The namespace of all keys whose own would be one too many."""


@dataclass(slots=True)
class TierCounts:
    """Hits that one tier answered."""

    tally: float = field(default=0.0, repr=False)
    """Hits, to be added to. Whole; a float, since CPython adds 1.0 to one in three quarters of the time that an int
    takes, and exactly up to 2**53."""
    stale: int = 0
    """Those among them beyond their freshness, given at once while they were renewed."""

    @property
    def hits(self) -> int:
        """Values that were given."""
        return int(self.tally)


@dataclass(slots=True)
class Counts:
    """What happened to the keys of one namespace, or of all."""

    tiers: Mapping[Tier, TierCounts] = field(default_factory=lambda: {tier: TierCounts() for tier in get_args(Tier)})
    """Where hits came from."""
    misses: int = 0
    stale_on_error: int = 0
    """Misses whose callback failed, and which got the value from before."""
    stored: int = 0
    computed: int = 0
    """Calls of callbacks that gave something. One for several keys counts for the namespace of the first."""
    refreshed: int = 0
    """Those among them made while the value from before was still given."""
    failed: int = 0
    """Calls of callbacks that raised."""
    compute_seconds: float = 0.0
    """Spent in callbacks."""
    waited: int = 0
    """Callers who waited for somebody else's callback."""
    wait_seconds: float = 0.0
    invalidated: int = 0
    """Keys and tags that were removed, however many entries that touched. `flush` counts one, in ``""``."""
    degraded: int = 0
    """Operations that the server could not do. One on several keys counts for the namespace of the first."""
    late: int = 0
    """Callers who did not wait for their callback to the end, because of a timeout."""
    evicted: int = 0
    """Entries in this process that had to make room for others. What the server evicts is not known."""
    undecodable: int = 0
    """Entries whose bytes could not be read."""

    @property
    def hits(self) -> int:
        """Values that were given without calling back."""
        return sum(counts.hits for counts in self.tiers.values())

    @property
    def stale(self) -> int:
        """Values beyond their freshness that were given, as hits or because the callback failed."""
        return self.stale_on_error + sum(counts.stale for counts in self.tiers.values())

    @property
    def hit_ratio(self) -> float:
        """Hits among all reads; 0 before the first."""
        reads = self.hits + self.misses
        return self.hits / reads if reads else 0.0

    def __iadd__(self, other: "Counts") -> Self:
        for name in _NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for tier, counts in other.tiers.items():
            self.tiers[tier].tally += counts.tally
            self.tiers[tier].stale += counts.stale
        return self

    def reset(self) -> None:
        """Begin at nothing; who holds a part of this goes on counting in it."""
        for name in _NUMBERS:
            setattr(self, name, 0)
        for counts in self.tiers.values():
            counts.tally, counts.stale = 0.0, 0


_NUMBERS: Final = tuple(each.name for each in fields(Counts) if each.name != "tiers")


class Counters:
    """The counts of one cache."""

    def __init__(self) -> None:
        self._namespaces: dict[str, Counts] = {}
        self._lock = Lock()  # over the making of a namespace

    def namespace(self, key: str) -> str:
        """The namespace that a key, or a tag, is counted in."""
        namespace, colon, _ = key.partition(":")
        if not colon:
            namespace = ""
        return namespace if namespace in self._namespaces or self._make(namespace) else OTHER

    def of(self, key: str) -> Counts:
        """What happened in the namespace of a key; to be added to."""
        namespace, colon, _ = key.partition(":")
        counts = self._namespaces.get(namespace if colon else "")
        return self._namespaces[self.namespace(key)] if counts is None else counts

    def note(self, event: Event) -> None:
        """Count an event."""
        match event:
            case Invalidated(keys, tags):
                for name in (*keys, *tags) or ("",):
                    self.of(name).invalidated += 1
            case Degraded(_, keys):
                self.of(keys[0] if keys else "").degraded += 1
            case Undecodable(key):
                self.of(key).undecodable += 1
            case StaleServed(key):
                self.of(key).stale_on_error += 1
            case LateCallback(key):
                self.of(key).late += 1
            case _:
                pass

    def evicted(self, key: str) -> None:
        """Count an eviction, which is too frequent for an event."""
        self.of(key).evicted += 1

    def snapshot(self) -> dict[str, Counts]:
        """Copies of all counts, by namespace."""
        copies = {}
        for namespace, counts in list(self._namespaces.items()):
            copies[namespace] = Counts()
            copies[namespace] += counts
        return copies

    def after_fork(self) -> None:
        """In a forked child: count from nothing, or the parent's would be told twice."""
        self._lock = Lock()
        for counts in self._namespaces.values():
            counts.reset()

    def _make(self, namespace: str) -> bool:
        with self._lock:
            if namespace not in self._namespaces and len(self._namespaces) >= MOST_NAMESPACES:
                self._namespaces.setdefault(OTHER, Counts())
                return False
            self._namespaces.setdefault(namespace, Counts())
            return True
