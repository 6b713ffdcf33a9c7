"""What `explain` says about a key, in every store and both worlds; and that asking leaves no trace."""

import math
from typing import Any

import pytest
import redis

from backburner import Cache
from backburner.cache.entry import Decision
from backburner.testing import FaultProxy
from tests.conftest import Eventually
from tests.contract.conftest import Clock


def fail() -> None:
    raise LookupError("no value")


def _on_a_server(cache: Any) -> bool:
    return getattr(cache, "_cache", cache)._memory is None


def test_a_fresh_entry_is_told_with_its_times_tags_and_size(cache: Any, clock: Clock) -> None:
    cache.tags("users", "profile").put("user:1", {"name": "Ann"}, 60)
    clock.advance(18)
    told = cache.explain("user:1")
    assert (told.decision, told.reason) == (Decision.HIT, "fresh for another 42 s")
    assert told.tier == ("server" if _on_a_server(cache) else "memory")
    assert told.on_server is (True if _on_a_server(cache) else None)
    assert (told.age, told.fresh_for, told.kept_for, told.refresh_in, told.compute_seconds) == (18, 42, 42, 42, 0)
    assert [tag.name for tag in told.tags] == ["users", "profile"]
    assert not any(tag.flushed for tag in told.tags)
    assert (told.codec, told.payload_bytes) == ("json", len('J{"name":"Ann"}'))
    if _on_a_server(cache):
        assert told.stored_bytes > told.payload_bytes + 40


def test_a_missing_entry_is_no_riddle(cache: Any) -> None:
    told = cache.explain("user:1")
    assert (told.decision, told.reason, told.tier) == (Decision.MISS, "there is no entry", None)
    assert str(told) == "'user:1': MISS, there is no entry\n  lies in   nothing"


def test_a_flush_is_blamed_on_its_tag(cache: Any, clock: Clock) -> None:
    cache.tags("users", "profile").put("user:1", 1, 60)
    clock.advance(12)
    cache.tags("users").flush()
    told = cache.explain("user:1")
    assert (told.decision, told.tier) == (Decision.MISS, None)
    assert told.reason == "tag 'users' was flushed since it was stored 12 s ago"
    assert {tag.name: tag.flushed for tag in told.tags} == {"users": True, "profile": False}


def test_a_stale_entry_says_for_how_long_it_is_one(cache: Any, clock: Clock) -> None:
    cache.remember("user:1", 10, lambda: "value", grace=60)
    clock.advance(22)
    told = cache.explain("user:1")
    assert (told.decision, told.reason) == (Decision.STALE, "its freshness ended 12 s ago")
    assert (told.fresh_for, told.kept_for) == (-12, 48)


def test_a_failed_renewal_is_told_while_it_keeps_others_from_trying(cache: Any, clock: Clock) -> None:
    cache.remember("user:1", 10, lambda: "value", grace=60)
    clock.advance(22)
    assert cache.remember("user:1", 10, fail, grace=60, throttle=5) == "value"
    told = cache.explain("user:1")
    assert told.decision is Decision.RESTING
    assert (
        told.reason == "its freshness ended 12 s ago, its callback has failed since, and is left alone for another 5 s"
    )


@pytest.mark.parametrize(
    ("value", "codec"), [(5, "counter"), ({"at": b"bytes"}, "json with types"), (["text"], "json")]
)
def test_the_codec_is_told(redis_url: str, value: object, codec: str) -> None:
    cache = Cache(redis_url, l1=False, compression=None)
    cache.forever("key", value)
    told = cache.explain("key")
    assert (told.codec, told.fresh_for, told.reason) == (codec, math.inf, "fresh for ever")
    cache.close()


def test_compression_is_told_with_both_sizes(redis_url: str) -> None:
    cache = Cache(redis_url, l1=False, compression="zstd")
    cache.put("key", ["text"] * 5000)
    told = cache.explain("key")
    assert told.codec == "json, compressed"
    assert told.stored_bytes < 1000 < told.payload_bytes
    cache.close()


def test_bytes_that_cannot_be_read_are_told_and_not_counted(redis_url: str) -> None:
    cache, seen = Cache(redis_url, l1=False), []
    cache.events.subscribe(seen.append)
    with redis.Redis.from_url(redis_url) as client:
        client.set("cache:key", b"anything")
    told = cache.explain("key")
    assert (told.decision, told.on_server, told.stored_bytes) == (Decision.MISS, True, 8)
    assert told.reason.startswith("its bytes cannot be read: ")
    assert seen == []
    cache.close()


def test_a_server_that_is_gone_is_told_and_so_is_what_it_has_not_been_told(proxy: FaultProxy) -> None:
    cache = Cache(proxy.url, l1=False)
    cache.put("user:1", 1)
    cache.put("user:2", 1)
    proxy.refuse()
    cache.forget("user:1")
    told = cache.explain("user:1")
    assert (told.decision, told.on_server) == (Decision.MISS, None)
    assert told.reason.startswith("the server does not answer: ")
    proxy.pass_through()
    cache._breaker.succeeded()
    told = cache.explain("user:1")
    assert (told.decision, told.tier, told.on_server) == (Decision.MISS, None, True)
    assert "was removed while the server did not answer" in told.reason
    assert cache.explain("user:2").decision is Decision.HIT
    assert cache.get("user:1") is None
    assert cache.explain("user:1").reason == "there is no entry"
    cache.close()


def test_a_copy_in_this_process_is_told_beside_what_the_server_has(redis_url: str, eventually: Eventually) -> None:
    cache = Cache(redis_url, strict=True)
    cache.put("user:1", 1, 600)
    eventually(lambda: cache.get("user:1") and cache.stats().memory_items)
    told = cache.explain("user:1")
    assert (told.tier, told.in_memory, told.on_server) == ("memory", True, True)
    assert told.refresh_in > 500
    assert "lies in   memory and server" in str(told)
    cache.close()


def test_a_copy_is_told_while_the_server_does_not_answer(redis_url: str, eventually: Eventually) -> None:
    cache = Cache(redis_url)
    cache.put("user:1", 1, 600)
    eventually(lambda: cache.get("user:1") and cache.stats().memory_items)
    cache._breaker.failed(ConnectionError("cut"))
    told = cache.explain("user:1")
    assert (told.decision, told.tier, told.in_memory, told.on_server) == (Decision.HIT, "memory", True, None)
    assert cache.explain("user:2").reason.startswith("the server does not answer: ")
    cache.close()


def test_asking_changes_nothing() -> None:
    cache, seen = Cache("memory://?max_items=2"), []
    cache.put("old", 1)
    cache.put("new", 2)
    before = cache.stats()
    cache.events.subscribe(seen.append)
    assert cache.explain("old").tier == "memory"
    cache.explain("nothing")
    assert seen == []
    assert cache.stats() == before
    cache.put("newer", 3)
    assert cache.missing("old")


def test_it_reads_well(clock: Clock) -> None:
    cache = Cache("memory://", clock=clock)
    cache.tags("users").put("user:1", ["Ann"], 90)
    clock.advance(0.25)
    version = cache.explain("user:1").tags[0].stored
    assert str(cache.explain("user:1")) == "\n".join(
        [
            "'user:1': HIT, fresh for another 1.5 min",
            "  lies in   memory",
            "  age       250 ms, computed in 0 ms",
            "  renewed   in 1.5 min",
            "  fresh     for another 1.5 min",
            "  kept      for another 1.5 min",
            "  value     json, 8 bytes",
            f"  tag       'users' {version}, now {version}",
        ]
    )
