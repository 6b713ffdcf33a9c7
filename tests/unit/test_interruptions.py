"""Celery's soft time limit may strike anywhere, and reaches the job: it is no error of what is called just then."""

import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Annotated, Any, NoReturn

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from pydantic import AfterValidator

from backburner import Cache
from backburner.cache.codec import JSONCodec, PickleCodec
from backburner.cache.shape import Shape
from backburner.events import Miss
from tests.alarms import strikes
from tests.conftest import Eventually


def _strike(*_: object) -> NoReturn:
    raise SoftTimeLimitExceeded(1)


class _Struck:
    """Is being pickled, or unpickled, when the limit strikes."""

    def __init__(self, when: str) -> None:
        self.when = when

    def __reduce__(self) -> Any:
        return _strike() if self.when == "pickled" else (_strike, ())


def _with_json(to_json: Any, from_json: Any) -> JSONCodec:
    codec = JSONCodec()
    codec.register(_Struck, to_json, from_json, tag="struck")
    return codec


def _json_read() -> object:
    codec = _with_json(lambda value: value.when, _strike)
    return codec.decode(codec.encode(_Struck("read")))


def _pickle_read() -> object:
    codec = PickleCodec(b"k" * 16)
    return codec.decode(codec.encode(_Struck("read")))


def test_a_limit_that_strikes_in_a_subscriber_reaches_the_caller() -> None:
    cache = Cache("memory://")
    cache.events.subscribe(_strike, Miss)
    with pytest.raises(SoftTimeLimitExceeded):
        cache.get("key")


@pytest.mark.parametrize("verb", ["remember", "remember_many"])
def test_a_limit_that_strikes_in_a_callback_is_not_answered_with_the_value_of_before(verb: str) -> None:
    now = [1e9]
    cache = Cache("memory://", clock=lambda: now[0])

    def ask(callback: Any) -> Any:
        if verb == "remember":
            return cache.remember("key", 60, callback, grace=600)
        return cache.remember_many(["key"], 60, lambda _: {"key": callback()}, grace=600)["key"]

    ask(lambda: "old")
    now[0] += 61
    with pytest.raises(SoftTimeLimitExceeded):
        ask(_strike)
    assert ask(lambda: "new") == "new"  # the callback has not failed, and may be called again at once


def test_a_limit_that_strikes_in_an_early_renewal_reaches_the_caller() -> None:
    cache = Cache("memory://")
    cache.remember("key", 60, lambda: "old")
    cache._memory.peek("key").refresh_at = 0.0
    with pytest.raises(SoftTimeLimitExceeded):
        cache.remember("key", 60, _strike)
    assert cache.remember("key", 60, lambda: "new") == "new"


@pytest.mark.parametrize("verb", ["remember", "remember_many"])
def test_the_limit_of_a_leader_does_not_reach_those_who_wait_for_it(verb: str, eventually: Eventually) -> None:
    cache, began, go = Cache("memory://"), threading.Event(), threading.Event()

    def ask(callback: Any) -> Any:
        if verb == "remember":
            return cache.remember("key", 60, callback)
        return cache.remember_many(["key"], 60, lambda _: {"key": callback()})["key"]

    def struck() -> None:
        began.set()
        assert go.wait(10)
        _strike()

    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(ask, struck)
        assert began.wait(10)
        follower = pool.submit(ask, lambda: "mine")
        (flight,) = cache._flights.going_on("key")
        eventually(lambda: flight.landed._condition._waiters)
        go.set()
        assert isinstance(leader.exception(10), SoftTimeLimitExceeded)
        assert follower.result(10) == "mine"


@pytest.mark.parametrize(
    "work",
    [
        pytest.param(lambda: _with_json(_strike, _Struck).encode(_Struck("")), id="json, one"),
        pytest.param(lambda: _with_json(_strike, _Struck).encode([_Struck(""), _Struck("")]), id="json, several"),
        pytest.param(_json_read, id="json, read"),
        pytest.param(lambda: PickleCodec(b"k" * 16).encode(_Struck("pickled")), id="pickle"),
        pytest.param(_pickle_read, id="pickle, read"),
        pytest.param(lambda: Shape(Annotated[int, AfterValidator(lambda _: _strike())]).fit(1), id="validator"),
    ],
)
def test_a_limit_that_strikes_while_a_value_is_stored_or_read_is_no_error_of_the_value(work: Any) -> None:
    with pytest.raises(SoftTimeLimitExceeded):
        work()


def _release_awaited(cache: Cache) -> None:
    lock = cache.lock("import", ttl=60)
    lock.acquire()
    cache._memory.locks._held["import"].waiters.extend(Future() for _ in range(2))
    cache._memory.locks._held["import"].waiters[0].cancel()
    lock.release()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="needs sys.monitoring")
@pytest.mark.skipif(
    sys.version_info[:2] == (3, 14), reason="`with` itself may leave a lock held: python/cpython#148874"
)
@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "work",
    [
        pytest.param(lambda cache: cache.tags("a", "b").flush(), id="flush"),
        pytest.param(lambda cache: cache.forget_many(["a", "b"]), id="forget_many"),
        pytest.param(lambda cache: cache.remember("a", 60, lambda: 1), id="remember"),
        pytest.param(lambda cache: cache.remember_many(["a", "b"], 60, lambda _: {"a": 1}), id="remember_many"),
        pytest.param(_release_awaited, id="lock"),
    ],
)
def test_a_limit_that_strikes_anywhere_leaves_no_lock_held(work: Any) -> None:
    cache = Cache("memory://")
    locks = [each._lock for each in (cache._memory, cache._memory.locks, cache._flights, cache._leases)]

    def afresh() -> None:
        cache._memory._entries.clear()
        cache._memory.locks._held.clear()
        work(cache)

    afresh()
    held = [place for place in strikes(afresh) if any(lock.locked() for lock in locks)]
    assert not held
