"""How cost grows: a hit with 1 thousand to 1 million entries in memory, what an entry weighs, and flushing a tag.

    make bench-cache, or: python benchmarks/cache_growth.py [redis://…]

Hits are of keys at random, since one key over and over would stay in the processor's cache. What an entry weighs is
what the process grew by, as the system sees it, 1 KB of JSON in each entry. A flush is timed on a server that holds so
many entries with the tag. Takes a few minutes.
"""

import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
from harness import Figure, Report, Verdict, book, in_units, server

from backburner import Cache

SIZES = (1_000, 10_000, 100_000, 1_000_000)
POLICIES = ("lru", "lfu", "ttl", "s3fifo")
READS = 200_000
FLUSHES = 5
BATCH = 5_000


def hits(policy: str, size: int) -> tuple[Figure, Figure]:
    """Reading, and putting into a full cache."""
    cache = Cache(f"memory://?policy={policy}&max_items={size}")
    keys = [f"book:{number}" for number in range(size)]
    for key in keys:
        cache.put(key, "Emma", 3600)
    chooser = random.Random(5)
    wanted = chooser.choices(keys, k=READS)
    reading, putting = [], []
    for _ in range(5):
        began = time.perf_counter()
        for key in wanted:
            cache.get(key)
        reading.append((time.perf_counter() - began) / READS)
    for number in range(5):  # afterwards, since they make room by what was read
        new = [f"new:{number}:{index}" for index in range(20_000)]
        began = time.perf_counter()
        for key in new:
            cache.put(key, "Emma", 3600)
        putting.append((time.perf_counter() - began) / len(new))
    return tuple(Figure(statistics.median(some), min(some), max(some)) for some in (reading, putting))  # type: ignore[return-value]


def weigh(policy: str, size: int) -> float:
    """Bytes of one entry beyond its 1 KB of JSON; called in a process of its own."""
    cache = Cache(f"memory://?policy={policy}&max_items={size}")
    payload = len(cache.codec.encode(book(1)))
    before = psutil.Process().memory_info().rss
    for number in range(size):
        cache.put(f"book:{number}", book(number), 3600)
    return (psutil.Process().memory_info().rss - before) / size - payload


def weighed(policy: str, size: int) -> float:
    command = [sys.executable, str(Path(__file__)), "--weigh", policy, str(size)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def flush_seconds(url: str, size: int) -> Figure:
    cache = Cache(url, l1=False, timeout=30, prefix="growth:")
    tagged = cache.tags("books")
    for first in range(0, size, BATCH):
        tagged.put_many({f"book:{number}": number for number in range(first, min(size, first + BATCH))}, 3600)
    times = []
    for _ in range(FLUSHES):
        cache.tags("books").put("one", 1, 3600)
        began = time.perf_counter()
        cache.tags("books").flush()
        times.append(time.perf_counter() - began)
        if cache.has("one"):
            raise SystemExit("a flushed entry is still there")
    cache.flush()
    cache.close()
    return Figure(statistics.median(times), min(times), max(times))


def main() -> None:
    if sys.argv[1:2] == ["--weigh"]:
        print(weigh(sys.argv[2], int(sys.argv[3])))
        return
    report = Report("cache_growth")
    for policy in POLICIES:
        measured = {size: hits(policy, size) for size in SIZES}
        report.compare(
            f"A hit of a key at random, {policy}",
            {f"{size:,} entries": reading for size, (reading, _) in measured.items()},
            f"{SIZES[0]:,} entries",
        )
        report.compare(
            f"A put into a full cache, {policy}",
            {f"{size:,} entries": putting for size, (_, putting) in measured.items()},
            f"{SIZES[0]:,} entries",
        )
    for policy in POLICIES:
        weights = {size: weighed(policy, size) for size in SIZES[1:3]}
        text = ", ".join(f"{weight:.0f} bytes beyond 1 KB each with {size:,}" for size, weight in weights.items())
        report.tell(f"What an entry weighs, {policy}", {str(size): weight for size, weight in weights.items()}, text)
    with server() as url:
        flushes = {f"{size:,} entries": flush_seconds(url, size) for size in SIZES}
        report.compare("Flushing a tag", flushes, f"{SIZES[0]:,} entries")
        small, large = flushes[f"{SIZES[0]:,} entries"], flushes[f"{SIZES[-1]:,} entries"]
        ratio = large.median / small.median
        report.judge([Verdict("flush of 1,000,000 / of 1,000 entries", ratio, "about 1 (at most 3x)", ratio <= 3)])
        report.write(url)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"\npeak memory of this process: {peak / 1e6:.0f} MB, {in_units(time.process_time())} of CPU")


if __name__ == "__main__":
    main()
