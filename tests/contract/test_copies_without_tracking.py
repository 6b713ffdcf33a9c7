"""Copies where the server's own news cannot be had (RESP2): all caches tell what they change, whatever they hear."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from backburner import Cache
from tests.conftest import Eventually


@pytest.fixture(params=["redis_url", pytest.param("redis7_url", marks=pytest.mark.slow)], ids=["valkey", "redis7"])
def url(request: pytest.FixtureRequest) -> str:
    return f"{request.getfixturevalue(request.param)}?protocol=2"


@pytest.fixture
def mine(url: str, eventually: Eventually) -> Iterator[Cache]:
    cache = Cache(url, strict=True)
    cache.get("anything")
    eventually(lambda: cache._near is not None and cache._near._trusted)
    assert cache.stats().tracking == "pubsub"
    yield cache
    cache.close()


@pytest.fixture(params=["as this one", "with tracking", "without copies"])
def other(request: pytest.FixtureRequest, url: str, eventually: Eventually) -> Iterator[Cache]:
    """Another process, as far as copies go: none of them need know of the others."""
    match request.param:
        case "as this one":
            cache = Cache(url, strict=True)
        case "with tracking":
            cache = Cache(url.partition("?")[0], strict=True)
            cache.get("anything")
            eventually(lambda: cache.stats().tracking == "tracking")
        case _:
            cache = Cache(url.partition("?")[0], strict=True, l1=False)
    yield cache
    cache.close()


CHANGES: dict[str, tuple[Callable[[Cache], Any], Any]] = {
    "put": (lambda cache: cache.put("key", "new"), "new"),
    "put_many": (lambda cache: cache.put_many({"key": "new", "other": 1}), "new"),
    "forget": (lambda cache: cache.forget("key"), None),
    "pull": (lambda cache: cache.pull("key"), None),
    "add": (lambda cache: (cache.expire("key"), cache.add("key", "new")), "new"),
    "increment": (lambda cache: (cache.expire("key"), cache.increment("key", 5)), 5),
    "expire": (lambda cache: cache.expire("key"), None),
    "remember": (lambda cache: (cache.forget("key"), cache.remember("key", 60, lambda: "new")), "new"),
    "flush a tag": (lambda cache: cache.tags("books").flush(), None),
    "flush": (lambda cache: cache.flush(), None),
}


def test_what_one_changes_the_other_reads_and_keeps_no_copy_of_before(
    mine: Cache, other: Cache, eventually: Eventually
) -> None:
    for change, (make, expected) in CHANGES.items():
        mine.tags("books").put("key", "old")
        # The news of one's own write may come after the first read, and drop what it kept.
        eventually(lambda: (mine.get("key"), mine.stats().memory_items)[1])
        assert mine.get("key") == "old", change
        make(other)
        eventually(lambda: mine.get("key") == expected, timeout=3)  # noqa: B023  # called at once


def test_a_number_that_one_counts_is_read_by_the_other(mine: Cache, other: Cache, eventually: Eventually) -> None:
    for count in range(1, 4):
        other.increment("visits")
        eventually(lambda count=count: mine.get("visits") == count, timeout=3)


def test_a_cache_with_tracking_hears_of_those_without(mine: Cache, url: str, eventually: Eventually) -> None:
    tracking = Cache(url.partition("?")[0], strict=True)
    mine.put("key", "old")
    eventually(lambda: (tracking.get("key"), tracking.stats().memory_items)[1])
    assert tracking.stats().tracking == "tracking"
    mine.put("key", "new")
    eventually(lambda: tracking.get("key") == "new", timeout=3)
    tracking.close()


def test_nothing_is_published_where_nobody_needs_it(redis_url: str, eventually: Eventually) -> None:
    cache = Cache(redis_url, strict=True)
    cache.get("anything")
    eventually(lambda: cache.stats().tracking == "tracking")
    with redis.Redis.from_url(redis_url) as client:
        client.config_resetstat()
        cache.put("key", 1)
        cache.tags("books").flush()
        cache.flush()
        assert "cmdstat_publish" not in client.info("commandstats")
        assert not client.exists("cache:\x01changes")
    cache.close()


def test_listeners_are_still_told_after_a_flush(mine: Cache, other: Cache, eventually: Eventually) -> None:
    other.flush()
    mine.put("key", "old")
    eventually(lambda: (mine.get("key"), mine.stats().memory_items)[1])
    other.put("key", "new")
    eventually(lambda: mine.get("key") == "new", timeout=3)
