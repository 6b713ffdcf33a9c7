"""What Prometheus is told, as it would read it."""

from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from backburner import Cache, prometheus
from backburner.errors import ConfigError
from backburner.events import Waited


def fail() -> None:
    raise LookupError("no value")


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry(auto_describe=True)


@pytest.fixture
def cache(registry: CollectorRegistry) -> Iterator[Cache]:
    cache = Cache("memory://?max_items=2", prefix="shop:")
    end = prometheus.instrument(cache, registry=registry)
    yield cache
    end()


def told(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    """A figure of the text that Prometheus would be given."""
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    return None


def test_counters_are_told_by_cache_namespace_and_tier(cache: Cache, registry: CollectorRegistry) -> None:
    cache.put("user:1", 1)
    cache.get("user:1")
    cache.get("user:1")
    cache.get("book:1")
    hits = "backburner_cache_hits_total"
    assert told(registry, hits, cache="shop", namespace="user", tier="memory") == 2
    assert told(registry, hits, cache="shop", namespace="user", tier="server") == 0
    assert told(registry, "backburner_cache_misses_total", cache="shop", namespace="book") == 1
    assert told(registry, "backburner_cache_writes_total", cache="shop", namespace="user") == 1


def test_gauges_tell_what_is_kept_and_whether_the_server_answers(cache: Cache, registry: CollectorRegistry) -> None:
    cache.put_many({"a": 1, "b": 2, "c": 3})
    assert told(registry, "backburner_cache_memory_entries", cache="shop") == 2
    assert told(registry, "backburner_cache_memory_size_bytes", cache="shop") == cache.stats().memory_bytes > 0
    assert told(registry, "backburner_cache_memory_evictions_total", cache="shop", namespace="") == 1
    assert told(registry, "backburner_cache_available", cache="shop") == 1


def test_the_time_of_callbacks_and_of_waiting_is_told_as_histograms(cache: Cache, registry: CollectorRegistry) -> None:
    cache.remember("user:1", 60, lambda: 1)
    cache.remember("user:1", 60, fail)
    cache.events.emit(Waited("user:1", 0.3, "flight"))
    computing = {"cache": "shop", "namespace": "user"}
    assert told(registry, "backburner_cache_compute_seconds_count", **computing) == 1
    assert told(registry, "backburner_cache_compute_seconds_bucket", **computing, le="60.0") == 1
    waiting = {"cache": "shop", "namespace": "user", "on": "flight"}
    assert told(registry, "backburner_cache_wait_seconds_sum", **waiting) == 0.3
    assert told(registry, "backburner_cache_wait_seconds_bucket", **waiting, le="0.25") == 0
    assert told(registry, "backburner_cache_wait_seconds_bucket", **waiting, le="0.5") == 1


def test_several_caches_share_a_registry_by_their_names(cache: Cache, registry: CollectorRegistry) -> None:
    other = Cache("memory://", prefix="shop:")
    with pytest.raises(ConfigError, match="named 'shop'"):
        prometheus.instrument(other, registry=registry)
    end = prometheus.instrument(other, "sessions", registry=registry)
    other.get("user:1")
    misses = "backburner_cache_misses_total"
    assert told(registry, misses, cache="sessions", namespace="user") == 1
    assert told(registry, misses, cache="shop", namespace="user") is None
    end()
    assert told(registry, misses, cache="sessions", namespace="user") is None


def test_no_key_is_told(cache: Cache, registry: CollectorRegistry) -> None:
    cache.remember("user:ann@example.com", 60, lambda: 1)
    assert b"example" not in generate_latest(registry)


def test_hits_are_not_told_one_by_one(cache: Cache) -> None:
    assert {kind.__name__ for kind in cache.events.listening} == {"Computed", "Waited"}
