"""The cache of the process: built once, from the environment or by the application, and replaced in tests."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event, Thread
from typing import Any

import pytest

from backburner import Cache, Settings, cached, default_cache, set_default_cache
from backburner.errors import ConfigError
from backburner.testing import override_default_cache


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    before = set_default_cache(None)
    yield
    set_default_cache(before)


@cached(key="double:{number}")
def double(number: int) -> int:
    return 2 * number


def test_it_is_the_one_that_the_environment_describes(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("CACHE_PREFIX", "described:")
    assert double(21) == 42
    assert default_cache() is default_cache()
    another = Cache.from_settings(Settings())
    assert another.get("double:21") == 42
    another.close()
    default_cache().close()


def test_what_the_environment_says_wrong_is_told_when_it_is_first_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_URL", "nonsense")
    with pytest.raises(ConfigError, match="CACHE_URL"):
        double(21)


def test_an_application_builds_its_own_once_whoever_comes_first() -> None:
    all_here = Barrier(8)
    built: list[Cache] = []

    def build() -> Cache:
        if not built:
            all_here.wait(10)
        built.append(Cache("memory://"))
        return built[-1]

    def use(first: bool) -> Cache:
        if not first:
            all_here.wait(10)
        return default_cache()

    set_default_cache(build)
    assert not built
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(use, [True, *[False] * 7])) == set(built)
    assert len(built) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_forked_while_it_is_being_built_builds_its_own() -> None:
    parent = os.getpid()
    begun, go_on = Event(), Event()

    def build() -> Cache:
        if os.getpid() == parent:
            begun.set()
            go_on.wait(10)
        return Cache("memory://")

    set_default_cache(build)
    thread = Thread(target=default_cache)
    thread.start()
    begun.wait(10)
    child = os.fork()
    if child == 0:
        signal.alarm(5)  # ends it where it would wait for ever
        try:
            os._exit(0 if double(21) == 42 else 1)
        finally:
            os._exit(2)
    go_on.set()
    thread.join(10)
    assert os.waitpid(child, 0)[1] == 0


def test_functions_go_along_when_it_is_replaced() -> None:
    set_default_cache(one := Cache("memory://"))
    double(1)
    assert set_default_cache(other := Cache("memory://")) is one
    double(2)
    assert (one.has("double:1"), one.has("double:2")) == (True, False)
    assert (other.has("double:1"), other.has("double:2")) == (False, True)


def test_a_test_has_one_of_its_own_for_a_while() -> None:
    def never() -> Cache:
        raise AssertionError("built although nobody used it")

    set_default_cache(never)
    with override_default_cache() as cache:
        assert double(21) == 42
        assert cache.get("double:21") == 42
        mine = Cache("memory://")
        with override_default_cache(mine):
            assert default_cache() is mine
        assert default_cache() is cache
    assert set_default_cache(None) is never


@pytest.mark.parametrize("nonsense", ["memory://", 5])
def test_what_is_no_cache_is_refused(nonsense: Any) -> None:
    with pytest.raises(ConfigError, match="give a Cache, or a function that builds one"):
        set_default_cache(nonsense)
