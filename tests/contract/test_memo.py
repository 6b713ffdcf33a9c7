"""`cache.memo()` on every store, blocking and asyncio: the same object within a scope, and nothing of it outside."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest

from backburner import Cache
from backburner.cache import memo_scope
from backburner.cache.engine import MISSING
from tests.contract.conftest import Asynchronous


@pytest.fixture
def scoped() -> Iterator[None]:
    with memo_scope():
        yield


@pytest.fixture
def memo(cache: Any) -> Any:
    if isinstance(cache, Asynchronous):
        return Asynchronous(cache._cache.memo(), cache._loop)
    return cache.memo()


pytestmark = pytest.mark.usefixtures("scoped")


def test_a_value_is_read_once_and_is_the_same_object_from_then_on(cache: Any, memo: Any) -> None:
    cache.put("key", {"a": [1]})
    first = memo.get("key")
    assert first == {"a": [1]}
    assert memo.get("key") is first
    assert memo.remember("key", 60, dict) is first
    assert memo.remember_forever("key", dict) is first
    assert memo.flexible("key", (60, 600), dict) is first
    assert memo.tags("red").get("key") is first
    assert cache.get("key") is not first


def test_what_is_computed_is_the_same_object_for_all(memo: Any) -> None:
    computed = memo.remember("key", 60, lambda: [1])
    assert memo.remember("key", 60, lambda: [2]) is computed
    assert memo.get("key") is computed


def test_a_miss_is_not_kept_and_none_is(cache: Any, memo: Any) -> None:
    assert memo.get("key", "default") == "default"
    cache.put("key", None)
    assert memo.get("key", "default") is None
    cache.forget("key")
    assert memo.get("key", "default") == "default"


WRITES: list[Any] = [
    lambda cache: cache.put("key", 2),
    lambda cache: cache.put_many({"other": 0, "key": 2}),
    lambda cache: cache.increment("key"),
    lambda cache: cache.forget("key"),
    lambda cache: cache.forget_many(["key"]),
    lambda cache: cache.pull("key"),
    lambda cache: cache.expire("key"),
    lambda cache: cache.touch("key", 0),
    lambda cache: cache.tags("red").flush(),
    lambda cache: cache.flush(),
]


@pytest.mark.parametrize("write", WRITES, ids=range(len(WRITES)))
@pytest.mark.parametrize("by", ["the memo", "the cache"])
def test_what_one_writes_oneself_is_read_anew_whichever_object_wrote_it(
    cache: Any, memo: Any, write: Any, by: str
) -> None:
    cache.tags("red").put("key", 1)
    assert memo.get("key") == 1
    write(memo if by == "the memo" else cache)
    assert memo.get("key", MISSING) == cache.get("key", MISSING) != 1


def test_what_others_write_is_not_seen_until_the_scope_ends(memory: Cache) -> None:
    memory.put("key", 1)
    with memo_scope():
        assert memory.memo().get("key") == 1
        copy_context().run(_in_a_scope_of_its_own, memory.put, "key", 2)
        assert memory.memo().get("key") == 1
        assert memory.get("key") == 2
    assert memory.memo().get("key") == 2


def _in_a_scope_of_its_own(verb: Any, *arguments: Any) -> None:
    with memo_scope():
        verb(*arguments)


def test_what_was_read_before_a_write_is_not_kept_after_it(memory: Cache) -> None:
    # The callback reads, then somebody in the same request writes, then the callback returns.
    def read_and_be_overtaken() -> str:
        memory.put("key", "new")
        return "old"

    assert memory.memo().remember("key", 60, read_and_be_overtaken) == "old"
    assert memory.memo().get("key") == "new"


def test_caches_are_kept_apart(memory: Cache) -> None:
    other = Cache("memory://")
    memory.put("key", 1)
    other.put("key", 2)
    assert (memory.memo().get("key"), other.memo().get("key")) == (1, 2)


def test_a_flush_of_one_cache_leaves_the_values_of_others(memory: Cache) -> None:
    other = Cache("memory://")
    memory.put("key", [1])
    kept = memory.memo().get("key")
    other.flush()
    assert memory.memo().get("key") is kept
    memory.flush()
    assert memory.memo().get("key") is None


def test_threads_and_tasks_of_one_scope_get_the_same_object(memory: Cache) -> None:
    memo = memory.memo()

    async def load() -> list[int]:
        await asyncio.sleep(0)
        return [1]

    async def main() -> list[Any]:
        return await asyncio.gather(*[memo.aremember("key", 60, load) for _ in range(10)])

    found = asyncio.run(main())
    with ThreadPoolExecutor(4) as pool:
        threads = [pool.submit(copy_context().run, memo.get, "key") for _ in range(10)]
        found += [thread.result() for thread in threads]
    assert len({id(value) for value in found}) == 1


def test_outside_of_a_scope_it_is_the_cache_itself(memory: Cache) -> None:
    memory.put("key", [1])
    memo = memory.memo()

    def twice() -> bool:
        return memo.get("key") is memo.get("key")

    with memo_scope():
        inside = copy_context()
        assert twice()
    assert not inside.run(twice)
    assert "MemoizedCache of <Cache memory" in repr(memo)


def test_bad_keys_are_refused_as_ever(memory: Cache) -> None:
    for key in ("", "a\nb", 5, ["key"]):
        with pytest.raises(ValueError, match="a key must"):
            memory.memo().get(key)  # type: ignore[arg-type]


@pytest.fixture
def memory() -> Cache:
    return Cache("memory://")
