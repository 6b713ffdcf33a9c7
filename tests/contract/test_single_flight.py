"""Of several callers one computes: threads, tasks, event loops, and what happens when one of them goes away."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import redis

from backburner import Cache
from backburner.cache import Context
from backburner.cache.keys import Keyspace
from backburner.events import LeaseLost
from tests.conftest import Eventually
from tests.contract.conftest import Later
from tests.processes import ROOT, free_port


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


# In a process of its own, for redis-py leaves sockets to the garbage collector, and Python threads that never began.
@pytest.mark.parametrize("url", ["memory://", "valkey"])
@pytest.mark.parametrize("verb", ["remember", "remember_many"])
def test_a_signal_that_strikes_anywhere_in_a_computation_keeps_nobody_waiting(
    request: pytest.FixtureRequest, url: str, verb: str
) -> None:
    url = request.getfixturevalue("redis_url") if url == "valkey" else url
    command = [sys.executable, "-m", "tests.contract.programs", "strike", url, verb]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)
    struck, left = json.loads(ran.stdout or f"[0, {ran.stderr!r}]")
    assert left == []
    assert struck > 5  # usually a thousand; fewer while a struck connection counts as a failure of the server


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
        load = Later("value")

        leader = asyncio.create_task(cache.aremember("key", 60, load))
        await load.began.wait()
        followers = [asyncio.create_task(cache.aremember("key", 60, load)) for _ in range(3)]
        while _waiting(cache) < 3:  # noqa: ASYNC110  # nobody says when they wait
            await asyncio.sleep(0)
        followers[0].cancel()
        load.go.set()
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
        while _waiting(cache) < 5:  # noqa: ASYNC110  # nobody says when they wait
            await asyncio.sleep(0)
        leader.cancel()
        results = await asyncio.gather(leader, *followers, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert results[1:] == ["value 2"] * 5
        assert calls == 2
        await cache.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("verb", ["remember", "remember_many", "flexible"])
def test_a_computation_apart_that_is_cancelled_before_it_begins_keeps_nobody_from_computing(
    cache: Cache, verb: str
) -> None:
    computed = []

    async def read(value: int) -> None:
        def load(*_: object) -> dict[str, int]:
            computed.append(value)
            return {"key": value}

        if verb == "remember":
            await cache.aremember("key", 60, load, hard_timeout=5)
        elif verb == "remember_many":
            await cache.aremember_many(["key"], 60, load, hard_timeout=5)
        else:
            await cache.aflexible("key", (0, 60), load)

    async def main() -> None:
        if verb == "flexible":
            cache.forever("key", 0)
            cache.expire("key")
        spawned = cache._aengine().runtime._spawned  # type: ignore[attr-defined]
        first = asyncio.create_task(read(1))
        while not spawned:  # noqa: ASYNC110  # nobody says when it is there
            await asyncio.sleep(0)
        for task in tuple(spawned):
            task.cancel()
        await asyncio.wait([first])
        await read(2)
        while cache._flights._going_on:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await cache.aclose()

    asyncio.run(main())
    assert computed == [2]


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
        load = Later("of the task")

        leader = asyncio.create_task(cache.aremember("key", 60, load))
        await load.began.wait()
        assert cache.remember("key", 60, lambda: "of the blocking verb") == "of the blocking verb"
        load.go.set()
        assert await leader == "of the task"
        await cache.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("of_list", [False, True])
@pytest.mark.parametrize("soft_timeout", [None, 0.05])
@pytest.mark.parametrize("left", ["behind", "to renew"])
def test_a_blocking_verb_does_not_wait_for_a_lease_of_the_event_loop_that_it_blocks(
    cache: Cache, left: str, soft_timeout: float | None, of_list: bool
) -> None:
    async def main() -> None:
        load = Later("of the task")

        def read() -> object:
            if of_list:
                return cache.remember_many(["key"], 60, lambda _: {"key": 1}, soft_timeout=soft_timeout)["key"]
            return cache.remember("key", 60, lambda: 1, soft_timeout=soft_timeout)

        if left == "to renew":
            await cache.aflexible("key", (0, 60), lambda: "stale")
        leader = asyncio.create_task(cache.tags("tag").aflexible("key", (0, 60), load))
        await load.began.wait()
        if left == "behind":
            await cache.tags("tag").aflush()
        assert read() == 1
        load.go.set()
        await leader
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


@pytest.mark.parametrize("of_list", [False, True])
def test_a_flush_of_other_tags_lets_a_computation_go_on_which_later_callers_share(
    cache: Cache, eventually: Eventually, of_list: bool
) -> None:
    slow, tagged = Slow(), cache.tags("tag")
    with ThreadPoolExecutor(2) as pool:
        if of_list:
            leader = pool.submit(lambda: tagged.remember_many(["key"], 60, lambda _: {"key": slow()})["key"])
        else:
            leader = pool.submit(tagged.remember, "key", 60, slow)
        assert slow.began.wait(10)
        cache.tags("another").flush()
        follower = pool.submit(tagged.remember, "key", 60, slow)
        eventually(lambda: _waiting(cache) == 1)
        slow.go.set()
        assert leader.result() == follower.result() == [1]
    assert cache.get("key") == [1]


@pytest.mark.parametrize("named", ["before", "meanwhile"])
def test_who_comes_after_a_flush_does_not_share_a_computation_of_before(cache: Cache, named: str) -> None:
    slow, source = Slow(), cache.tags("tag") if named == "before" else cache

    def load(ctx: Context) -> list[int]:
        if named == "meanwhile":
            ctx.tag("tag")
        ctx.skip()  # so that the entry does not tell
        return slow()

    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(source.remember, "key", 60, load)
        assert slow.began.wait(10)
        cache.tags("tag").flush()
        assert not cache._flights._under_way
        slow.go.set()
        assert leader.result() == [1]


@pytest.mark.parametrize("change", ["forget", "put", "tag"])
@pytest.mark.parametrize("of_list", [False, True])
def test_who_comes_after_another_process_changed_a_key_does_not_share_a_computation_of_before(
    redis_url: str, eventually: Eventually, change: str, of_list: bool
) -> None:
    here, there = (Cache(redis_url, l1=False, strict=True, timeout=5) for _ in range(2))  # as in two processes
    slow, tagged = Slow(), here.tags("tag")
    with ThreadPoolExecutor(2) as pool:
        if of_list:
            leader = pool.submit(lambda: tagged.remember_many(["key"], 60, lambda _: {"key": slow()})["key"])
        else:
            leader = pool.submit(tagged.remember, "key", 60, slow)
        assert slow.began.wait(10)
        if change == "forget":
            there.forget("key")
        elif change == "put":
            there.put("key", "of there", 60)
        else:
            there.tags("tag").flush()
        follower = pool.submit(tagged.remember, "key", 60, lambda: "after")
        eventually(lambda: _waiting(here) == 1)
        slow.go.set()
        assert leader.result() == [1]
        assert follower.result() == ("of there" if change == "put" else "after")
    here.close()
    there.close()


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


def test_what_another_process_computed_between_the_look_and_the_lease_is_not_computed_again(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, other = (Cache(redis_url, strict=True, timeout=5) for _ in range(2))
    begin = cache._blocking.store.begin

    async def late(*arguments: Any) -> Any:
        other.remember("key", 60, lambda: "of the other")
        return await begin(*arguments)

    monkeypatch.setattr(cache._blocking.store, "begin", late)
    assert cache.remember("key", 60, lambda: "computed twice") == "of the other"
    other.forget_many(["key", "more"])
    assert cache.remember_many(["key", "more"], 60, lambda keys: dict.fromkeys(keys, "computed")) == {
        "key": "of the other",
        "more": "computed",
    }
    cache.close()
    other.close()


@pytest.mark.parametrize("interrupt", [asyncio.CancelledError, KeyboardInterrupt, TimeoutError])
def test_a_lease_whose_grant_never_reached_its_holder_is_given_back_at_once(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, interrupt: type[BaseException]
) -> None:
    cache, other = (Cache(redis_url, strict=True, timeout=5) for _ in range(2))
    begin = cache._blocking.store._far._begin  # type: ignore[attr-defined]

    async def interrupted(*arguments: Any) -> None:
        await begin(*arguments)
        raise interrupt

    monkeypatch.setattr(cache._blocking.store._far, "_begin", interrupted)  # type: ignore[attr-defined]
    with pytest.raises(interrupt):
        cache.tags("tag").remember("key", 60, lambda: 1)
    with redis.Redis.from_url(redis_url) as client:
        assert not client.keys("*lease*")
    assert other.remember("key", 60, lambda: 2) == 2
    cache.close()
    other.close()


def test_bytes_that_cannot_be_read_are_replaced_by_what_is_computed(redis_url: str) -> None:
    cache = Cache(redis_url, strict=True, timeout=5)
    with redis.Redis.from_url(redis_url) as client:
        client.mset({"cache:key": "what is this?", "cache:other": "?"})
    assert cache.remember("key", 60, lambda: "computed") == "computed"
    assert cache.remember_many(["key", "other"], 60, lambda keys: dict.fromkeys(keys, 1)) == {
        "key": "computed",
        "other": 1,
    }
    assert cache.many(["key", "other"]) == {"key": "computed", "other": 1}
    cache.close()


def test_what_is_finished_while_everything_is_removed_and_was_begun_before_is_not_stored(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, other = (Cache(redis_url, l1=False, strict=True, timeout=5) for _ in range(2))
    outlives_flush, slow = Keyspace.outlives_flush, Slow()
    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(cache.remember, "key", 60, slow)
        assert slow.began.wait(10)

        def finished_first(keyspace: Keyspace, name: bytes) -> bool:  # asked between the walk's steps
            slow.go.set()
            assert leader.result() == [1]
            return outlives_flush(keyspace, name)

        monkeypatch.setattr(Keyspace, "outlives_flush", finished_first)
        assert other.flush()
        monkeypatch.undo()
    assert cache.missing("key")
    assert cache.remember("key", 60, lambda: "after") == "after"
    assert cache.get("key") == "after"
    with redis.Redis.from_url(redis_url) as client:
        assert client.keys("*flush*") == []
    cache.close()
    other.close()


def test_a_write_at_the_last_moment_wins_over_what_was_computed(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = cache._blocking.store.finish

    async def late(*arguments: Any) -> Any:
        cache.put("key", "written")
        return await finish(*arguments)

    monkeypatch.setattr(cache._blocking.store, "finish", late)
    assert cache.remember("key", 60, lambda: "computed") == "computed"
    assert cache.get("key") == "written"


@pytest.mark.slow
def test_an_event_loop_may_wait_for_any_number_of_keys_that_another_process_computes(redis_url: str) -> None:
    cache, other = (Cache(redis_url, l1=False, strict=True, timeout=5) for _ in range(2))
    keys = [f"key:{number}" for number in range(400)]

    async def main() -> list[str]:
        began, calls = asyncio.Event(), 0

        async def load() -> str:
            nonlocal calls
            calls += 1
            if calls == len(keys):
                began.set()
            await asyncio.sleep(1.5)
            return "of the other"

        async def fail() -> str:
            raise AssertionError

        computing = [asyncio.create_task(other.aremember(key, 60, load)) for key in keys]
        await began.wait()
        values = await asyncio.gather(*[cache.aremember(key, 60, fail) for key in keys])
        await asyncio.gather(*computing)
        await asyncio.gather(cache.aclose(), other.aclose())
        return values

    assert asyncio.run(main()) == ["of the other"] * len(keys)


def test_without_the_server_one_of_many_threads_computes(eventually: Eventually) -> None:
    cache = Cache(f"redis://127.0.0.1:{free_port()}/0")
    slow = Slow()
    with ThreadPoolExecutor(10) as pool:
        results = [pool.submit(cache.remember, "key", 60, slow) for _ in range(10)]
        eventually(lambda: _waiting(cache) == 9)
        slow.go.set()
        assert [result.result() for result in results] == [[1]] * 10
    assert slow.calls == 1
    cache.close()


def test_a_lease_that_was_taken_away_is_noticed_while_the_callback_runs(redis_url: str, eventually: Eventually) -> None:
    cache, other = (Cache(redis_url, strict=True, timeout=5, lease=0.05) for _ in range(2))
    seen: list[Any] = []
    cache.events.subscribe(seen.append, LeaseLost)
    slow = Slow()
    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(cache.remember, "key", 60, slow)
        assert slow.began.wait(10)
        other.forget("key")
        eventually(lambda: seen == [LeaseLost("key")])
        slow.go.set()
        assert leader.result() == [1]
    assert cache.missing("key")
    cache.close()
    other.close()


def test_a_blocking_verb_does_not_wait_for_what_its_own_event_loop_renews_in_the_background(redis_url: str) -> None:
    async def main() -> None:
        now = [1_700_000_000.0]
        cache = Cache(redis_url, strict=True, timeout=5, clock=lambda: now[0])
        load = Later("renewed")

        await cache.aflexible("key", (10, 60), lambda: "old")
        now[0] += 11
        assert await cache.aflexible("key", (10, 60), load) == "old"
        await load.began.wait()
        assert cache.remember("key", 60, lambda: "of the blocking verb") == "of the blocking verb"
        load.go.set()
        while await cache.aget("key") != "renewed":  # noqa: ASYNC110  # nobody says when it is stored
            await asyncio.sleep(0)
        await cache.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("circle", [["a", "b"], ["a", "b", "c"]])
def test_callbacks_that_ask_for_each_others_keys_are_told_instead_of_hanging(cache: Cache, circle: list[str]) -> None:
    all_compute = threading.Barrier(len(circle))

    def ask_for_the_next_from(number: int) -> object:
        all_compute.wait(10)
        return cache.remember(circle[(number + 1) % len(circle)], 60, int)

    with ThreadPoolExecutor(len(circle)) as pool:
        asking = [
            pool.submit(cache.remember, key, 60, partial(ask_for_the_next_from, number))
            for number, key in enumerate(circle)
        ]
        for each in asking:
            with pytest.raises(RuntimeError, match="each other's value"):
                each.result(10)
    assert [cache.remember(key, 60, lambda: 1) for key in circle] == [1] * len(circle)


def test_coroutines_that_ask_for_each_others_keys_are_told_instead_of_hanging(cache: Cache) -> None:
    async def main() -> None:
        begun: list[str] = []

        async def ask_for(key: str) -> object:
            begun.append(key)
            while len(begun) < 2:  # noqa: ASYNC110  # nobody says when both compute
                await asyncio.sleep(0)
            return await cache.aremember(key, 60, int)

        asking = [cache.aremember("a", 60, lambda: ask_for("b")), cache.aremember("b", 60, lambda: ask_for("a"))]
        for outcome in await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), 10):
            assert isinstance(outcome, RuntimeError)
        await cache.aclose()

    asyncio.run(main())


def test_callbacks_may_wait_for_others_that_do_not_wait_for_them(cache: Cache, eventually: Eventually) -> None:
    slow = Slow()
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(cache.remember, "last", 60, slow)
        assert slow.began.wait(10)
        asking = [
            pool.submit(cache.remember, f"key:{n}", 60, lambda: cache.remember("last", 60, int)) for n in range(4)
        ]
        eventually(lambda: _waiting(cache) == 4)
        slow.go.set()
        assert [each.result(10) for each in (first, *asking)] == [[1]] * 5


def test_a_key_that_another_list_left_out_is_computed_by_who_waited_for_it(
    cache: Cache, eventually: Eventually
) -> None:
    began, go = threading.Event(), threading.Event()

    def load(keys: list[str]) -> dict[str, int]:
        began.set()
        assert go.wait(10)
        return {"a": 1}

    async def asynchronous() -> dict[str, int]:
        async def later(keys: list[str]) -> dict[str, int]:
            return dict.fromkeys(keys, 2)

        try:
            return await cache.aremember_many(["b"], 60, later)
        finally:
            await cache.aclose()

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(cache.remember_many, ["a", "b", "c"], 60, load)
        assert began.wait(10)
        second = pool.submit(cache.remember_many, ["c"], 60, lambda keys: dict.fromkeys(keys, 2))
        third = pool.submit(asyncio.run, asynchronous())
        fourth = pool.submit(cache.remember_many, ["a"], 60, lambda keys: {})
        eventually(lambda: _waiting(cache) == 3)
        go.set()
        assert first.result() == {"a": 1}
        assert second.result() == {"c": 2}
        assert third.result() == {"b": 2}
        assert fourth.result() == {"a": 1}


def test_what_a_list_leaves_out_is_nothing_to_a_callback_for_the_key_itself(
    cache: Cache, eventually: Eventually
) -> None:
    lists = [(threading.Event(), threading.Event()) for _ in range(2)]

    def leaves_out(number: int) -> Callable[[list[str]], dict[str, int]]:
        def load(keys: list[str]) -> dict[str, int]:
            began, go = lists[number]
            began.set()
            assert go.wait(10)
            return {}

        return load

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(cache.remember_many, ["key"], 60, leaves_out(0))
        assert lists[0][0].wait(10)
        second = pool.submit(cache.remember_many, ["key"], 60, leaves_out(1))
        eventually(lambda: _waiting(cache) == 1)
        lists[0][1].set()
        assert lists[1][0].wait(10)
        third = pool.submit(cache.remember, "key", 60, lambda: "found")
        eventually(lambda: _waiting(cache) == 1)
        lists[1][1].set()
        assert (first.result(), second.result(), third.result()) == ({}, {}, "found")
