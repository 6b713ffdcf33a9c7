"""What a hit costs, beside the least that Python has, and how soon a write in another process is seen.

    python benchmarks/cache_hits.py [redis://…]

Hits: nanoseconds per call, against a hit of `functools.lru_cache`, cashews and cachetools where these are installed.
News: milliseconds from a write by another client until a copy in this process is no longer served. Rounds alternate
between contenders; figures are medians over the rounds. Takes about 20 seconds and writes results/cache_hits.json.
"""

import asyncio
import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backburner import Cache, cached
from backburner.redis.embedded import EmbeddedServer

ROUNDS = 9
CALLS = 20_000
WRITES = 300
BARS = {"get": 8.0, "aget": 12.0, "remember": None, "tagged get": None, "@cached": None}
"""Times the hit of `lru_cache` that a hit may cost at most."""
RESULTS = Path(__file__).parent / "results" / "cache_hits.json"

Call = Callable[[], Any]


def contenders(cache: Cache, l1: Cache) -> tuple[dict[str, Call], dict[str, Callable[[], Awaitable[Any]]]]:
    """Blocking and asyncio calls, each of which is a hit."""

    @functools.lru_cache
    def least(key: str) -> str:
        return key

    @cached(ttl=600, key="user:{user_id}", cache=cache)
    def decorated(user_id: int) -> str:
        return f"user {user_id}"

    for one in (cache, l1):
        one.put("key", "value", 600)
        one.tags("red", "green").put("tagged", "value", 600)
    blocking: dict[str, Call] = {
        "functools.lru_cache": lambda: least("key"),
        "get": lambda: cache.get("key"),
        "get, copy of the server's": lambda: l1.get("key"),
        "tagged get": lambda: cache.get("tagged"),
        "remember": lambda: cache.remember("key", 60, str),
        "@cached": lambda: decorated(5),
    }
    asynchronous: dict[str, Callable[[], Awaitable[Any]]] = {"aget": lambda: cache.aget("key")}
    if importlib.util.find_spec("cachetools"):
        import cachetools

        store: Any = cachetools.TTLCache(maxsize=1000, ttl=600)
        store["key"] = "value"
        blocking["cachetools.TTLCache"] = lambda: store["key"]
    if importlib.util.find_spec("cashews"):
        from cashews import cache as cashews

        cashews.setup("mem://")

        @cashews(ttl="10m", key="user:{user_id}")
        async def theirs(user_id: int) -> str:
            return f"user {user_id}"

        asynchronous["cashews decorator"] = lambda: theirs(user_id=5)
    return blocking, asynchronous


def nanoseconds(call: Call) -> float:
    began = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - began) / CALLS * 1e9


async def ananoseconds(call: Callable[[], Awaitable[Any]]) -> float:
    began = time.perf_counter()
    for _ in range(CALLS // 4):
        await call()
    return (time.perf_counter() - began) / (CALLS // 4) * 1e9


def hits(cache: Cache, l1: Cache) -> dict[str, float]:
    blocking, asynchronous = contenders(cache, l1)
    while l1._near is None or l1._near.peek("key") is None:
        l1.get("key")
        l1.get("tagged")

    async def main() -> dict[str, list[float]]:
        times: dict[str, list[float]] = {name: [] for name in (*blocking, *asynchronous)}
        for call in asynchronous.values():
            await call()
        for _ in range(ROUNDS):
            for name, call in blocking.items():
                times[name].append(nanoseconds(call))
            for name, acall in asynchronous.items():
                times[name].append(await ananoseconds(acall))
        return times

    return {name: statistics.median(measured) for name, measured in asyncio.run(main()).items()}


def news(l1: Cache, other: Cache) -> list[float]:
    """Milliseconds until a write by another client is seen, sorted."""
    delays = []
    for number in range(WRITES):
        while l1._hit("news") != number - 1 and number:
            l1.get("news")
        other.put("news", number, 600)
        began = time.perf_counter()
        while l1.get("news") != number:
            time.sleep(0)  # lets the listening thread have its turn, as a process that waits for requests does
        delays.append((time.perf_counter() - began) * 1000)
        l1.get("news")
    return sorted(delays)


@contextmanager
def server() -> Iterator[str]:
    if len(sys.argv) > 1:
        yield sys.argv[1]
        return
    with tempfile.TemporaryDirectory() as directory, EmbeddedServer(Path(directory)) as embedded:
        yield embedded.url


def main() -> None:
    with server() as url:
        memory, l1, other = Cache("memory://"), Cache(url, timeout=5), Cache(url, timeout=5, l1=False)
        figures = hits(memory, l1)
        delays = news(l1, other)
        l1.close()
        other.close()
    least = figures["functools.lru_cache"]
    for name, figure in sorted(figures.items(), key=lambda item: item[1]):
        bar = BARS.get(name)
        verdict = "" if bar is None else f"   at most {bar:g}x: {'reached' if figure <= bar * least else 'MISSED'}"
        print(f"{name:>26} {figure:>8.0f} ns {figure / least:>6.1f}x{verdict}")
    p50, p99 = statistics.median(delays), delays[int(len(delays) * 0.99)]
    print(f"a write of another process is seen after {p50:.2f} ms (median), {p99:.2f} ms (p99)")
    peers = {name: importlib.metadata.version(name) for name in ("cachetools", "cashews") if _installed(name)}
    told = {
        "python": platform.python_version(),
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
        "peers": peers,
        "rounds": ROUNDS,
        "nanoseconds": {name: round(figure, 1) for name, figure in figures.items()},
        "news_milliseconds": {"median": round(p50, 3), "p99": round(p99, 3), "writes": WRITES},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(told, indent=2) + "\n")


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


if __name__ == "__main__":
    main()
