"""What caches do, for Prometheus: ``instrument(cache)``. What is measured, and how, is said in `cache.measures`.

Each process tells its own figures. The client's multiprocess mode knows no collectors that are asked, so there it shows
the histograms only: give each worker a port of its own, or use `backburner.otel`.
"""

from collections.abc import Callable, Iterator
from typing import Final
from weakref import WeakKeyDictionary

from backburner.cache.cache import Cache
from backburner.cache.measures import MEASURES, SECONDS, Measure, Watched
from backburner.extras import extra

with extra("prometheus", needed_by="backburner.prometheus"):
    from prometheus_client import REGISTRY, CollectorRegistry, Histogram
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector

__all__ = ["instrument"]

_PREFIX: Final = "backburner_cache_"


def instrument(cache: Cache, name: str | None = None, *, registry: CollectorRegistry = REGISTRY) -> Callable[[], None]:
    """Tell a registry what a cache does.

    Args:
        name: the label ``cache``; by default the cache's prefix without the colon at its end.
        registry: where to; by default the one that the client's servers show.

    Returns:
        A function that ends it.

    Raises:
        ConfigError: the registry has a cache of that name.
    """
    # One for all caches, since each name of a metric may come from one collector only.
    collector = _collectors.get(registry)
    if collector is None:
        collector = _collectors[registry] = _Collector(registry)
    return collector.watched.add(cache, cache.prefix.rstrip(":") if name is None else name)


class _Collector(Collector):
    def __init__(self, registry: CollectorRegistry) -> None:
        self.watched = Watched(self)
        self._computed = Histogram(
            f"{_PREFIX}compute_seconds",
            "How long callbacks took.",
            ("cache", "namespace"),
            buckets=SECONDS,
            registry=registry,
        )
        self._waited = Histogram(
            f"{_PREFIX}wait_seconds",
            "How long callers waited for the callback of another, in this process (flight) or in another one (lease).",
            ("cache", "namespace", "on"),
            buckets=SECONDS,
            registry=registry,
        )
        registry.register(self)

    def computed(self, seconds: float, cache: str, namespace: str) -> None:
        self._computed.labels(cache, namespace).observe(seconds)

    def waited(self, seconds: float, cache: str, namespace: str, on: str) -> None:
        self._waited.labels(cache, namespace, on).observe(seconds)

    def collect(self) -> Iterator[Metric]:
        stats = self.watched.stats()
        for measure in MEASURES:
            family = _family(measure)
            for name, told in stats.items():
                for labels, figure in measure.read(told):
                    family.add_metric((name, *labels), figure)
            yield family


_collectors: WeakKeyDictionary[CollectorRegistry, _Collector] = WeakKeyDictionary()


def _family(measure: Measure) -> CounterMetricFamily | GaugeMetricFamily:
    unit = "_bytes" if measure.unit == "By" else ""
    kind = CounterMetricFamily if measure.kind == "counter" else GaugeMetricFamily
    return kind(f"{_PREFIX}{measure.name.replace('.', '_')}{unit}", measure.text, labels=("cache", *measure.labels))
