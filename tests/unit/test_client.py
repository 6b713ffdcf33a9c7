"""Clients of redis-py's, as this library builds them."""

import importlib.metadata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from backburner.errors import ConfigError
from backburner.queue import Celery
from backburner.redis.client import aconnect, connect


def test_any_number_of_threads_can_wait_at_the_same_time(redis_url: str) -> None:
    client = connect(redis_url, timeout=5.0)
    with ThreadPoolExecutor(120) as threads:  # redis-py's own pools raise at the 101st
        waited = threads.map(lambda number: client.execute_command("BLPOP", f"list:{number}", 0.3), range(120))
        assert list(waited) == [None] * 120
    client.close()


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), 1e10])
@pytest.mark.parametrize("connected", [connect, aconnect])
def test_a_timeout_that_no_socket_takes_is_refused(connected: Callable[..., Any], timeout: float) -> None:
    with pytest.raises(ConfigError, match="write timeout="):
        connected("redis://localhost", timeout=timeout)


def workers_pool(url: str, *, asynchronous: bool) -> Any:
    with Celery("tests", broker=url, set_as_current=False).connection_for_read() as connection:
        channel = connection.channel()
        return channel.async_pool if asynchronous else channel.pool


@pytest.mark.parametrize(
    "make_pool",
    [
        lambda url: connect(url, timeout=1).connection_pool,
        lambda url: aconnect(url, timeout=1).connection_pool,
        lambda url: workers_pool(url, asynchronous=False),
        lambda url: workers_pool(url, asynchronous=True),
    ],
    ids=["blocking", "asyncio", "a worker's", "a worker's in its loop"],
)
def test_a_new_connection_reads_nothing_from_disk(
    redis_url: str, make_pool: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_slow(name: str) -> str:
        raise AssertionError(f"the metadata of {name} were read")

    pool = make_pool(redis_url)
    monkeypatch.setattr(importlib.metadata, "version", too_slow)
    pool.connection_class(**pool.connection_kwargs)
