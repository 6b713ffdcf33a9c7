"""What the other processes of the tests here do: ``python -m tests.contract.programs NAME URL …``."""

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from random import Random

from backburner import Cache
from backburner.errors import StoreError
from tests.alarms import storm


def compute(url: str, kind: str, callers: str) -> None:
    """For each key that is told: many callers miss at once. Each computation leaves a mark in the server. Prints how
    many got the value."""
    cache = Cache(url, strict=True, timeout=5)
    marks = Cache(url, prefix="marks:", strict=True, timeout=5)
    {"asyncio": _compute_in_tasks, "threads": _compute_in_threads}[kind](cache, marks, int(callers))


def _compute_in_tasks(cache: Cache, marks: Cache, callers: int) -> None:
    async def remember_all(key: str) -> list[object]:
        async def load() -> dict[str, str]:
            await marks.aincrement(key)
            await asyncio.sleep(0.05)
            return {"value": key}

        return await asyncio.gather(*[cache.aremember(key, 60, load) for _ in range(callers)])

    with asyncio.Runner() as runner:
        _answer(lambda key: runner.run(remember_all(key)))
        runner.run(cache.aclose())
        runner.run(marks.aclose())


def _compute_in_threads(cache: Cache, marks: Cache, callers: int) -> None:
    with ThreadPoolExecutor(callers) as pool:

        def remember_all(key: str) -> list[object]:
            def load() -> dict[str, str]:
                marks.increment(key)
                time.sleep(0.05)
                return {"value": key}

            return list(pool.map(lambda _: cache.remember(key, 60, load), range(callers)))

        _answer(remember_all)


def _answer(remember_all: Callable[[str], list[object]]) -> None:
    remember_all("warm-up")
    print("ready", flush=True)
    for line in sys.stdin:
        key = line.strip()
        print(sum(value == {"value": key} for value in remember_all(key)), flush=True)


def gather(url: str, *keys: str) -> None:
    """Say which keys it computes together, and do so when told; print what `remember_many` gave."""
    cache = Cache(url, strict=True, timeout=5)

    def load(missing: list[str]) -> dict[str, str]:
        print("computing", *missing, flush=True)
        return dict.fromkeys(missing, sys.stdin.readline().strip())

    print(json.dumps(cache.remember_many(keys, 60, load)), flush=True)


def overlap(url: str, seed: str) -> None:
    """Ask for lists of keys, in any order, from several threads at once; mark each computation in the server."""
    cache = Cache(url, strict=True, timeout=5)
    marks = Cache(url, prefix="marks:", strict=True, timeout=5)
    random = Random(seed)
    lists = [random.sample([f"key {n}" for n in range(40)], 20) for _ in range(40)]

    def load(missing: list[str]) -> dict[str, str]:
        for key in missing:
            marks.increment(key)
        return {key: key.upper() for key in missing}

    print("ready", flush=True)
    sys.stdin.readline()
    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(lambda keys: cache.remember_many(keys, 60, load), lists))
    print(sum(got == {key: key.upper() for key in keys} for got, keys in zip(values, lists, strict=True)), flush=True)


def hang(url: str, lease: str) -> None:
    """Begin to compute and never end."""
    cache = Cache(url, strict=True, lease=float(lease))

    def load() -> None:
        print("computing", flush=True)
        time.sleep(60)

    cache.remember("key", 60, load)


def slow(url: str, lease: str = "10") -> None:
    """Compute until told to go on; print what `remember` gave."""
    cache = Cache(url, strict=True, lease=float(lease))

    def load() -> str:
        print("computing", flush=True)
        return sys.stdin.readline().strip()

    print(cache.remember("key", 60, load), flush=True)


def hold(url: str, ttl: str) -> None:
    """Take a lock and never give it back; print its number."""
    held = Cache(url, timeout=5).lock("import", ttl=float(ttl))
    held.acquire()
    print(held.fence, flush=True)
    time.sleep(60)


def count(url: str, times: str) -> None:
    """Count in a way that only a lock makes right."""
    cache = Cache(url, strict=True, timeout=5)
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(int(times)):
        with cache.lock("counter", wait=30):
            cache.put("counter", cache.get("counter") + 1)
    print("done", flush=True)


def strike(url: str, verb: str) -> None:
    """Compute while a signal's handler raises anywhere in it. Prints how often it did, and what is left of that."""
    cache, numbers = Cache(url, strict=True, timeout=5), itertools.count()

    def compute() -> None:
        key = str(next(numbers))
        with suppress(StoreError):  # a connection that was struck counts as a failure of the server
            if verb == "remember_many":
                cache.remember_many([key, key + "a"], 60, lambda keys: dict.fromkeys(keys, 1))
            else:
                cache.remember(key, 60, lambda: 1)

    compute()  # so that everything is imported: an import that is interrupted stays locked for ever
    struck = storm(compute, 1.0, longest=0.0001 if cache._memory else 0.0006)
    left = [*cache._flights._under_way, *cache._flights._going_on, *cache._leases._held]
    print(json.dumps([struck, left]), flush=True)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
