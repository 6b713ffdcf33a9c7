"""A cache without copies asks the server each time, also where the answer is the same as before: what that saves must
not show."""

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from backburner import Cache
from backburner.events import Undecodable
from tests.contract.conftest import Clock, through


@pytest.fixture(params=["blocking", "asyncio"])
def cache(request: pytest.FixtureRequest, redis_url: str, clock: Clock) -> Iterator[Any]:
    cache = Cache(redis_url, prefix="app:", strict=True, l1=False, timeout=5, clock=clock)
    yield from through(request.param, cache)


@pytest.fixture
def server(redis_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def _read_often(cache: Any, key: str = "key") -> Any:
    values = [cache.get(key) for _ in range(3)]
    assert values[0] == values[1] == values[2]
    return values[2]


LONG = {"chapters": ["It is a truth universally acknowledged"] * 200}


@pytest.mark.parametrize(
    "value", [{"title": "Emma"}, LONG, "Emma", 5, [], None], ids=["dict", "long", "text", "number", "list", "none"]
)
def test_each_reader_has_its_own_value(cache: Any, value: Any) -> None:
    cache.put("key", value, ttl=60)
    assert _read_often(cache) == value
    if isinstance(value, dict):
        cache.get("key")["title"] = "changed"
    assert cache.get("key") == value
    assert cache.many(["key"]) == {"key": value}


def test_its_end_and_the_flush_of_its_tags_are_seen_in_the_same_bytes(cache: Any, clock: Clock, server: Any) -> None:
    cache.tags("books").put("key", {"title": "Emma"}, ttl=60)
    before = server.get("app:key")
    assert _read_often(cache) == {"title": "Emma"}
    clock.advance(61)
    assert cache.get("key", "over") == "over"
    clock.advance(-61)
    assert cache.get("key") == {"title": "Emma"}
    cache.tags("books").flush()
    assert cache.get("key", "flushed") == "flushed"
    assert server.get("app:key") == before


def test_a_write_by_anybody_is_seen_at_once(cache: Any, server: Any, redis_url: str, clock: Clock) -> None:
    other = Cache(redis_url, prefix="app:", l1=False, timeout=5, clock=clock)
    for title in ("Emma", "Ella", "Emma"):
        other.put("key", {"title": title}, ttl=60)
        assert _read_often(cache) == {"title": title}
    other.forget("key")
    assert cache.get("key", "gone") == "gone"
    other.close()


def test_bytes_that_were_damaged_since_are_a_miss(cache: Any, server: Any) -> None:
    cache.put("key", {"title": "Emma"}, ttl=60)
    assert _read_often(cache) == {"title": "Emma"}
    seen: list[Undecodable] = []
    cache.events.subscribe(seen.append, Undecodable)
    server.setrange("app:key", server.strlen("app:key") - 5, "o")
    assert cache.get("key", "damaged") == "damaged"
    assert [event.key for event in seen] == ["key"]
    assert cache.get("key", "damaged") == "damaged"  # and no less when they come again
    assert len(seen) == 2


def test_what_is_touched_lives_on(cache: Any, clock: Clock) -> None:
    cache.put("key", "Emma", ttl=60)
    assert _read_often(cache) == "Emma"
    cache.touch("key", ttl=600)
    clock.advance(300)
    assert _read_often(cache) == "Emma"
    assert cache.pull("key") == "Emma"
    assert cache.missing("key")
