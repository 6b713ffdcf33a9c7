"""How old a copy in memory can be: from a write elsewhere until this process no longer serves the old value.

    make bench-cache, or: python benchmarks/cache_news.py [redis://…]

Another process writes, and sends the time at which its write was answered; this process looks, thousands of times a
second, whether it still has the old value. Idle, and with a thread that computes all the time; heard of by client
tracking and, where that is refused, by pub/sub. Both processes read the machine's one monotonic clock. And in an event
loop that computes all the time: how many of its ticks still serve the old value. Takes a minute.
"""

import asyncio
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from harness import Report, Verdict, in_units, server

from backburner import Cache
from backburner.redis.url import ServerURL

WRITES = 500
TICK = 0.005
"""Seconds that an event loop computes before it looks for events."""
BAR = 0.002
"""Seconds, at the 99th percentile."""


def writer(pipe: Connection, url: str) -> None:
    """Writes what it is told to, and tells when that was done."""
    cache = Cache(url, timeout=5, l1="protocol=2" in url)
    cache.get("news")
    while (number := pipe.recv()) is not None:
        cache.put("news", number, 600)
        pipe.send(time.perf_counter())


@contextmanager
def another_process(url: str) -> Iterator[Callable[[int], float]]:
    """A function that writes a number from another process, and gives the time at which it was written."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=writer, args=(theirs, url))
    process.start()

    def write(number: int) -> float:
        mine.send(number)
        return float(mine.recv())

    try:
        write(-1)
        yield write
    finally:
        mine.send(None)
        process.join()


@contextmanager
def a_busy_thread() -> Iterator[None]:
    """Computes without pause, as a request handler does that has much to do."""
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            sum(range(500))

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def delays(cache: Cache, write: Callable[[int], float]) -> list[float]:
    """Seconds for which the old value was served after each write, in order; 0 where it was gone before."""
    seen = []
    for number in range(WRITES):
        while cache._hit("news") != number - 1:
            cache.get("news")
            if number == 0:
                break
        written = write(number)
        while cache._hit("news") == number - 1:
            time.sleep(0.0002)
        seen.append(max(0.0, time.perf_counter() - written))
        while cache.get("news") != number:
            time.sleep(0)
    return sorted(seen)


async def ticks(url: str) -> list[int]:
    """How many ticks of a busy event loop have begun, after each write, when the old value is no longer served."""
    cache, other = Cache(url, timeout=5), Cache(url, timeout=5, l1=False)
    seen = []
    for number in range(WRITES):
        other.put("news", number, 600)
        while cache._hit("news") != number:
            await cache.aget("news")
            await asyncio.sleep(0.002)
        other.put("news", -1, 600)
        count = 0
        while cache._hit("news") == number:
            count += 1
            until = time.perf_counter() + TICK
            while time.perf_counter() < until:
                pass
            await asyncio.sleep(0)
        seen.append(count)
    await cache.aclose()
    other.close()
    return sorted(seen)


def main() -> None:
    report = Report("cache_news")
    with server() as given:
        url = ServerURL.parse(given).redis_url
        for way, its_url in (("tracking", url), ("pub/sub", f"{url}?protocol=2")):
            with another_process(its_url) as write:
                cache = Cache(its_url, timeout=5)
                cache.get("news")
                for state in ("idle", "busy"):
                    if state == "busy":
                        with a_busy_thread():
                            seen = delays(cache, write)
                    else:
                        seen = delays(cache, write)
                    p50, p99, longest = statistics.median(seen), seen[int(WRITES * 0.99)], seen[-1]
                    report.tell(
                        f"An {state} process, by {way}" if state == "idle" else f"A {state} process, by {way}",
                        {"p50": p50, "p99": p99, "longest": longest, "writes": WRITES},
                        f"median {in_units(p50)}, p99 {in_units(p99)}, longest {in_units(longest)}",
                    )
                    if state == "idle":
                        report.judge(
                            [Verdict(f"p99 by {way}, ms", p99 * 1000, f"at most {BAR * 1000:g} ms", p99 <= BAR)]
                        )
                cache.close()
        counts = asyncio.run(ticks(url))
        p50, p99, longest = statistics.median(counts), counts[int(WRITES * 0.99)], counts[-1]
        report.tell(
            f"A busy event loop, ticks of {in_units(TICK)}",
            {"p50": p50, "p99": p99, "longest": longest, "writes": WRITES},
            f"median {p50:g} ticks, p99 {p99}, longest {longest}, that of the write among them",
        )
        # The write is in the midst of a tick, so that the next one is the first that can begin with the news.
        report.judge([Verdict("p99 in a busy event loop, ticks", p99, "at most 2", p99 <= 2)])
        report.write(url)


if __name__ == "__main__":
    main()
