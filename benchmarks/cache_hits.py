"""What a hit in this process costs, beside what others take for it, and beside the least that Python has.

    make bench-cache, or: python benchmarks/cache_hits.py [redis://…]

One resident key, read over and over. Decorators are called with one argument. Takes about a minute.
"""

import ast
import asyncio
import functools
import inspect
import textwrap
import threading
from typing import Any

import aiocache
import cachebox
import cachetools
import cashews
import django
from django.conf import settings
from dogpile.cache import make_region
from fastapi_cache import FastAPICache
from fastapi_cache.backends.inmemory import InMemoryBackend
from fastapi_cache.decorator import cache as fastapi_cache
from harness import Bar, Report, Round, awaited, called, compete, server

from backburner import Cache, cached

ROUNDS = 9
CALLS = 20_000
FEW = 2_000
"""Calls of those that take microseconds."""
MANY_ROUNDS = 60
"""For a difference of a few nanoseconds."""
PACKAGES = ("aiocache", "cachebox", "cachetools", "cashews", "django", "dogpile.cache", "fastapi-cache2")
LEAST = "functools.lru_cache"
GETS = (
    Bar("get", 8, LEAST),
    Bar("get, copy of the server's", 8, LEAST),
    Bar("await aget", 12, LEAST),
    Bar("get of an entry with two tags", 1.3, "get"),
    Bar("remember", 1.6, "get"),
    Bar("flexible", 1.6, "get"),
)
COUNTING = (Bar("get", 1.1, "get, without counting"),)
DECORATED = (
    Bar("@cached, async def", 1 / 25, "cashews, async def"),
    Bar("@cached, async def", 12, LEAST),
    Bar("@cached, def", 8, LEAST),
)


def recompiled(function: Any, *, counts: bool = True) -> Any:
    """The same function with code of its own, without the statements that have to do with counting if it is not to."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    body = tree.body[0].body  # type: ignore[attr-defined]
    if not counts:
        kept = [statement for statement in body if "count" not in ast.unparse(statement)]
        assert len(kept) == len(body) - 1, "hits are counted in another way now"
        body[:] = kept
    names: dict[str, Any] = {}
    exec(compile(tree, __file__, "exec"), function.__globals__, names)
    return names[function.__name__]


# Each has code that only it runs: CPython specializes code for the types that it meets, and what it makes of code that
# two classes share differs by more than counting costs.


class Counted(Cache):
    """A cache as it is."""

    get = recompiled(Cache.get)
    _hit = recompiled(Cache._hit)


class Uncounted(Cache):
    """A cache whose hits are not counted, and no events."""

    get = recompiled(Cache.get)
    _hit = recompiled(Cache._hit, counts=False)


def least(key: str) -> str:
    return key


def gets(memory: Cache, tiered: Cache) -> dict[str, Round]:
    for cache in (memory, tiered):
        cache.put("key", "value", 600)
        cache.tags("red", "green").put("tagged", "value", 600)
    while tiered._hit("key") != "value":  # until changes are heard of, nothing is kept
        tiered.get("key")
    least_one = functools.lru_cache(least)
    tools: Any = cachetools.TTLCache(1000, 600)
    box: Any = cachebox.TTLCache(1000, 600)
    tools["key"] = box["key"] = "value"
    region = make_region().configure("dogpile.cache.memory", expiration_time=600)
    region.set("key", "value")
    from django.core.cache import cache as django_cache

    django_cache.set("key", "value", 600)
    return {
        LEAST: called(lambda: least_one("key"), CALLS),
        "get": called(lambda: memory.get("key"), CALLS),
        "get, copy of the server's": called(lambda: tiered.get("key"), CALLS),
        "get of an entry with two tags": called(lambda: memory.get("tagged"), CALLS),
        "remember": called(lambda: memory.remember("key", 60, str), CALLS),
        "flexible": called(lambda: memory.flexible("key", (60, 600), str), CALLS),
        "await aget": awaited(lambda: memory.aget("key"), CALLS),
        "cachetools.TTLCache, no lock": called(lambda: tools["key"], CALLS),
        "cachebox.TTLCache": called(lambda: box["key"], CALLS),
        "dogpile memory": called(lambda: region.get("key"), CALLS),
        "Django locmem": called(lambda: django_cache.get("key"), FEW),
    }


def with_and_without_counting() -> dict[str, Round]:
    counted, uncounted = Counted("memory://"), Uncounted("memory://")
    for cache in (counted, uncounted):
        cache.put("key", "value", 600)
    return {
        "get": called(lambda: counted.get("key"), CALLS),
        "get, without counting": called(lambda: uncounted.get("key"), CALLS),
    }


async def their_gets() -> dict[str, Round]:
    theirs = cashews.Cache()
    theirs.setup("mem://")
    await theirs.set("key", "value", expire=600)
    aio = aiocache.SimpleMemoryCache()
    await aio.set("key", "value", ttl=600)
    return {
        "cashews memory": awaited(lambda: theirs.get("key"), FEW),
        "aiocache memory": awaited(lambda: aio.get("key"), FEW),
    }


def decorated(memory: Cache) -> dict[str, Round]:
    @functools.lru_cache
    def least(user_id: int) -> str:
        return f"user {user_id}"

    @cached(ttl=600, key="user:{user_id}", cache=memory)
    def ours(user_id: int) -> str:
        return f"user {user_id}"

    @cached(ttl=600, key="auser:{user_id}", cache=memory)
    async def async_ours(user_id: int) -> str:
        return f"user {user_id}"

    @cached(ttl=600, cache=memory)
    def without_a_key(user_id: int) -> str:
        return f"user {user_id}"

    @cachetools.cached(cachetools.TTLCache(1000, 600), lock=threading.RLock())
    def tools(user_id: int) -> str:
        return f"user {user_id}"

    @cachebox.cached(cachebox.TTLCache(1000, 600))
    def box(user_id: int) -> str:
        return f"user {user_id}"

    @make_region().configure("dogpile.cache.memory", expiration_time=600).cache_on_arguments()
    def dogpile(user_id: int) -> str:
        return f"user {user_id}"

    theirs = cashews.Cache()
    theirs.setup("mem://")

    @theirs(ttl="10m", key="user:{user_id}")
    async def cashew(user_id: int) -> str:
        return f"user {user_id}"

    @aiocache.cached(ttl=600, key_builder=lambda _, user_id: f"user:{user_id}")
    async def aio(user_id: int) -> str:
        return f"user {user_id}"

    FastAPICache.init(InMemoryBackend(), prefix="bench")

    @fastapi_cache(expire=600)
    async def fastapi(user_id: int) -> str:
        return f"user {user_id}"

    return {
        LEAST: called(lambda: least(5), CALLS),
        "@cached, def": called(lambda: ours(5), CALLS),
        "@cached, def, key from the signature": called(lambda: without_a_key(5), CALLS),
        "@cached, async def": awaited(lambda: async_ours(5), CALLS),
        "cachetools, def, with a lock": called(lambda: tools(5), CALLS),
        "cachebox, def": called(lambda: box(5), CALLS),
        "dogpile, def": called(lambda: dogpile(5), FEW),
        "cashews, async def": awaited(lambda: cashew(user_id=5), FEW),
        "aiocache, async def": awaited(lambda: aio(user_id=5), FEW),
        "fastapi-cache2, async def": awaited(lambda: fastapi(user_id=5), FEW),
    }


async def run(report: Report, memory: Cache, tiered: Cache) -> None:
    report.compare("A hit", await compete(gets(memory, tiered) | await their_gets(), ROUNDS), LEAST, GETS)
    counting = await compete(with_and_without_counting(), MANY_ROUNDS)
    report.compare("What counting costs", counting, "get, without counting", COUNTING)
    report.compare("A hit through a decorator", await compete(decorated(memory), ROUNDS), LEAST, DECORATED)


def main() -> None:
    settings.configure(CACHES={"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}})
    django.setup()
    report = Report("cache_hits", PACKAGES)
    with server() as url:
        tiered = Cache(url, timeout=5)
        asyncio.run(run(report, Cache("memory://"), tiered))
        tiered.close()
    report.write()


if __name__ == "__main__":
    main()
