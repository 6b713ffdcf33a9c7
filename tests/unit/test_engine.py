"""One engine, two worlds: whatever fails, blocking and asyncio callers see the same calls in the same order."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from backburner.cache.codec import JSONCodec
from backburner.cache.counters import Counters
from backburner.cache.engine import Engine
from backburner.cache.flight import Flights
from backburner.cache.leases import Leases
from backburner.cache.owed import Owed
from backburner.cache.plan import Plan
from backburner.cache.remember import ReadThrough
from backburner.cache.remember_many import ReadThroughMany
from backburner.cache.runtime import AsyncioRuntime, BlockingRuntime, run
from backburner.cache.stores import MemoryStore
from backburner.errors import StoreUnavailable
from backburner.events import Events


class Scripted:
    """A store that notes each call and fails the n-th."""

    shares_values = False

    def __init__(self, fail_at: int) -> None:
        self.log: list[str] = []
        self._fail_at = fail_at
        self._store = MemoryStore()
        self.tier_of = self._store.tier_of

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            self.log.append(name)
            if len(self.log) == self._fail_at:
                raise StoreUnavailable("scripted")
            return await method(*args, **kwargs)

        return call


def _engine(runtime: Any, fail_at: int) -> tuple[Engine, Scripted]:
    store = Scripted(fail_at)
    shared = {"codec": JSONCodec(), "flights": Flights(), "owed": Owed(), "events": Events(), "counters": Counters()}
    return Engine(
        store, runtime, **shared, leases=Leases(10, lambda _: []), default_ttl=60, max_value_bytes=1000, strict=False
    ), store


async def _story(engine: Engine, callback: Callable[[], Any]) -> list[object]:
    """A bit of everything, through whatever fails."""
    told: list[object] = [
        await engine.put({"a": 1, "b": [2]}, None, ("books",)),
        await engine.get("a"),
        await engine.add("a", 3, None, ()),
        await engine.increment("n", 2, None, ("books",)),
        await engine.touch("b", 30),
        await ReadThrough(engine).remember("r", Plan(callback, 60, ("books", "users"))),
        await ReadThroughMany(engine).remember(["r", "m"], Plan(lambda keys: dict.fromkeys(keys, 1), 60, ("books",))),
        await engine.expire("r"),
        await engine.flush_tags(("books",)),
        await engine.many(("a", "b", "n", "r")),
        await engine.pull("b"),
        await engine.forget(("a", "b")),
        await engine.flush(),
        await engine.get("a"),
    ]
    return told


def _finish(drive: Callable[[Coroutine[Any, Any, Any]], Any], runtime: Any, fail_at: int) -> tuple[Any, list[str]]:
    engine, store = _engine(runtime, fail_at)
    outcome = drive(_story(engine, lambda: "computed"))
    assert not engine.flights._under_way
    return outcome, store.log


@pytest.mark.parametrize("fail_at", range(40))
def test_both_worlds_make_the_same_calls_whichever_of_them_fails(fail_at: int) -> None:
    blocking = _finish(run, BlockingRuntime(), fail_at)
    asynchronous = _finish(asyncio.run, AsyncioRuntime(), fail_at)
    assert blocking == asynchronous
    assert "computed" in blocking[0]


def test_the_story_is_long_enough_for_every_failure_to_happen() -> None:
    _, log = _finish(run, BlockingRuntime(), 0)
    assert 20 < len(log) < 40


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_whatever_ends_the_leader_its_flight_ends_too(interruption: type[BaseException]) -> None:
    engine, _ = _engine(BlockingRuntime(), 0)

    def load() -> None:
        raise interruption

    with pytest.raises(interruption):
        run(ReadThrough(engine).remember("key", Plan(load, 60)))
    assert not engine.flights._under_way
    assert run(ReadThrough(engine).remember("key", Plan(lambda: 5, 60))) == 5


def test_a_blocking_call_that_would_suspend_raises_at_once() -> None:
    async def suspends() -> None:
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="event loop"):
        run(suspends())
