"""Who makes room in memory, and that nothing grows without bound."""

import random
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import pytest

from backburner import Cache
from backburner.cache.stores import MemoryStore
from backburner.errors import ConfigError


def _cache(policy: str, max_items: int) -> Cache:
    return Cache(f"memory://?policy={policy}&max_items={max_items}")


def _kept(cache: Cache, keys: str) -> str:
    return "".join(key for key in keys if cache.has(key))


def test_lru_makes_room_by_removing_the_least_recently_used() -> None:
    cache = _cache("lru", 3)
    cache.put_many({"a": 1, "b": 2, "c": 3})
    cache.get("c")
    cache.get("a")
    cache.put("d", 4)
    assert cache.many("abcd").keys() == {"a", "c", "d"}


def test_lru_follows_a_model_exactly() -> None:
    cache, model = _cache("lru", 20), OrderedDict[str, int]()
    choose = random.Random(7)
    for step in range(5000):
        key = str(choose.randrange(40))
        if choose.random() < 0.5:
            cache.put(key, step)
            model[key] = step
            model.move_to_end(key)
            if len(model) > 20:
                model.popitem(last=False)
        else:
            assert cache.get(key) == model.get(key)
            if key in model:
                model.move_to_end(key)


def test_lfu_makes_room_by_removing_the_least_frequently_used() -> None:
    cache = _cache("lfu", 3)
    cache.put_many({"a": 1, "b": 2, "c": 3})
    for key in "aaabbc":
        cache.get(key)
    cache.put("d", 4)
    assert cache.get("c") is None
    assert cache.get("a") == 1
    assert cache.get("b") == 2


def test_lfu_forgets_the_favourites_of_yesterday() -> None:
    cache = _cache("lfu", 4)
    cache.put("yesterday", 1)
    for _ in range(100):
        cache.get("yesterday")
    for number in range(2000):
        cache.put(f"today:{number % 8}", number)
        cache.get(f"today:{number % 8}")
    assert cache.missing("yesterday")


def test_ttl_makes_room_by_removing_what_expires_first() -> None:
    cache = _cache("ttl", 3)
    cache.put("long", 1, ttl=1000)
    cache.put("short", 2, ttl=10)
    cache.forever("forever", 3)
    cache.get("short")
    cache.put("new", 4, ttl=100)
    assert cache.many(["long", "short", "forever", "new"]).keys() == {"long", "forever", "new"}
    cache.touch("long", 5)
    cache.put("newer", 5, ttl=100)
    assert cache.missing("long")


@pytest.mark.parametrize("policy", ["lru", "lfu", "ttl"])
def test_there_are_never_more_than_max_items_and_bookkeeping_stays_in_proportion(policy: str) -> None:
    store = MemoryStore(policy, 100)
    cache = Cache("memory://", default_ttl=3600)
    cache._memory = store
    cache._start()
    choose = random.Random(1)
    for number in range(20_000):
        key = f"key:{choose.randrange(300)}"
        match choose.randrange(4):
            case 0:
                cache.tags(f"tag:{number}").put(key, number)
            case 1:
                cache.touch(key, 50)
            case 2:
                cache.get(key)
            case _:
                cache.forget(key)
        assert len(store) <= 100
    assert len(store._tags) < 2500
    assert len(store._ends._heap) < 500
    if policy == "lfu":
        assert len(store._policy._heap) < 500
        assert len(store._policy._uses) < 500


@pytest.mark.parametrize("policy", ["lru", "lfu", "ttl"])
def test_expired_entries_make_room_before_anything_else(policy: str) -> None:
    now = 1000.0
    cache = Cache(f"memory://?policy={policy}&max_items=3", clock=lambda: now)
    cache.put("short", 1, ttl=10)
    cache.put_many({"a": 1, "b": 2}, ttl=100)
    now += 11
    cache.put("c", 3, ttl=100)
    assert cache.many(["a", "b", "c"]).keys() == {"a", "b", "c"}


@pytest.mark.parametrize("policy", ["lru", "lfu", "ttl"])
def test_threads_can_share_it(policy: str) -> None:
    cache = _cache(policy, 50)

    def work(seed: int) -> None:
        choose = random.Random(seed)
        for _ in range(3000):
            key = f"key:{choose.randrange(100)}"
            value = cache.get(key)
            assert value is None or value == key
            if choose.random() < 0.4:
                cache.put(key, key)
            elif choose.random() < 0.2:
                cache.forget(key)

    with ThreadPoolExecutor(6) as pool:
        for result in [pool.submit(work, seed) for seed in range(6)]:
            result.result()
    assert len(cache._memory) <= 50


@pytest.mark.parametrize(
    "url", ["memory://?policy=fifo", "memory://?max_items=0", "memory://?max_items=many", "memory://?size=5"]
)
def test_a_wrong_option_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"policy|max_items"):
        Cache(url)
