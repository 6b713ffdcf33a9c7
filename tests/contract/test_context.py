"""What a callback that takes an argument decides about its entry."""

from collections.abc import Callable
from typing import Any

import pytest
import redis

from backburner import Cache
from backburner.cache.context import Context
from backburner.cache.runtime import run
from backburner.errors import StoreUnavailable
from backburner.events import Degraded
from tests.contract.conftest import Asynchronous, Clock


def _callback(cache: Any, meanwhile: Callable[[], object] = bool, *tags: str) -> Callable[[Context], object]:
    """One that names tags, in the way of the cache's world, before something happens."""

    def blocking(ctx: Context) -> str:
        ctx.tag(*tags)
        meanwhile()
        return "value"

    async def asynchronous(ctx: Context) -> str:
        await ctx.atag(*tags)
        meanwhile()
        return "value"

    return asynchronous if isinstance(cache, Asynchronous) else blocking


def _underlying(cache: Any) -> Cache:
    return getattr(cache, "_cache", cache)


def _flush_elsewhere(cache: Any, tag: str) -> None:
    """As another process does it: the flights of this one hear nothing of it."""
    run(_underlying(cache)._blocking.store.flush_tags([tag]))


def test_a_flush_after_a_tag_was_named_kills_the_value(cache: Any) -> None:
    def flush() -> None:
        _flush_elsewhere(cache, "user:5")

    assert cache.tags("users").remember("key", 60, _callback(cache, flush, "user:5", "user:6")) == "value"
    assert cache.missing("key")
    assert cache.tags("users").remember("key", 60, _callback(cache, bool, "user:5", "user:6")) == "value"
    assert cache.has("key")
    cache.tags("user:6").flush()
    assert cache.missing("key")


def test_a_tag_named_in_a_blocking_callback_of_an_asyncio_verb_counts_too(cache: Any) -> None:
    def load(ctx: Context) -> str:
        ctx.tag("user:5")
        _flush_elsewhere(cache, "user:5")
        return "value"

    assert cache.remember("key", 60, load) == "value"
    assert cache.missing("key")


def test_a_flush_of_a_tag_that_is_appended_later_is_not_missed(cache: Any) -> None:
    def load(ctx: Context) -> str:
        _flush_elsewhere(cache, "user:5")
        ctx.tags.append("user:5")
        return "value"

    assert cache.remember("key", 60, load) == "value"
    assert cache.missing("key")


def test_a_flush_of_before_and_one_of_another_tag_are_none_of_its_business(cache: Any) -> None:
    def load(ctx: Context) -> str:
        _flush_elsewhere(cache, "user:6")
        ctx.tags.append("user:5")
        return "value"

    _flush_elsewhere(cache, "user:5")
    cache.remember("key", 60, load)
    assert cache.has("key")
    cache.tags("user:5").flush()
    assert cache.missing("key")


def test_a_tag_of_nonsense_is_the_callbacks_error(cache: Any) -> None:
    with pytest.raises(ValueError, match="control characters"):
        cache.remember("key", 60, _callback(cache, bool, "user\n5"))
    assert cache.missing("key")


def test_a_tag_whose_version_cannot_be_read_keeps_the_value_from_being_stored(
    cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    cache.events.subscribe(seen.append, Degraded)
    cache.remember("warm-up", 1, lambda: None)  # makes the engine of this event loop
    for engine in (_underlying(cache)._blocking, *_underlying(cache)._aengines.values()):
        engine._strict = False

        async def pin(*_: object) -> list[bytes]:
            raise StoreUnavailable("scripted")

        monkeypatch.setattr(engine, "pin", pin)
    assert cache.remember("key", 60, _callback(cache, bool, "user:5")) == "value"
    assert cache.missing("key")
    assert [event.operation for event in seen] == ["remember"]


def test_a_callback_may_choose_how_long_its_value_lives(cache: Any, clock: Clock) -> None:
    def load(ctx: Context) -> str:
        assert ctx.key == "key"
        ctx.ttl = "10m"
        return "value"

    cache.remember("key", 60, load)
    clock.advance(599)
    assert cache.get("key") == "value"
    clock.advance(2)
    assert cache.missing("key")


def test_tags_live_as_long_as_the_entry_of_a_callback_that_chose_a_longer_life(redis_url: str) -> None:
    cache = Cache(redis_url, prefix="contract:", strict=True)

    def load(ctx: Context) -> str:
        ctx.ttl = 7200
        return "value"

    cache.tags("books").remember("key", 60, load)
    with redis.Redis.from_url(redis_url) as client:
        assert client.ttl("contract:\x01tag:books") > 7000
    cache.close()


def test_a_callback_may_keep_its_value_from_being_stored(cache: Any) -> None:
    def load(ctx: Context) -> str:
        ctx.skip()
        return "value"

    assert cache.remember("key", 60, load) == "value"
    assert cache.missing("key")


def test_a_callback_that_chooses_no_life_removes_what_was_there(cache: Any, clock: Clock) -> None:
    def load(ctx: Context) -> str:
        ctx.ttl = 0
        return "value"

    cache.remember("key", 10, lambda: "old", grace=60)
    clock.advance(11)
    assert cache.remember("key", 10, load, grace=60) == "value"
    assert cache.remember("key", 10, lambda: "new") == "new"
