"""Copies where the server's own news cannot be had (RESP2): the caches tell each other, whatever they change."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from backburner import Cache
from tests.conftest import Eventually


@pytest.fixture(params=["redis_url", pytest.param("redis7_url", marks=pytest.mark.slow)], ids=["valkey", "redis7"])
def url(request: pytest.FixtureRequest) -> str:
    return f"{request.getfixturevalue(request.param)}?protocol=2"


@pytest.fixture
def caches(url: str, eventually: Eventually) -> Iterator[tuple[Cache, Cache]]:
    """Two processes, as far as copies go."""
    pair = Cache(url, strict=True), Cache(url, strict=True)
    for cache in pair:
        cache.get("anything")
        eventually(lambda cache=cache: cache._near is not None and cache._near._trusted)
        assert cache.stats().tracking == "pubsub"
    yield pair
    for cache in pair:
        cache.close()


CHANGES: dict[str, tuple[Callable[[Cache], Any], Any]] = {
    "put": (lambda cache: cache.put("key", "new"), "new"),
    "put_many": (lambda cache: cache.put_many({"key": "new", "other": 1}), "new"),
    "forget": (lambda cache: cache.forget("key"), None),
    "pull": (lambda cache: cache.pull("key"), None),
    "expire": (lambda cache: cache.expire("key"), None),
    "remember": (lambda cache: (cache.forget("key"), cache.remember("key", 60, lambda: "new")), "new"),
    "flush a tag": (lambda cache: cache.tags("books").flush(), None),
    "flush": (lambda cache: cache.flush(), None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_one_changes_the_other_reads_and_keeps_no_copy_of_before(
    caches: tuple[Cache, Cache], eventually: Eventually, change: str
) -> None:
    mine, other = caches
    make, expected = CHANGES[change]
    mine.tags("books").put("key", "old")
    # The news of one's own write may come after the first read, and drop what it kept.
    eventually(lambda: (mine.get("key"), mine.stats().memory_items)[1])
    assert mine.get("key") == "old"
    make(other)
    eventually(lambda: mine.get("key") == expected, timeout=3)


def test_a_number_that_one_counts_is_read_by_the_other(caches: tuple[Cache, Cache], eventually: Eventually) -> None:
    mine, other = caches
    for count in range(1, 4):
        other.increment("visits")
        eventually(lambda count=count: mine.get("visits") == count, timeout=3)
