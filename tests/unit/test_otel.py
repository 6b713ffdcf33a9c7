"""What OpenTelemetry is told, by its own SDK."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from backburner import Cache, otel
from backburner.errors import ConfigError
from backburner.events import Waited


def fail() -> None:
    raise LookupError("no value")


class Backend:
    """Where metrics and spans end up."""

    def __init__(self) -> None:
        self._reader, self._exporter = InMemoryMetricReader(), InMemorySpanExporter()
        self.meters = MeterProvider([self._reader])
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))

    def instrument(self, cache: Cache, name: str | None = None, **options: bool) -> Callable[[], None]:
        return otel.instrument(cache, name, meter_provider=self.meters, tracer_provider=self.tracers, **options)

    def point(self, metric: str, **attributes: str) -> Any:
        """The data point of a metric, by the ends of its attributes' names."""
        wanted = {f"backburner.cache.{name}": value for name, value in attributes.items()}
        told = self._reader.get_metrics_data()
        for scope in (scope for resource in told.resource_metrics for scope in resource.scope_metrics):
            for found in (found for found in scope.metrics if found.name == f"backburner.cache.{metric}"):
                return next((point for point in found.data.data_points if point.attributes == wanted), None)
        return None

    def spans(self) -> list[tuple[str, Mapping[str, Any] | None, StatusCode]]:
        return [(span.name, span.attributes, span.status.status_code) for span in self._exporter.get_finished_spans()]


@pytest.fixture
def backend() -> Iterator[Backend]:
    backend = Backend()
    yield backend
    backend.meters.shutdown()
    backend.tracers.shutdown()


@pytest.fixture
def cache(backend: Backend) -> Iterator[Cache]:
    cache = Cache("memory://", prefix="shop:")
    end = backend.instrument(cache)
    yield cache
    end()


NAMESPACE = {"backburner.cache.name": "shop", "backburner.cache.namespace": "user"}


def test_counters_and_gauges_are_told_with_their_attributes(cache: Cache, backend: Backend) -> None:
    cache.put("user:1", 1)
    cache.get("user:1")
    cache.get("user:2")
    assert backend.point("hits", name="shop", namespace="user", tier="memory").value == 1
    assert backend.point("misses", name="shop", namespace="user").value == 1
    assert backend.point("memory.entries", name="shop").value == 1
    assert backend.point("available", name="shop").value == 1


def test_the_time_of_callbacks_and_of_waiting_is_told_as_histograms(cache: Cache, backend: Backend) -> None:
    cache.remember("user:1", 60, lambda: 1)
    cache.events.emit(Waited("user:1", 0.3, "lease"))
    computing = backend.point("compute.duration", name="shop", namespace="user")
    assert computing.count == 1
    assert computing.explicit_bounds[-1] == 60
    assert backend.point("wait.duration", name="shop", namespace="user", on="lease").sum == 0.3


def test_several_caches_share_a_provider_by_their_names(cache: Cache, backend: Backend) -> None:
    other = Cache("memory://", prefix="shop:")
    with pytest.raises(ConfigError, match="named 'shop'"):
        backend.instrument(other)
    end = backend.instrument(other, "sessions")
    other.get("user:1")
    assert backend.point("misses", name="sessions", namespace="user").value == 1
    end()
    assert backend.point("misses", name="sessions", namespace="user") is None


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_callback_runs_in_a_span_that_tells_the_namespace_and_no_key(
    cache: Cache, backend: Backend, asynchronous: bool
) -> None:
    inside = []

    def load() -> int:
        inside.append(trace.get_current_span().get_span_context().span_id)
        return 1

    async def aload() -> int:
        await asyncio.sleep(0)
        return load()

    if asynchronous:
        asyncio.run(cache.aremember("user:ann", 60, aload))
    else:
        cache.remember("user:ann", 60, load)
    cache.remember("user:ann", 60, fail)
    assert backend.spans() == [("cache.compute", NAMESPACE, StatusCode.UNSET)]
    assert inside[0] != 0
    assert trace.get_current_span().get_span_context().span_id == 0


def test_a_span_tells_that_its_callback_failed(cache: Cache, backend: Backend) -> None:
    with pytest.raises(LookupError):
        cache.remember("user:1", 60, fail)
    assert backend.spans() == [("cache.compute", NAMESPACE, StatusCode.ERROR)]


def test_keys_are_told_by_spans_when_asked_for(backend: Backend) -> None:
    cache = Cache("memory://", prefix="shop:")
    end = backend.instrument(cache, keys=True)
    cache.remember_many(["user:1", "user:2"], 60, lambda keys: dict.fromkeys(keys, 1))
    end()
    cache.remember("user:3", 60, lambda: 1)
    assert backend.spans() == [
        ("cache.compute", NAMESPACE | {"backburner.cache.keys": ("user:1", "user:2")}, StatusCode.UNSET)
    ]


def test_spans_can_be_left_out(backend: Backend) -> None:
    cache = Cache("memory://", prefix="shop:")
    end = backend.instrument(cache, spans=False)
    cache.remember("user:1", 60, lambda: 1)
    end()
    assert backend.spans() == []


def test_without_a_provider_nothing_is_told_and_nothing_breaks() -> None:
    cache = Cache("memory://", prefix="unheard:")
    end = otel.instrument(cache)
    assert cache.remember("user:1", 60, lambda: 1) == 1
    end()
