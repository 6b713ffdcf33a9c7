"""Cache metrics for Prometheus: ``instrument(cache)``. What is measured, and how, is defined in `cache.metrics`.

Each process reports its own numbers. The client's multiprocess mode does not support custom collectors, so there only
the histograms appear: give each worker a port of its own, or use `backburner.otel`.
"""

from collections.abc import Callable, Iterator
from typing import Final
from weakref import WeakKeyDictionary

from backburner.cache.cache import Cache
from backburner.cache.metrics import BUCKETS, METRICS, Metric, Watched
from backburner.extras import extra

with extra("prometheus", needed_by="backburner.prometheus"):
    from prometheus_client import REGISTRY, CollectorRegistry, Histogram
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.core import Metric as MetricFamily
    from prometheus_client.registry import Collector

__all__ = ["instrument"]

_PREFIX: Final = "backburner_cache_"


def instrument(cache: Cache, name: str | None = None, *, registry: CollectorRegistry = REGISTRY) -> Callable[[], None]:
    """Export a cache's metrics to a registry.

    Args:
        name: value of the label ``cache``; by default the cache's prefix without its trailing colon.
        registry: where the metrics go; by default the client's global registry.

    Returns:
        A function that stops the export.

    Raises:
        ConfigError: the registry already exports a cache of that name.
    """
    # One collector for all caches: a registry accepts each metric name from one collector only.
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
            buckets=BUCKETS,
            registry=registry,
        )
        self._waited = Histogram(
            f"{_PREFIX}wait_seconds",
            "How long callers waited for the callback of another, in this process (flight) or in another one (lease).",
            ("cache", "namespace", "on"),
            buckets=BUCKETS,
            registry=registry,
        )
        registry.register(self)

    def computed(self, seconds: float, cache: str, namespace: str) -> None:
        self._computed.labels(cache, namespace).observe(seconds)

    def waited(self, seconds: float, cache: str, namespace: str, on: str) -> None:
        self._waited.labels(cache, namespace, on).observe(seconds)

    def collect(self) -> Iterator[MetricFamily]:
        stats = self.watched.stats()
        for metric in METRICS:
            family = _family(metric)
            for name, told in stats.items():
                for labels, figure in metric.read(told):
                    family.add_metric((name, *labels), figure)
            yield family


_collectors: WeakKeyDictionary[CollectorRegistry, _Collector] = WeakKeyDictionary()


def _family(metric: Metric) -> CounterMetricFamily | GaugeMetricFamily:
    unit = "_bytes" if metric.unit == "By" else ""
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    return kind(f"{_PREFIX}{metric.name.replace('.', '_')}{unit}", metric.text, labels=("cache", *metric.labels))
