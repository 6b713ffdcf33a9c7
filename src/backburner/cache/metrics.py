"""The metrics of a cache, independent of the system that collects them.

`backburner.prometheus` and `backburner.otel` export them in the form of each system. Most are read from `Cache.stats()`
at collection time, so they add nothing to the cost of a hit. Only the two durations, of callbacks and of waiting for
somebody else's callback, come from events. No label holds a key: there are too many, and keys may hold personal data.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from backburner.cache.cache import Cache
from backburner.cache.counters import Counts
from backburner.cache.stats import Stats
from backburner.errors import ConfigError
from backburner.events import Computed, Event, Waited

__all__ = ["BUCKETS", "METRICS", "Durations", "Metric", "Watched"]

BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the histograms in seconds: from a database lookup to a long report."""

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Metric:
    """One number taken from `Stats`, or one for each combination of labels."""

    name: str
    """Words separated by dots."""
    kind: Literal["counter", "gauge"]
    unit: str
    """In UCUM: ``By`` for bytes, or what is counted in braces; empty for a yes-or-no gauge."""
    text: str
    labels: Labels
    read: Callable[[Stats], Iterator[tuple[Labels, float]]]
    """Yields the values of the labels together with the number."""


def _by_namespace(name: str, unit: str, text: str, read: Callable[[Counts], float]) -> Metric:
    def figures(stats: Stats) -> Iterator[tuple[Labels, float]]:
        return (((namespace,), read(counts)) for namespace, counts in stats.namespaces.items())

    return Metric(name, "counter", unit, text, ("namespace",), figures)


def _by_tier(name: str, text: str, which: Literal["hits", "stale"]) -> Metric:
    def figures(stats: Stats) -> Iterator[tuple[Labels, float]]:
        for namespace, counts in stats.namespaces.items():
            for tier, hits in counts.tiers.items():
                yield (namespace, tier), getattr(hits, which)

    return Metric(name, "counter", "{hit}", text, ("namespace", "tier"), figures)


def _of_all(
    name: str, kind: Literal["counter", "gauge"], unit: str, text: str, read: Callable[[Stats], float]
) -> Metric:
    return Metric(name, kind, unit, text, (), lambda stats: iter([((), read(stats))]))


def _tracking(stats: Stats) -> Iterator[tuple[Labels, float]]:
    if stats.tracking is not None:
        yield (stats.tracking,), 1


METRICS: Final = (
    _by_tier("hits", "Values given without calling back, by where they came from.", "hits"),
    _by_tier("stale.hits", "Hits beyond their freshness, given while renewed.", "stale"),
    _by_namespace("misses", "{miss}", "Reads that found no value.", lambda counts: counts.misses),
    _by_namespace(
        "stale.fallbacks", "{read}", "Values from before, given when the callback failed.", lambda c: c.stale_on_error
    ),
    _by_namespace("writes", "{entry}", "Entries stored.", lambda counts: counts.stored),
    _by_namespace(
        "refreshes", "{call}", "Callbacks that renewed a value still given.", lambda counts: counts.refreshed
    ),
    _by_namespace("compute.failures", "{call}", "Callbacks that raised.", lambda counts: counts.failed),
    _by_namespace("invalidations", "{name}", "Keys and tags removed by name.", lambda counts: counts.invalidated),
    _by_namespace(
        "degraded.operations", "{operation}", "Operations the server could not do.", lambda counts: counts.degraded
    ),
    _by_namespace("undecodable.entries", "{entry}", "Entries that could not be read.", lambda c: c.undecodable),
    _by_namespace("memory.evictions", "{entry}", "Entries of this process that made room.", lambda c: c.evicted),
    _by_namespace("timeouts", "{caller}", "Callers who did not wait for the end of a callback.", lambda c: c.late),
    _of_all("memory.entries", "gauge", "{entry}", "Entries in this process.", lambda stats: stats.memory_items),
    _of_all("memory.size", "gauge", "By", "What entries take in this process.", lambda stats: stats.memory_bytes),
    _of_all("available", "gauge", "", "Whether the server answered when last asked.", lambda stats: stats.available),
    Metric("tracking", "gauge", "", "How changes of copies in memory are heard of.", ("mode",), _tracking),
)


class Durations(Protocol):
    """Receives durations one at a time, in seconds."""

    def computed(self, seconds: float, cache: str, namespace: str) -> None:
        """How long a callback took."""

    def waited(self, seconds: float, cache: str, namespace: str, on: str) -> None:
        """How long a caller waited for somebody else's callback, in this process (flight) or in another one (lease)."""


class Watched:
    """The exported caches, by the names that their metrics carry."""

    def __init__(self, durations: Durations) -> None:
        self._durations = durations
        self._caches: dict[str, Cache] = {}

    def add(self, cache: Cache, name: str) -> Callable[[], None]:
        """Start watching a cache. Returns a function that stops it.

        Raises:
            ConfigError: a cache of this name is being watched already.
        """
        if name in self._caches:
            raise ConfigError(f"there is a cache named {name!r} here already: write instrument(cache, 'another name')")
        self._caches[name] = cache

        def record(event: Event) -> None:
            match event:
                case Computed(keys, seconds):
                    self._durations.computed(seconds, name, cache.namespace(keys[0]))
                case Waited(key, seconds, on):
                    self._durations.waited(seconds, name, cache.namespace(key), on)
                case _:
                    pass

        unsubscribe = cache.events.subscribe(record, Computed, Waited)

        def end() -> None:
            unsubscribe()
            self._caches.pop(name, None)

        return end

    def stats(self) -> dict[str, Stats]:
        """The current `Stats` of each cache, by name."""
        return {name: cache.stats() for name, cache in list(self._caches.items())}
