"""Counts of what happened to a cache in this process, by namespace of the keys.

A namespace is the part of a key before its first colon; a key without a colon is in the namespace ``""``. Their number
is limited, or keys that begin with an identifier would fill the memory, here and in systems that collect metrics.

Counting is a plain addition without a lock. CPython switches threads at calls and at the ends of loops, not between
reading a number and writing it back, so under its global lock nothing is lost; in free-threaded builds, simultaneous
additions of two threads may count as one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from threading import Lock
from typing import Final, Self, get_args

from backburner.events import Degraded, Event, Invalidated, LateCallback, StaleServed, Tier, Undecodable

__all__ = ["COUNTED", "OTHER", "Counters", "Counts", "TierCounts"]

COUNTED: Final = (Invalidated, Degraded, LateCallback, StaleServed, Undecodable)
"""The events that `Counters.note` counts. Frequent ones are counted where they happen instead."""

MOST_NAMESPACES: Final = 200
OTHER: Final = "other"
"""Stands for all namespaces beyond the limit."""


@dataclass(slots=True)
class TierCounts:
    """Hits that one tier answered."""

    tally: float = field(default=0.0, repr=False)
    """The number of hits, as a float: CPython adds 1.0 to one in three quarters of the time that an int takes, and
    exactly up to 2**53."""
    stale: int = 0
    """Those among them past their freshness, returned while they were being renewed."""

    @property
    def hits(self) -> int:
        """How many values were returned."""
        return int(self.tally)


@dataclass(slots=True)
class Counts:
    """What happened to the keys of one namespace, or of all."""

    tiers: Mapping[Tier, TierCounts] = field(default_factory=lambda: {tier: TierCounts() for tier in get_args(Tier)})
    """Where hits came from."""
    misses: int = 0
    stale_on_error: int = 0
    """Misses whose callback failed, and which got the previous value."""
    stored: int = 0
    computed: int = 0
    """Calls of callbacks that returned. A call for several keys counts for the namespace of the first."""
    refreshed: int = 0
    """Those among them that renewed a value still in use."""
    failed: int = 0
    """Calls of callbacks that raised."""
    compute_seconds: float = 0.0
    """Total time spent in callbacks."""
    waited: int = 0
    """Callers who waited for somebody else's callback."""
    wait_seconds: float = 0.0
    invalidated: int = 0
    """Keys and tags that were invalidated, whatever the number of their entries. `flush` counts as one, in ``""``."""
    degraded: int = 0
    """Operations in which the server failed. One on several keys counts for the namespace of the first."""
    late: int = 0
    """Callers that gave up waiting for a callback because of a timeout."""
    evicted: int = 0
    """Entries evicted from this process's memory. What the server evicts is not known."""
    undecodable: int = 0
    """Entries whose bytes could not be read."""

    @property
    def hits(self) -> int:
        """Values that were returned without calling the callback."""
        return sum(counts.hits for counts in self.tiers.values())

    @property
    def stale(self) -> int:
        """Values past their freshness that were returned, as hits or because the callback failed."""
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
        """Set everything to zero, in place: others hold references to parts of this."""
        for name in _NUMBERS:
            setattr(self, name, 0)
        for counts in self.tiers.values():
            counts.tally, counts.stale = 0.0, 0


_NUMBERS: Final = tuple(each.name for each in fields(Counts) if each.name != "tiers")


class Counters:
    """The counts of one cache."""

    def __init__(self) -> None:
        self._namespaces: dict[str, Counts] = {}
        self._lock = Lock()  # held while a namespace is created

    def namespace(self, key: str) -> str:
        """The namespace in which a key, or a tag, is counted."""
        namespace, colon, _ = key.partition(":")
        if not colon:
            namespace = ""
        return namespace if namespace in self._namespaces or self._make(namespace) else OTHER

    def of(self, key: str) -> Counts:
        """The counts of a key's namespace, to be added to."""
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
        """In a forked child: start at zero, or the parent's counts would be reported twice."""
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
