"""Of several callers one computes: threads, tasks, event loops, and what happens when one of them goes away."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from backburner import Cache
from tests.conftest import Eventually


@pytest.fixture(params=["memory://", "valkey"])
def cache(request: pytest.FixtureRequest) -> Any:
    url = request.getfixturevalue("redis_url") if request.param == "valkey" else request.param
    cache = Cache(url, strict=True, timeout=5)
    yield cache
    cache.close()


class Slow:
    """A callback that computes until it is let go."""

    def __init__(self) -> None:
        self.calls = 0
        self.began = threading.Event()
        self.go = threading.Event()

    def __call__(self) -> list[int]:
        self.calls += 1
        self.began.set()
        assert self.go.wait(10)
        return [self.calls]


def _waiting(cache: Cache) -> int:
    """How many callers wait for a flight now."""
    flights = list(cache._flights._under_way.values())
    return sum(len(flight.landed._done_callbacks) + len(flight.landed._condition._waiters) for flight in flights)


def test_of_many_threads_one_computes_and_each_gets_a_value_of_its_own(cache: Cache, eventually: Eventually) -> None:
    slow = Slow()
    with ThreadPoolExecutor(20) as pool:
        results = [pool.submit(cache.remember, "key", 60, slow) for _ in range(20)]
        eventually(lambda: _waiting(cache) == 19)
        slow.go.set()
        values = [result.result() for result in results]
    assert slow.calls == 1
    assert values == [[1]] * 20
    assert len({id(value) for value in values}) == 20


def test_of_many_tasks_one_computes(cache: Cache) -> None:
    calls = 0

    async def load() -> int:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.01)
        return calls

    async def main() -> list[int]:
        try:
            return await asyncio.gather(*[cache.aremember("key", 60, load) for _ in range(300)])
        finally:
            await cache.aclose()

    assert asyncio.run(main()) == [1] * 300


def test_threads_and_event_loops_share_one_computation(cache: Cache, eventually: Eventually) -> None:
    slow = Slow()

    async def task() -> list[int]:
        try:
            return await cache.aremember("key", 60, slow)
        finally:
            await cache.aclose()

    with ThreadPoolExecutor(4) as pool:
        leader = pool.submit(cache.remember, "key", 60, slow)
        assert slow.began.wait(10)
        followers = [pool.submit(asyncio.run, task()), pool.submit(asyncio.run, task())]
        followers.append(pool.submit(cache.remember, "key", 60, slow))
        eventually(lambda: _waiting(cache) == 3)
        slow.go.set()
        assert [future.result() for future in (leader, *followers)] == [[1]] * 4
    assert slow.calls == 1


def test_a_cancelled_follower_does_not_cancel_the_others(cache: Cache) -> None:
    async def main() -> None:
        began, go = asyncio.Event(), asyncio.Event()

        async def load() -> str:
            began.set()
            await go.wait()
            return "value"

        leader = asyncio.create_task(cache.aremember("key", 60, load))
        await began.wait()
        followers = [asyncio.create_task(cache.aremember("key", 60, load)) for _ in range(3)]
        while _waiting(cache) < 3:  # noqa: ASYNC110 - nobody says when they wait
            await asyncio.sleep(0)
        followers[0].cancel()
        go.set()
        results = await asyncio.gather(leader, *followers, return_exceptions=True)
        assert isinstance(results[1], asyncio.CancelledError)
        assert [results[0], *results[2:]] == ["value"] * 3
        await cache.aclose()

    asyncio.run(main())


def test_when_the_leader_is_cancelled_a_follower_leads(cache: Cache) -> None:
    async def main() -> None:
        calls = 0
        began = asyncio.Event()

        async def load() -> str:
            nonlocal calls
            calls += 1
            if calls == 1:
                began.set()
                await asyncio.Event().wait()
            return f"value {calls}"

        leader = asyncio.create_task(cache.aremember("key", 60, load))
        await began.wait()
        followers = [asyncio.create_task(cache.aremember("key", 60, load)) for _ in range(5)]
        while _waiting(cache) < 5:  # noqa: ASYNC110 - nobody says when they wait
            await asyncio.sleep(0)
        leader.cancel()
        results = await asyncio.gather(leader, *followers, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert results[1:] == ["value 2"] * 5
        assert calls == 2
        await cache.aclose()

    asyncio.run(main())


class Broken(Exception):
    """An error with an argument, as users' own have them."""


def test_an_error_reaches_every_waiter_as_its_own_object_and_the_next_call_tries_again(
    cache: Cache, eventually: Eventually
) -> None:
    began, go = threading.Event(), threading.Event()

    def load() -> None:
        began.set()
        assert go.wait(10)
        raise Broken("table", 7)

    with ThreadPoolExecutor(5) as pool:
        results = [pool.submit(cache.remember, "key", 60, load) for _ in range(5)]
        eventually(lambda: _waiting(cache) == 4)
        go.set()
        errors = [result.exception() for result in results]
    assert all(type(error) is Broken and error.args == ("table", 7) for error in errors)
    assert len({id(error) for error in errors}) == 5
    assert cache.remember("key", 60, lambda: "better") == "better"


def test_a_blocking_verb_inside_the_leaders_event_loop_computes_for_itself_instead_of_hanging(cache: Cache) -> None:
    async def main() -> None:
        began, go = asyncio.Event(), asyncio.Event()

        async def load() -> str:
            began.set()
            await go.wait()
            return "of the task"

        leader = asyncio.create_task(cache.aremember("key", 60, load))
        await began.wait()
        assert cache.remember("key", 60, lambda: "of the blocking verb") == "of the blocking verb"
        go.set()
        assert await leader == "of the task"
        await cache.aclose()

    asyncio.run(main())


def test_who_comes_after_a_write_does_not_share_a_computation_of_before(cache: Cache) -> None:
    slow = Slow()
    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(cache.remember, "key", 60, slow)
        assert slow.began.wait(10)
        cache.forget("key")
        assert cache.remember("key", 60, lambda: "after") == "after"
        slow.go.set()
        assert leader.result() == [1]
    assert cache.get("key") == "after"


def test_a_blocking_callback_that_is_asynchronous_is_refused_with_advice(cache: Cache) -> None:
    async def load() -> int:
        return 1

    with pytest.raises(TypeError, match="aremember"):
        cache.remember("key", 60, load)
    assert cache.missing("key")


def test_of_many_adders_one_succeeds(cache: Cache) -> None:
    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(lambda n: cache.add("key", n), range(64))) == 1


def test_of_many_pullers_one_gets_the_value(cache: Cache) -> None:
    cache.put("key", "value")
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda _: cache.pull("key"), range(64))).count("value") == 1


def test_no_increment_is_lost(cache: Cache) -> None:
    with ThreadPoolExecutor(16) as pool:
        totals = list(pool.map(lambda _: cache.increment("visits"), range(500)))
    assert sorted(totals) == list(range(1, 501))
