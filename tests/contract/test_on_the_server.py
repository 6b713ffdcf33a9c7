"""What lies on the server: under which names, for how long, and what others may have put there."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from backburner import Cache
from backburner.cache.entry import Entry


@pytest.fixture
def server(redis_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def cache(redis_url: str) -> Iterator[Cache]:
    cache = Cache(redis_url, prefix="app*[1]:", strict=True)
    yield cache
    cache.close()


def _names(server: Any) -> list[bytes]:
    return list(server.scan_iter())


def test_everything_is_under_the_prefix(cache: Cache, server: Any) -> None:
    cache.tags("books").put("book:1", "Emma")
    cache.increment("visits")
    assert _names(server) != []
    assert all(key.startswith(b"app*[1]:") for key in _names(server))


def test_flush_removes_what_the_prefix_owns_and_nothing_else(cache: Cache, server: Any) -> None:
    others = {"appXX1:key": "1", "app*1:key": "2", "app*[1]": "3", "celery": "4", "cache:key": "5"}
    server.mset(others)
    for number in range(2500):
        cache.put(f"key:{number}", number)
    cache.tags("books").put("tagged", 1)
    cache.flush()
    assert sorted(_names(server)) == sorted(key.encode() for key in others)


def test_of_two_flushes_at_once_the_one_that_ends_takes_nothing_from_the_other(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is at its end when the other begins; what is computed in between ends while the other is half-way."""
    monkeypatch.setattr("backburner.cache.stores.redis._SCAN_BATCH", 1)
    keys = [f"key:{number}" for number in range(200)]

    async def main() -> None:
        cache = Cache(redis_url, l1=False, strict=True, timeout=5)
        store = cache._aengine().store
        command, steps = store._command, iter(range(10**6))
        ends, half_way = (asyncio.Event() for _ in range(2))
        go_on, finish = (asyncio.Event() for _ in range(2))

        async def first(*words: Any) -> Any:
            if words[0].startswith("EVAL") and "SCAN" in said:
                ends.set()
                await go_on.wait()
            said.add(words[0])
            return await command(*words)

        async def second(*words: Any) -> Any:
            if words[0] == "SCAN" and next(steps) == 15:
                half_way.set()
                await finish.wait()
            return await command(*words)

        said: set[str] = set()
        monkeypatch.setattr(store, "_command", first)
        one = asyncio.create_task(cache.aflush())
        await ends.wait()
        monkeypatch.setattr(store, "_command", command)
        turn = await store.begin(dict.fromkeys(keys, b""), (), 60, 60)
        assert len(turn.keys) == len(keys)
        monkeypatch.setattr(store, "_command", second)
        other = asyncio.create_task(cache.aflush())
        await half_way.wait()
        monkeypatch.setattr(store, "_command", command)
        go_on.set()
        assert await one
        now = time.time()
        await store.finish(turn, {key: Entry(b"J1", now, now + 60, now + 60, now + 60) for key in keys}, now)
        finish.set()
        assert await other
        assert await cache.amany(keys) == {}
        await cache.aclose()

    asyncio.run(main())


def test_every_key_has_an_end_except_what_was_put_for_ever(cache: Cache, server: Any) -> None:
    tagged = cache.tags("books")
    tagged.put("put", 1, ttl=10)
    tagged.add("add", 1)
    tagged.put_many({"many": 1, "more": 2}, ttl=10)
    tagged.increment("increment")
    cache.decrement("decrement")
    tagged.remember("remember", 5, lambda: 1)
    cache.touch("put", 20)
    cache.expire("add")
    cache.forever("forever", 1)
    without_end = {key for key in _names(server) if server.pttl(key) == -1}
    assert without_end == {b"app*[1]:forever"}


def test_the_versions_of_tags_outlive_the_entries_that_carry_them(cache: Cache, server: Any) -> None:
    tag = b"app*[1]:\x01tag:books"
    cache.tags("books").put("short", 1, ttl=10)
    assert server.ttl(tag) > 10
    cache.tags("books").put("long", 1, ttl=1000)
    assert server.ttl(tag) > 1000
    cache.tags("books").put("short", 1, ttl=10)
    assert server.ttl(tag) > 1000
    cache.tags("books").forever("forever", 1)
    assert server.ttl(tag) == -1


def test_touch_moves_the_servers_end_too(cache: Cache, server: Any) -> None:
    cache.put("key", 1, ttl=10)
    cache.touch("key", 1000)
    assert server.ttl("app*[1]:key") > 900


def test_an_entry_that_lost_its_tags_version_is_a_miss(cache: Cache, server: Any) -> None:
    cache.tags("books").put("book:1", "Emma")
    server.delete(b"app*[1]:\x01tag:books")
    assert cache.missing("book:1")


def test_flushing_a_tag_costs_one_command_however_many_entries_carry_it(cache: Cache, server: Any) -> None:
    tagged = cache.tags("books")
    tagged.put_many({f"book:{number}": number for number in range(5000)})
    cache.tags("others").flush()  # the first time, the server has to be given the script
    server.config_resetstat()
    tagged.flush()
    calls = {name.removeprefix("cmdstat_"): told["calls"] for name, told in server.info("commandstats").items()}
    assert (calls.pop("evalsha"), calls.pop("unlink")) == (1, 1)
    assert calls.keys() <= {"ping", "config|resetstat", "info", "exists", "set", "time"}
    assert cache.missing("book:42")


def test_scripts_survive_a_script_flush(cache: Cache, server: Any) -> None:
    cache.increment("visits")
    server.script_flush()
    assert cache.increment("visits") == 2


def test_another_process_sees_what_was_written(cache: Cache, redis_url: str) -> None:
    cache.tags("users").put("user:1", {"name": "Ada"})
    other = Cache(redis_url, prefix="app*[1]:", strict=True)
    assert other.get("user:1") == {"name": "Ada"}
    other.tags("users").flush()
    assert cache.missing("user:1")
    other.close()


def test_a_key_of_another_kind_degrades_and_breaks_nothing(redis_url: str, server: Any) -> None:
    cache = Cache(redis_url, prefix="app:")
    server.rpush("app:key", "a list")
    assert cache.get("key", "default") == "default"
    assert cache.remember("key", 60, lambda: 5) == 5
    assert cache.increment("key") == 0
    assert cache.stats().available
    assert cache.put("key", 6) is True
    assert cache.get("key") == 6
    cache.close()


@given(
    payload=st.binary(max_size=50),
    times=st.tuples(*[st.floats(0, 1e11)] * 4),
    tags=st.lists(st.tuples(st.text(min_size=1, max_size=20), st.binary(min_size=8, max_size=8)), max_size=4),
)
def test_an_entry_is_packed_and_unpacked(
    payload: bytes, times: tuple[float, float, float, float], tags: list[tuple[str, bytes]]
) -> None:
    entry = Entry(payload, *times, tuple(tags), 0.5)
    assert Entry.unpack(entry.pack("key"), "key") == entry
