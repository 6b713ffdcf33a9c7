"""Locks, on every store, blocking and asyncio; and what happens when a holder, a waiter or the server goes away."""

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import pytest
import redis

from backburner import Cache
from backburner.cache.keys import Keyspace
from backburner.errors import LockTimeout, StoreUnavailable
from backburner.events import Degraded, Event, LockLost
from backburner.testing import FaultProxy
from tests.conftest import Eventually
from tests.contract.conftest import Asynchronous
from tests.contract.test_across_processes import Program


class AsynchronousLock(Asynchronous):
    """A lock whose methods, and whose `with`, are the asyncio ones."""

    def __enter__(self) -> Self:
        self._loop.run_until_complete(self._cache.__aenter__())
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.run_until_complete(self._cache.__aexit__(*error))


@pytest.fixture
def cache(plain_cache: Cache) -> Cache:
    return plain_cache


@pytest.fixture(params=["blocking", "asyncio"])
def lock(request: pytest.FixtureRequest, cache: Cache) -> Iterator[Callable[..., Any]]:
    """Makes locks; what their methods do, they do blocking or on an event loop."""
    if request.param == "blocking":
        yield cache.lock
        return
    with asyncio.Runner() as runner:
        yield lambda *args, **kwargs: AsynchronousLock(cache.lock(*args, **kwargs), runner.get_loop())
        runner.run(cache.aclose())


def _waiting(cache: Cache, name: str) -> int:
    """How many callers of this process wait for a lock now."""
    if cache._memory is not None:
        return len(cache._memory.locks._held[name].waiters)
    engines = [cache._blocking, *cache._aengines.values()]
    return sum(len(engine.store.locks._lines.get(name, ())) for engine in engines)


def _seen(cache: Cache) -> list[Event]:
    seen: list[Event] = []
    cache.events.subscribe(seen.append)
    return seen


def test_a_lock_has_one_holder_at_a_time(lock: Callable[..., Any]) -> None:
    one, other = lock("import"), lock("import")
    assert one.acquire() is True
    assert one.locked()
    assert other.locked()
    assert other.acquire(blocking=False) is False
    assert lock("another").acquire(blocking=False) is True
    assert one.release() is True
    assert not other.locked()
    assert other.acquire(blocking=False) is True


def test_only_the_owner_can_extend_or_release(lock: Callable[..., Any]) -> None:
    one, other = lock("import", ttl=30), lock("import", ttl=30)
    assert one.extend() is False
    assert one.release() is False
    one.acquire()
    assert other.release() is False
    assert other.extend(60) is False
    assert one.locked()
    assert one.extend("1m") is True
    assert one.release() is True
    assert one.release() is False
    assert one.extend() is False


def test_an_owner_elsewhere_is_known_by_its_token(lock: Callable[..., Any]) -> None:
    one = lock("import")
    one.acquire()
    elsewhere = lock("import", owner=one.owner)
    assert elsewhere.extend(60) is True
    assert elsewhere.release() is True
    assert not one.locked()


def test_every_owner_has_a_larger_number_than_those_before(lock: Callable[..., Any]) -> None:
    fences = []
    for _ in range(5):
        with lock("import") as held:
            fences.append(held.fence)
    ended = lock("import", ttl=0.05)
    ended.acquire()
    late = lock("import", wait=10)
    late.acquire()
    fences += [ended.fence, late.fence]
    assert fences == sorted(set(fences))
    assert fences[0] > 0


def test_a_lock_that_nobody_gives_back_ends_with_its_ttl(lock: Callable[..., Any]) -> None:
    assert lock("import", ttl=0.3).acquire() is True
    began = time.monotonic()
    assert lock("import", ttl=30, wait=10).acquire() is True
    assert time.monotonic() - began < 5


def test_extending_moves_the_end(lock: Callable[..., Any]) -> None:
    held = lock("import", ttl=0.2)
    held.acquire()
    assert held.extend(30) is True
    assert lock("import").acquire(wait=0.4) is False
    assert held.extend(0.05) is True
    assert lock("import").acquire(wait=10) is True


def test_who_waits_too_long_is_told(lock: Callable[..., Any]) -> None:
    lock("import").acquire()
    with pytest.raises(LockTimeout, match=r"'import' was not free within 0\.05 s\. Wait longer"):
        lock("import").block(0.05)
    with pytest.raises(LockTimeout, match=r"0\.06 s"), lock("import", wait=0.06):
        pytest.fail("two hold the lock")
    assert lock("import").acquire(wait=0.05) is False


def test_with_gives_the_lock_back_whatever_happens(lock: Callable[..., Any]) -> None:
    with pytest.raises(ZeroDivisionError), lock("import"):
        _ = 1 / 0
    assert not lock("import").locked()


def test_with_and_block_go_together(lock: Callable[..., Any]) -> None:
    held = lock("import")
    held.block(5)
    with held:
        assert held.locked()
    assert not held.locked()


def test_the_same_object_cannot_take_the_lock_twice(lock: Callable[..., Any]) -> None:
    held = lock("import")
    with held, pytest.raises(RuntimeError, match=r"holds the lock 'import' already.*makes its own"):
        held.acquire()


def test_losing_a_lock_is_told_and_harms_no_later_holder(lock: Callable[..., Any], cache: Cache) -> None:
    seen = _seen(cache)
    with lock("import", ttl=0.05):
        later = lock("import", wait=10)
        later.acquire()
    assert [event.name for event in seen if isinstance(event, LockLost)] == ["import"]
    assert later.locked()
    assert later.release() is True


@pytest.mark.parametrize("name", ["", "new\nline", 5, None, "x" * 1025])
def test_a_name_that_makes_no_sense_is_refused(cache: Cache, name: Any) -> None:
    with pytest.raises(ValueError, match="lock's name"):
        cache.lock(name)


@pytest.mark.parametrize("ttl", [0, -1, float("inf"), float("nan"), "soon", None, True])
def test_a_lock_needs_an_end(cache: Cache, ttl: Any) -> None:
    with pytest.raises(ValueError, match=r"length of time|may die"):
        cache.lock("import", ttl=ttl)
    held = cache.lock("import")
    held.acquire()
    if ttl is not None:
        with pytest.raises(ValueError, match=r"length of time|may die"):
            held.extend(ttl)


def test_threads_take_turns_and_none_is_forgotten(cache: Cache) -> None:
    inside = total = 0

    def work(_: int) -> int:
        nonlocal inside, total
        with cache.lock("counter", wait=30) as held:
            inside += 1
            assert inside == 1
            total += 1
            inside -= 1
            return held.fence

    with ThreadPoolExecutor(12) as pool:
        fences = list(pool.map(work, range(60)))
    assert total == 60
    assert len(set(fences)) == 60


def test_a_hundred_tasks_take_turns(cache: Cache) -> None:
    inside = 0

    async def work() -> int:
        nonlocal inside
        async with cache.lock("counter", wait=30) as held:
            inside += 1
            await asyncio.sleep(0)
            assert inside == 1
            inside -= 1
            return held.fence

    async def main() -> list[int]:
        try:
            return await asyncio.gather(*[work() for _ in range(100)])
        finally:
            await cache.aclose()

    assert len(set(asyncio.run(main()))) == 100


def test_a_waiter_is_woken_and_does_not_ask_again_and_again(
    cache: Cache, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = cache.lock("import", ttl=60)
    held.acquire()
    locks = cache._blocking.store.locks
    claims = 0
    claim = type(locks).claim

    async def counted(*args: Any) -> Any:
        nonlocal claims
        claims += 1
        return await claim(*args)

    monkeypatch.setattr(type(locks), "claim", counted)
    with ThreadPoolExecutor(1) as pool:
        waiter = pool.submit(cache.lock("import").acquire, wait=50)
        eventually(lambda: _waiting(cache, "import") == 1)
        threading.Event().wait(0.7)  # longer than one command waits in the server; if it polled, it would ask now
        assert not waiter.done()
        released_at = time.monotonic()
        held.release()
        assert waiter.result(10)
        assert time.monotonic() - released_at < 2
    assert claims == 2


def test_a_waiter_that_is_cancelled_passes_its_turn_on(cache: Cache) -> None:
    async def main() -> None:
        held = cache.lock("import", ttl=60)
        await held.aacquire()
        first = asyncio.create_task(cache.lock("import", ttl=60).aacquire())
        while _waiting(cache, "import") < 1:  # noqa: ASYNC110  # nobody says when they wait
            await asyncio.sleep(0)
        second = asyncio.create_task(cache.lock("import", ttl=60).aacquire())
        while _waiting(cache, "import") < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        began = time.monotonic()
        await held.arelease()  # the first has been woken by now, or is just being woken
        first.cancel()
        assert await second
        assert time.monotonic() - began < 4
        with pytest.raises(asyncio.CancelledError):
            await first
        await cache.aclose()

    asyncio.run(main())


def test_a_waiter_that_is_cancelled_long_before_leaves_the_others_waiting(cache: Cache) -> None:
    async def main() -> None:
        held = cache.lock("import", ttl=60)
        await held.aacquire()
        waiters = [asyncio.create_task(cache.lock("import", ttl=60).aacquire()) for _ in range(3)]
        while _waiting(cache, "import") < 3:  # noqa: ASYNC110  # nobody says when they wait
            await asyncio.sleep(0)
        waiters[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiters[0]
        assert await cache.lock("import").alocked()
        began = time.monotonic()
        await held.arelease()
        done, pending = await asyncio.wait(waiters[1:], return_when=asyncio.FIRST_COMPLETED, timeout=10)
        assert time.monotonic() - began < 4
        assert [task.result() for task in done] == [True]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await cache.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("interrupt", [TimeoutError, SystemExit])
def test_a_claim_that_a_signals_handler_interrupts_is_given_back(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, interrupt: type[BaseException]
) -> None:
    locks = type(cache._blocking.store.locks)
    claim = locks.claim

    async def interrupted(*arguments: Any) -> None:
        await claim(*arguments)
        raise interrupt

    with monkeypatch.context() as patch:
        patch.setattr(locks, "claim", interrupted)
        with pytest.raises(interrupt):
            cache.lock("import", ttl=60).acquire()
    assert cache.lock("import").acquire(blocking=False)


def test_an_event_loop_that_waited_and_ended_leaves_nothing_behind(cache: Cache) -> None:
    held = cache.lock("import", ttl=60)
    held.acquire()
    for _ in range(3):
        assert not asyncio.run(cache.lock("import").aacquire(wait=0.01))
    gc.collect()
    assert not cache._aengines
    held.release()


def test_a_lock_cannot_be_entered_by_who_is_in_it(lock: Callable[..., Any]) -> None:
    held = lock("import")
    with held:
        with pytest.raises(RuntimeError, match="holds the lock 'import' already"), held:
            raise AssertionError
        assert held.locked()
    with held:
        assert held.locked()
    held.acquire()
    with held:
        assert held.locked()
    assert not held.locked()


def test_threads_and_event_loops_share_a_lock(cache: Cache, eventually: Eventually) -> None:
    async def task() -> int:
        try:
            async with cache.lock("import", wait=30) as held:
                return held.fence
        finally:
            await cache.aclose()

    held = cache.lock("import", ttl=60)
    held.acquire()
    with ThreadPoolExecutor(2) as pool:
        waiter = pool.submit(asyncio.run, task())
        eventually(lambda: _waiting(cache, "import") == 1)
        held.release()
        assert waiter.result(10) > held.fence


def test_flush_leaves_locks_alone(cache: Cache) -> None:
    held = cache.lock("import")
    held.acquire()
    cache.put("key", 1)
    cache.flush()
    assert cache.missing("key")
    assert held.locked()
    assert held.release() is True


def test_the_locks_of_a_forked_child_are_its_own() -> None:
    cache = Cache("memory://")
    held = cache.lock("import")
    held.acquire()
    cache._after_fork()
    assert not held.locked()


def test_locks_that_nobody_gave_back_do_not_pile_up_in_memory() -> None:
    cache = Cache("memory://")
    for number in range(3000):
        cache.lock(f"order:{number}", ttl="1ms").acquire()
    assert cache._memory is not None
    assert len(cache._memory.locks._held) < 2500


# On a server


def test_what_locks_leave_on_the_server_is_under_the_prefix_and_ends(redis_url: str) -> None:
    cache = Cache(redis_url, prefix="shop:")
    cache.lock("held", ttl=30).acquire()
    with cache.lock("given back"):
        pass
    with redis.Redis.from_url(redis_url) as server:
        ends = {name: server.pttl(name) for name in server.scan_iter()}
    assert len(ends) == 3
    assert all(name.startswith(b"shop:\x01") and 0 < end <= 90_000 for name, end in ends.items())
    cache.close()


@pytest.mark.slow
def test_a_killed_holder_is_replaced_after_its_ttl(redis_url: str) -> None:
    cache = Cache(redis_url, timeout=5)
    holder = Program("hold", redis_url, "1.5")
    try:
        fence = int(holder.says())
        assert cache.lock("import").acquire(blocking=False) is False
    finally:
        holder.end()
    began = time.monotonic()
    with cache.lock("import", wait=20) as held:
        assert held.fence > fence
        assert time.monotonic() - began < 10
    cache.close()


def test_a_wake_up_that_died_with_its_waiter_is_made_good(
    redis_url: str, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backburner.cache.stores.locks._LOST", 0.3)
    cache = Cache(redis_url, timeout=5)
    cache.lock("import", ttl=60).acquire()
    with ThreadPoolExecutor(1) as pool, redis.Redis.from_url(redis_url) as server:
        waiter = pool.submit(cache.lock("import").acquire, wait=50)
        eventually(lambda: _waiting(cache, "import") == 1)
        server.delete(Keyspace(cache.prefix).lock("import"))  # free, and nobody says so
        assert waiter.result(10) is True
    cache.close()


@pytest.mark.slow
def test_two_processes_take_turns(redis_url: str) -> None:
    cache = Cache(redis_url, timeout=5)
    cache.put("counter", 0)
    programs = [Program("count", redis_url, "100") for _ in range(2)]
    try:
        assert [program.says() for program in programs] == ["ready", "ready"]
        for program in programs:
            program.tell("go")
        assert [program.says() for program in programs] == ["done", "done"]
    finally:
        for program in programs:
            program.end()
    assert cache.get("counter") == 200
    cache.close()


@pytest.mark.parametrize("strict", [False, True])
def test_without_the_server_nobody_gets_a_lock(proxy: FaultProxy, strict: bool) -> None:
    cache = Cache(proxy.url, strict=strict)
    seen = _seen(cache)
    with cache.lock("import"):
        proxy.refuse()
        with pytest.raises(StoreUnavailable):
            cache.lock("import").acquire()
        with pytest.raises(StoreUnavailable), cache.lock("other"):
            pytest.fail("a lock without a server")
        with pytest.raises(StoreUnavailable):
            cache.lock("import").locked()
    assert any(isinstance(event, Degraded) and event.operation == "release" for event in seen)
    cache.close()


def test_a_waiter_learns_that_the_server_has_gone(proxy: FaultProxy, eventually: Eventually) -> None:
    cache = Cache(proxy.url)
    cache.lock("import", ttl=60).acquire()
    with ThreadPoolExecutor(1) as pool:
        waiter = pool.submit(cache.lock("import").acquire, wait=50)
        eventually(lambda: _waiting(cache, "import") == 1)
        proxy.stall()
        assert isinstance(waiter.exception(10), StoreUnavailable)
    proxy.pass_through()
    cache.close()
