"""OpenTelemetry for caches: ``instrument(cache)`` exports metrics, and a span around each call of a callback.

What is measured, and how, is defined in `cache.metrics`. The semantic conventions do not cover caches yet; the names
follow their naming rules. A span carries the namespace of the keys, and the keys themselves only on request. Reads get
no spans: there are too many of them, and redis-py's own instrumentation covers those that reach the server.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from typing import Final
from weakref import WeakKeyDictionary

from backburner.cache.cache import Cache
from backburner.cache.metrics import BUCKETS, METRICS, Metric, Watched
from backburner.extras import extra

with extra("otel", needed_by="backburner.otel"):
    from opentelemetry import metrics, trace
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
    from opentelemetry.trace import TracerProvider

__all__ = ["instrument"]

_PREFIX: Final = "backburner.cache."


def instrument(
    cache: Cache,
    name: str | None = None,
    *,
    meter_provider: MeterProvider | None = None,
    tracer_provider: TracerProvider | None = None,
    spans: bool = True,
    keys: bool = False,
) -> Callable[[], None]:
    """Export a cache's metrics, and trace its callbacks.

    Args:
        name: the attribute ``backburner.cache.name``; by default the cache's prefix without its trailing colon.
        meter_provider: by default the global one, whether it is set before or after this call.
        tracer_provider: likewise.
        spans: whether calls of callbacks get a span, named ``cache.compute``.
        keys: whether spans carry the keys, as ``backburner.cache.keys``. Keys may hold personal data.

    Returns:
        A function that stops the export.

    Raises:
        ConfigError: the provider already exports a cache of that name.
    """
    name = cache.prefix.rstrip(":") if name is None else name
    home = meter_provider or _GLOBAL
    if home not in _meters:
        _meters[home] = _Meter(meter_provider)
    unwatch = _meters[home].watched.add(cache, name)
    if spans:
        cache.events.trace = _tracing(cache, name, tracer_provider, keys=keys)

    def end() -> None:
        unwatch()
        if spans:
            cache.events.trace = nullcontext

    return end


def _tracing(
    cache: Cache, name: str, provider: TracerProvider | None, *, keys: bool
) -> Callable[[Sequence[str]], AbstractContextManager[object]]:
    tracer = trace.get_tracer("backburner", version("backburner"), provider)

    def span(computed: Sequence[str]) -> AbstractContextManager[object]:
        attributes: dict[str, str | Sequence[str]] = _attributes(name, namespace=cache.namespace(computed[0]))
        if keys:
            attributes[f"{_PREFIX}keys"] = tuple(computed)
        return tracer.start_as_current_span("cache.compute", attributes=attributes)

    return span


class _Meter:
    """The instruments of one provider, created once and shared by all caches."""

    def __init__(self, provider: MeterProvider | None) -> None:
        self.watched = Watched(self)
        meter = metrics.get_meter("backburner", version("backburner"), provider)
        for metric in METRICS:
            make = meter.create_observable_counter if metric.kind == "counter" else meter.create_observable_gauge
            make(f"{_PREFIX}{metric.name}", [self._reader_of(metric)], metric.unit, metric.text)
        self._computed = meter.create_histogram(
            f"{_PREFIX}compute.duration",
            "s",
            "How long callbacks took.",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self._waited = meter.create_histogram(
            f"{_PREFIX}wait.duration",
            "s",
            "How long callers waited for the callback of another, in this process (flight) or in another one (lease).",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )

    def computed(self, seconds: float, cache: str, namespace: str) -> None:
        self._computed.record(seconds, _attributes(cache, namespace=namespace))

    def waited(self, seconds: float, cache: str, namespace: str, on: str) -> None:
        self._waited.record(seconds, _attributes(cache, namespace=namespace, on=on))

    def _reader_of(self, metric: Metric) -> Callable[[CallbackOptions], Iterator[Observation]]:
        def read(_: CallbackOptions) -> Iterator[Observation]:
            for name, stats in self.watched.stats().items():
                for labels, figure in metric.read(stats):
                    yield Observation(figure, _attributes(name, **dict(zip(metric.labels, labels, strict=True))))

        return read


class _Global:
    """Stands for the global provider, which may not have been set yet."""


_GLOBAL: Final = _Global()
_meters: WeakKeyDictionary[MeterProvider | _Global, _Meter] = WeakKeyDictionary()


def _attributes(cache: str, **more: str) -> dict[str, str | Sequence[str]]:
    return {f"{_PREFIX}name": cache, **{f"{_PREFIX}{label}": value for label, value in more.items()}}
