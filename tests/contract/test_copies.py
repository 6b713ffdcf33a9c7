"""Copies in this process of what lies on the server: as fast as memory, and never older than the news."""

import asyncio
import gc
import multiprocessing
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from backburner import Cache
from backburner.cache.engine import MISSING
from backburner.redis.command import packed
from backburner.redis.pipelined import PipelinedClient
from backburner.testing import FaultProxy
from tests.conftest import Eventually


@pytest.fixture
def cache(redis_url: str, eventually: Eventually) -> Iterator[Cache]:
    """A cache that keeps copies, from the moment the test begins."""
    cache = Cache(redis_url, strict=True)
    yield listening(cache, eventually)
    cache.close()


def listening(cache: Cache, eventually: Eventually) -> Cache:
    assert cache._near is not None
    cache.get("anything")
    eventually(lambda: cache._near._trusted)
    return cache


@pytest.fixture
def other(redis_url: str) -> Iterator[Cache]:
    """Another process, as far as copies go."""
    other = Cache(redis_url, strict=True, l1=False)
    yield other
    other.close()


def _kept(cache: Cache, redis_url: str, eventually: Eventually, *keys: str) -> None:
    """Have copies that only new writes drop.

    The news of one's own writes comes late and would drop them. It comes in order, so that of a last write ends it.
    """
    with redis.Redis.from_url(redis_url) as client:
        cache._near.ask(["cache:last"])
        client.set("cache:last", "")
        eventually(lambda: "cache:last" not in cache._near._tokens)
    for key in keys:
        assert cache.get(key) is not None
        assert cache._near.look(key) is not None


def _commands(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        stats = client.info("commandstats")
        return sum(told["calls"] for name, told in stats.items() if name in {"cmdstat_get", "cmdstat_mget"})


def test_a_value_that_was_read_is_read_again_without_the_server(
    cache: Cache, redis_url: str, eventually: Eventually
) -> None:
    cache.put("key", {"a": 1})
    cache.tags("books", "users").put("tagged", "text")
    assert cache.get("key") == {"a": 1}
    assert cache.get("tagged") == "text"
    _kept(cache, redis_url, eventually, "key", "tagged")
    before = _commands(redis_url)
    for _ in range(10):
        assert cache.get("key") == {"a": 1}
        assert cache.get("tagged") == "text"
        assert cache.remember("key", 60, dict) == {"a": 1}
        assert cache.many(["key", "tagged"]) == {"key": {"a": 1}, "tagged": "text"}
    assert _commands(redis_url) == before


def test_copies_are_each_readers_own(cache: Cache) -> None:
    cache.put("key", {"list": [1]})
    cache.get("key")["list"].append(2)
    cache.get("key")["list"].append(3)
    assert cache.get("key") == {"list": [1]}


@pytest.mark.parametrize(
    "change", ["put", "forget", "flush", "increment", "expire", "pull", "tag", "redis-cli", "touch"]
)
def test_a_change_in_another_process_is_seen(
    cache: Cache, other: Cache, redis_url: str, eventually: Eventually, change: str
) -> None:
    cache.tags("numbers").put("key", 1)
    assert cache.get("key") == cache.get("key") == 1
    match change:
        case "put":
            other.put("key", 2)
        case "increment":
            other.increment("key")
        case "tag":
            other.tags("numbers").flush()
        case "flush":
            other.flush()
        case "redis-cli":
            with redis.Redis.from_url(redis_url) as client:
                client.delete("cache:key")
        case "touch":
            other.touch("key", 0)
        case verb:
            getattr(other, verb)("key")
    expected = 2 if change in {"put", "increment"} else None
    eventually(lambda: cache.get("key") == expected, timeout=3)


def test_copies_of_entries_with_long_keys_are_kept_and_dropped_like_others(
    cache: Cache, other: Cache, redis_url: str, eventually: Eventually
) -> None:
    key = "title:" * 100
    cache.put(key, 1)
    _kept(cache, redis_url, eventually, key)
    before = _commands(redis_url)
    assert [cache.get(key), cache.many([key]), asyncio.run(cache.aget(key))] == [1, {key: 1}, 1]
    assert _commands(redis_url) == before
    other.put(key, 2)
    eventually(lambda: cache.get(key) == 2, timeout=3)


def test_an_end_on_the_server_is_seen(cache: Cache, eventually: Eventually) -> None:
    cache.put("key", 1, ttl=0.05)
    cache.get("key")
    eventually(lambda: cache.get("key") is None, timeout=2)


def test_ones_own_writes_are_seen_at_once(cache: Cache) -> None:
    for number in range(300):
        cache.put("key", number)
        assert cache.get("key") == number
        assert cache.get("key") == number
        cache.tags("t").put("tagged", number)
        assert cache.get("tagged") == number
        cache.tags("t").flush()
        assert cache.get("tagged") is None
        assert cache.increment("counter") == number + 1
        assert cache.get("counter") == number + 1


def test_blocking_and_asyncio_callers_share_the_copies(cache: Cache, redis_url: str, eventually: Eventually) -> None:
    async def main() -> None:
        await cache.aput("key", "value")
        assert await cache.aget("key") == "value"
        _kept(cache, redis_url, eventually, "key")
        before = _commands(redis_url)
        assert cache.get("key") == "value"
        assert await cache.aget("key") == "value"
        assert _commands(redis_url) == before
        cache.put("key", "other")
        assert await cache.aget("key") == "other"
        await cache.aclose()

    asyncio.run(main())


def test_an_answer_that_arrives_after_the_news_is_not_kept(cache: Cache, other: Cache, eventually: Eventually) -> None:
    near, far = cache._near, cache._blocking.store._far
    cache.put("key", "old")
    read = far.read_one

    async def read_and_dawdle(key: str) -> Any:
        entry = await read(key)
        other.put("key", "new")
        eventually(lambda: "cache:key" not in near._tokens, timeout=2)
        return entry

    far.read_one = read_and_dawdle
    assert cache.get("key") == "old"
    far.read_one = read
    assert cache.get("key") == "new"


def test_a_read_that_begins_while_the_connection_is_lost_leaves_no_copy(cache: Cache, eventually: Eventually) -> None:
    near = cache._near
    guard = near._guard

    class Lost:
        """In the place of the guard: the listening thread has its turn before the reader."""

        def __enter__(self) -> None:
            near._guard = guard
            near._distrust()
            guard.acquire()

        def __exit__(self, *_: object) -> None:
            guard.release()

    cache.put("key", "old")
    eventually(lambda: cache.get("key") == "old" and len(near) == 1)
    near.drop_all()
    near._guard = Lost()  # type: ignore[assignment]
    assert cache.get("key") == "old"
    assert len(near) == 0


def test_no_token_is_left_behind(cache: Cache) -> None:
    for number in range(50):
        cache.get(f"absent:{number}")
        cache.tags("a", "b").put(f"key:{number}", number)
        cache.many([f"key:{number}", "absent"])
    cache.tags("a").flush()
    cache.many([f"key:{number}" for number in range(50)])
    assert cache._near._tokens == {}


def test_when_the_connection_is_lost_copies_are_dropped_at_once(
    proxy: FaultProxy, other: Cache, eventually: Eventually
) -> None:
    cache = listening(Cache(proxy.url), eventually)
    cache.put("key", "old")
    assert cache.get("key") == "old"
    assert len(cache._near) == 1
    proxy.refuse()
    eventually(lambda: len(cache._near) == 0, timeout=2)
    other.put("key", "new")
    assert cache.get("key") is None
    proxy.pass_through()
    eventually(lambda: cache.get("key") == "new", timeout=3)
    eventually(lambda: cache._near._trusted, timeout=3)
    cache.close()


def test_when_the_server_stalls_copies_are_distrusted_within_a_second(
    proxy: FaultProxy, eventually: Eventually
) -> None:
    cache = listening(Cache(proxy.url), eventually)
    cache.put("key", "old")
    assert cache.get("key") == "old"
    proxy.stall()
    eventually(lambda: len(cache._near) == 0, timeout=1.5)
    cache.close()


def test_closing_ends_the_thread_and_a_closed_cache_can_be_used_again(cache: Cache, eventually: Eventually) -> None:
    cache.put("key", 1)
    thread = cache._near._tracking._thread
    cache.close()
    assert not thread.is_alive()
    assert len(cache._near) == 0
    assert listening(cache, eventually).get("key") == 1


def test_a_cache_that_is_gone_takes_its_thread_along(redis_url: str, eventually: Eventually) -> None:
    cache = listening(Cache(redis_url), eventually)
    thread = cache._near._tracking._thread
    cache._blocking.store._far._client.close()
    del cache
    eventually(lambda: gc.collect() is not None and not thread.is_alive(), timeout=3)


def _at_random(url: str, seed: int, seconds: float, result: Any) -> None:
    """Read, write and flush at random; then wait for quiet and tell what this process would still serve."""
    cache = Cache(url, strict=True, timeout=5)
    choose, until = random.Random(seed), time.monotonic() + seconds
    keys, tags = [f"key:{n}" for n in range(20)], ["red", "green", "blue"]
    operations = 0
    while time.monotonic() < until:
        key, tag = choose.choice(keys), choose.choice(tags)
        operations += 1
        match choose.randrange(20):
            case 0:
                cache.put(key, choose.random(), ttl=60)
            case 1:
                cache.tags(tag).put(key, choose.random(), ttl=60)
            case 2:
                cache.forget(key)
            case 3 if choose.random() < 0.3:
                cache.tags(tag).flush()
            case 4:
                cache.tags(tag).remember(key, 60, choose.random)
            case _:
                cache.get(key)
    result.put((seed, operations))
    result.close()
    result.join_thread()
    # Quiet: all have stopped writing when the parent says so, through the server itself.
    probe = Cache(url, prefix="probe:", strict=True, timeout=5, l1=False)
    while not probe.get("quiet"):
        time.sleep(0.01)
    time.sleep(0.3)  # more than any news needs; what is stale after that, would stay so
    truth = Cache(url, strict=True, timeout=5, l1=False)
    held = {
        key: value for key in keys if (value := cache._hit(key)) is not None and not repr(value).startswith("<_Missing")
    }
    stale = {key: value for key, value in held.items() if truth.get(key) != value}
    probe.put(f"result:{seed}", {"held": len(held), "stale": len(stale)})
    for each in (cache, probe, truth):
        each.close()


def _stress(url: str, seconds: float) -> tuple[int, int, int]:
    context = multiprocessing.get_context("spawn")
    done = context.Queue()
    workers = [context.Process(target=_at_random, args=(url, seed, seconds, done)) for seed in range(3)]
    for worker in workers:
        worker.start()
    operations = sum(done.get(timeout=seconds + 30)[1] for _ in workers)
    probe = Cache(url, prefix="probe:", strict=True, l1=False, timeout=5)
    probe.put("quiet", True)
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    results = [probe.get(f"result:{seed}") for seed in range(3)]
    probe.close()
    return operations, sum(result["held"] for result in results), sum(result["stale"] for result in results)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_three_processes_at_random_for_half_a_minute(redis_url: str) -> None:
    operations, held, stale = _stress(redis_url, 30.0)
    assert operations > 5000
    assert held > 0
    assert stale == 0


# In asyncio code


def test_an_event_loop_hears_by_itself_however_long_the_listening_thread_has_to_wait(
    redis_url: str, eventually: Eventually
) -> None:
    async def main(cache: Cache, other: Cache) -> None:
        await cache.aget("anything")
        await _until(lambda: cache.stats().tracking == "tracking")
        # From here on the thread says that all is well, and passes nothing on.
        cache._near._tracking._on_invalidated = lambda names: None
        for _ in range(3):
            for number in range(20):
                other.put("key", number)
                other.tags("books").put("tagged", number)
                await _until(lambda: cache._hit("key") is MISSING and cache._hit("tagged") is MISSING)
                assert (await cache.aget("key"), await cache.aget("tagged")) == (number, number)
                other.tags("books").flush()
                await _until(lambda: cache._hit("tagged") is MISSING)
                assert await cache.aget("tagged") is None
            # What was asked for holds for the next connection, too; in between, the thread would be needed.
            cache._near.drop_all()
            await cache._aengine().store._far._client.aclose()
            await cache.aget("anything")

    other = Cache(redis_url, strict=True, l1=False, timeout=5)
    cache = Cache(redis_url, strict=True, timeout=5)
    with asyncio.Runner() as runner:
        runner.run(main(cache, other))
        runner.run(cache.aclose())
    other.close()


def test_an_event_loop_whose_connection_may_not_hear_has_the_thread(
    redis_url: str, other: Cache, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = PipelinedClient._ask
    asked: list[Any] = []

    def refused(client: PipelinedClient, stream: Any) -> None:
        client._asked_for = [packed(("HELLO", 9)) for _ in client._asked_for]
        asked.append(client)
        ask(client, stream)

    monkeypatch.setattr(PipelinedClient, "_ask", refused)

    async def main(cache: Cache) -> None:
        await cache.aget("anything")
        await _until(lambda: cache.stats().tracking == "tracking")
        for number in range(20):
            other.put("key", number)
            await _until(lambda: cache._hit("key") is MISSING)
            assert await cache.aget("key") == number
        assert asked

    cache = Cache(redis_url, strict=True)
    with asyncio.Runner() as runner:
        runner.run(main(cache))
        runner.run(cache.aclose())


async def _until(predicate: Callable[[], object]) -> None:
    while not predicate():  # noqa: ASYNC110  # it changes in another thread; the test's time limit is the end
        await asyncio.sleep(0.001)
