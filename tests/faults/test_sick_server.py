"""A server that refuses, stalls, delays, cuts, dies and returns: what callers get, and how long it takes.

Time limits are the budget plus what a busy machine may add; they tell a quarter of a second from the seconds that
waiting would take, and microseconds from a quarter of a second. How fast it really is, is measured in benchmarks.
"""

import asyncio
import functools
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from backburner import Cache
from backburner.errors import StoreUnavailable
from backburner.events import BreakerClosed, BreakerOpened, Degraded, Event
from backburner.redis.embedded import EmbeddedServer
from backburner.testing import FaultProxy
from tests.conftest import Eventually
from tests.contract.conftest import through

BUDGET = 0.25
SLACK = 1.0


@pytest.fixture(params=["blocking", "asyncio"])
def cache(request: pytest.FixtureRequest, proxy: FaultProxy) -> Iterator[Any]:
    yield from through(request.param, Cache(proxy.url, timeout=BUDGET))


def _seen(cache: Any) -> list[Event]:
    seen: list[Event] = []
    cache.events.subscribe(seen.append)
    return seen


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    return call(), time.perf_counter() - began


FAULTS = {
    "refuses": FaultProxy.refuse,
    "stalls": FaultProxy.stall,
    "is too slow": lambda proxy: proxy.delay(2.0),
    "cuts replies": lambda proxy: proxy.cut(3),
}


@pytest.fixture(params=FAULTS)
def fault(request: pytest.FixtureRequest) -> Any:
    return FAULTS[request.param]


def test_reads_find_nothing_writes_say_so_and_callbacks_are_called(cache: Any, proxy: FaultProxy, fault: Any) -> None:
    cache.put("key", "value")
    fault(proxy)
    assert cache.get("key", "default") == "default"
    assert cache.many(["key"]) == {}
    assert cache.missing("key")
    assert cache.pull("key", 7) == 7
    assert cache.remember("key", 60, lambda: "computed") == "computed"
    assert cache.tags("books").remember("other", 60, lambda: "computed") == "computed"
    assert cache.put("key", "new") is False
    assert cache.put("key", "new", ttl=0) is False
    assert cache.add("key", "new") is False
    assert cache.put_many({"a": 1, "b": 2}) is False
    assert cache.forget("key") is False
    assert cache.touch("key") is False
    assert cache.expire("key") is False
    assert cache.increment("visits") == 0
    assert cache.increment("visits") is False
    assert cache.flush() is False
    assert cache.tags("books").flush() is False
    stats = cache.stats()
    assert stats.degraded >= 16
    assert not stats.available


def test_the_first_call_costs_its_budget_and_the_next_ones_next_to_nothing(
    cache: Any, proxy: FaultProxy, fault: Any
) -> None:
    cache.put("key", "value")
    fault(proxy)
    _, first = _timed(lambda: cache.remember("key", 60, lambda: "computed"))
    assert first < BUDGET + SLACK
    assert not cache.stats().available
    costs = [_timed(lambda: cache.get("key"))[1] for _ in range(300)]
    assert statistics.median(costs) < 0.002


def test_a_slow_callback_does_not_pay_a_second_budget(cache: Any, proxy: FaultProxy) -> None:
    cache.put("key", "value")
    proxy.stall()
    _, took = _timed(lambda: cache.remember("other", 60, lambda: time.sleep(0.3)))
    assert took < BUDGET + 0.3 + BUDGET


def test_each_failure_is_an_event_and_the_breaker_speaks_once(cache: Any, proxy: FaultProxy) -> None:
    seen = _seen(cache)
    proxy.refuse()
    for _ in range(5):
        cache.get("key")
    degraded = [event for event in seen if isinstance(event, Degraded)]
    assert [(event.operation, event.keys) for event in degraded] == [("get", ("key",))] * 5
    assert all(isinstance(event.error, StoreUnavailable) for event in degraded)
    assert sum(isinstance(event, BreakerOpened) for event in seen) == 1


def test_when_the_server_is_back_so_is_the_cache_within_two_seconds(
    cache: Any, proxy: FaultProxy, fault: Any, eventually: Eventually
) -> None:
    cache.put("key", "value")
    seen = _seen(cache)
    fault(proxy)
    until = time.monotonic() + 0.7
    while time.monotonic() < until:
        assert cache.get("key") is None  # long enough for several tries that fail
    proxy.pass_through()
    assert eventually(lambda: cache.get("key"), timeout=2) == "value"
    assert any(isinstance(event, BreakerClosed) for event in seen)


@pytest.mark.parametrize("write", ["forget", "put", "flush tag", "flush", "expire"])
def test_what_was_invalidated_while_the_server_was_away_is_not_served_when_it_is_back(
    cache: Any, proxy: FaultProxy, eventually: Eventually, write: str
) -> None:
    cache.tags("books").put("key", "old")
    proxy.stall()
    match write:
        case "forget":
            cache.forget("key")
        case "put":
            cache.put("key", "new")
        case "flush tag":
            cache.tags("books").flush()
        case "flush":
            cache.flush()
        case _:
            cache.expire("key")
    proxy.pass_through()
    assert eventually(lambda: cache.put("probe", 1), timeout=2)
    assert cache.get("key") is None
    assert cache.many(["key"]) == {}
    assert cache.remember("key", 60, lambda: "computed") == "computed"


@pytest.mark.parametrize("write", ["forget", "put", "flush tag", "flush", "expire"])
def test_what_is_invalidated_by_a_call_that_is_cancelled_is_not_served_afterwards(
    proxy: FaultProxy, write: str
) -> None:
    async def main() -> None:
        cache = Cache(proxy.url, l1=False, timeout=5)
        await cache.tags("books").aput("key", "old")
        proxy.stall()
        sent = proxy.request_bytes
        verbs = {
            "forget": functools.partial(cache.aforget, "key"),
            "put": functools.partial(cache.aput, "key", "new"),
            "flush tag": cache.tags("books").aflush,
            "flush": cache.aflush,
            "expire": functools.partial(cache.aexpire, "key"),
        }
        task = asyncio.create_task(verbs[write]())
        while proxy.request_bytes == sent:  # noqa: ASYNC110  # counted in another thread
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        proxy.reset()  # so that the server never hears of it
        proxy.pass_through()
        while not await cache.aput("probe", 1):  # noqa: ASYNC110  # the breaker says when
            await asyncio.sleep(0.001)
        assert await cache.aget("key") is None
        await cache.aclose()

    asyncio.run(main())


def test_what_is_written_once_the_server_is_back_stays(cache: Any, proxy: FaultProxy, eventually: Eventually) -> None:
    proxy.refuse()
    assert not cache.put("put", "while it was away")
    assert not cache.forget("added")
    assert not cache.forget("counted")
    assert cache.remember("remembered", 60, lambda: 1) == 1
    proxy.pass_through()
    eventually(lambda: cache.put("put", "afterwards"))  # without a read in between
    assert cache.add("added", "afterwards")
    assert cache.increment("counted", 5) == 5
    assert cache.many(["put", "added", "counted"]) == {"put": "afterwards", "added": "afterwards", "counted": 5}


def test_a_strict_cache_raises(proxy: FaultProxy) -> None:
    cache = Cache(proxy.url, timeout=BUDGET, strict=True)
    proxy.refuse()
    for call in (
        lambda: cache.get("key"),
        lambda: cache.put("key", 1),
        lambda: cache.remember("key", 60, lambda: 1),
        lambda: cache.increment("key"),
        cache.flush,
    ):
        with pytest.raises(StoreUnavailable):
            call()
    cache.close()


def test_a_cancelled_call_leaves_the_connection_in_step(proxy: FaultProxy) -> None:
    async def main() -> None:
        cache = Cache(proxy.url, timeout=2.0, strict=True)
        await cache.aput_many({f"key:{n}": n for n in range(50)})
        proxy.delay(0.02)
        for number in range(50):
            task = asyncio.create_task(cache.aget(f"key:{number}"))
            await asyncio.sleep(0)
            if number % 2:
                task.cancel()
            result = (await asyncio.gather(task, return_exceptions=True))[0]
            assert isinstance(result, asyncio.CancelledError) or result == number
        await cache.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("api", ["blocking", "asyncio"])
def test_a_server_that_is_killed_and_started_again_is_used_again_with_what_it_kept(
    api: str, tmp_path: Path, eventually: Eventually
) -> None:
    server = EmbeddedServer(tmp_path / "valkey")
    server.start()
    try:
        for cache in through(api, Cache(server.url, timeout=BUDGET)):
            cache.put("key", "value")
            cache.tags("books").put("tagged", "value")
            _on_disk(server.url)
            os.kill(server.pid, signal.SIGKILL)
            port = server.port
            server.stop()  # of a dead process: reaps it
            assert cache.remember("key", 60, lambda: "computed") == "computed"
            cache.tags("books").flush()
            server = EmbeddedServer(tmp_path / "valkey", port=port)
            server.start()
            assert eventually(functools.partial(cache.get, "key"), timeout=2) == "value"
            assert cache.get("tagged") is None
    finally:
        server.stop()


def _on_disk(url: str) -> None:
    """Wait until the server has written to disk what it was told."""
    with redis.Redis.from_url(url) as client:
        local, _ = client.execute_command("WAITAOF", 1, 0, 2000)
    assert local == 1


@pytest.fixture
def refusing(redis_url: str) -> Iterator[Callable[[], Any]]:
    """Has the server refuse to be written to, as it does when its replicas are gone or its disk is full."""
    with redis.Redis.from_url(redis_url) as client:
        yield lambda: client.config_set("min-replicas-to-write", 1)
        client.config_set("min-replicas-to-write", 0)


@pytest.fixture(params=["blocking", "asyncio"])
def with_copies(request: pytest.FixtureRequest, redis_url: str) -> Iterator[Any]:
    yield from through(request.param, Cache(redis_url, timeout=5))


def test_a_server_that_refuses_to_be_written_to_is_read_but_for_what_it_could_not_be_told(
    with_copies: Any, redis_url: str, refusing: Callable[[], Any], eventually: Eventually
) -> None:
    cache = with_copies
    for key in ("forgotten", "put", "expired", "kept"):
        cache.put(key, "old")
    for tag in ("books", "users"):
        cache.tags(tag).put(tag, "old")
    eventually(lambda: cache.get("kept") and cache.stats().tracking == "tracking")
    assert cache.many(["forgotten", "books"]) == {"forgotten": "old", "books": "old"}
    refusing()
    assert not cache.forget("forgotten")
    assert not cache.put("put", "new")
    assert not cache.expire("expired")
    assert not cache.tags("books").flush()
    kept = {"kept": "old", "users": "old"}
    for _ in range(2):
        assert {key: value for key in (*kept, "forgotten", "put", "books") if (value := cache.get(key))} == kept
        assert cache.many(["forgotten", "put", "expired", "kept", "books", "users"]) == kept
        assert cache.remember("kept", 60, lambda: "computed") == "old"
        assert cache.remember("books", 60, lambda: "computed") == "computed"
        assert "books" in str(cache.explain("books"))
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("min-replicas-to-write", 0)
    assert cache.put("put", "afterwards")  # makes good what is owed
    assert cache.many(["forgotten", "put", "expired", "kept", "books", "users"]) == kept | {"put": "afterwards"}


def test_a_server_whose_memory_is_full_can_be_flushed(redis_url: str) -> None:
    cache = Cache(redis_url, timeout=5)
    cache.tags("books").put("key", "value")
    cache.put("other", "value")
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory", 1)
        try:
            assert cache.tags("books").flush()
            assert cache.flush()
            assert not client.exists("cache:other")
        finally:
            client.config_set("maxmemory", 0)
    cache.close()
