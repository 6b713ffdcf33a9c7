"""Clients of redis-py's, as this library builds them."""

import importlib.metadata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from backburner.redis.client import aconnect, connect


def test_any_number_of_threads_can_wait_at_the_same_time(redis_url: str) -> None:
    client = connect(redis_url, timeout=5.0)
    with ThreadPoolExecutor(120) as threads:  # redis-py's own pools raise at the 101st
        waited = threads.map(lambda number: client.execute_command("BLPOP", f"list:{number}", 0.3), range(120))
        assert list(waited) == [None] * 120
    client.close()


@pytest.mark.parametrize("kind", [connect, aconnect])
def test_a_new_connection_reads_nothing_from_disk(kind: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def too_slow(name: str) -> str:
        raise AssertionError(f"the metadata of {name} were read")

    pool = kind("redis://localhost", timeout=1).connection_pool
    monkeypatch.setattr(importlib.metadata, "version", too_slow)
    pool.connection_class(**pool.connection_kwargs)
