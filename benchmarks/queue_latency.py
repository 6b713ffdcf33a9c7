"""How long a job waits until it is started, and its caller until the result is there; and what a queued job weighs.

    make bench-queue, or: python benchmarks/queue_latency.py [redis://…] [--only NAME …] [--jobs 300] [--queued 10000]

One worker process of each kind, with the settings of queue_workers.py. Idle: a job every 20 ms. Busy: 1,000 jobs a
second, which not all can enqueue or run. Sender and worker read the same clock. Takes three minutes.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import redis
from harness import Bar, Figure, Report, Verdict, server
from queue_workers import CONTENDERS, PACKAGES, Contender, produce, stamps, warm_up, workers

IDLE, BUSY = 0.02, 0.001
WAITS = (
    ("Celery, get", "Celery, prefork", "waits"),
    ("Celery, get in a thread", "Celery, prefork", "waits_in_threads"),
    ("aget, asyncio", "Backburner, asyncio", "waits"),
    ("aget, threads", "Backburner, threads", "waits"),
    ("aget, solo", "Backburner, solo", "waits"),
    ("aget, prefork", "Backburner, prefork", "waits"),
)
"""What waits, for whose worker, and the function that measures it."""
LEFT_OUT = ("Celery, threads", "taskiq, streams", "Backburner, prefork, as it comes")


def quantiles(seconds: list[float]) -> dict[str, float]:
    """In milliseconds."""
    ordered = sorted(seconds)
    return {
        "p50": round(1e3 * statistics.median(ordered), 2),
        "p99": round(1e3 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], 2),
    }


def started(contender: Contender, url: str, jobs: int) -> dict[str, dict[str, float]]:
    """How long jobs wait for their start."""
    told = {}
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        with workers(contender, url, processes=1, results=False) as _:
            warm_up(contender, url, client, processes=1, results=False)
            for title, every, count in (("idle", IDLE, jobs), ("1,000 a second", BUSY, 5 * jobs)):
                calls = f"await job.repeat(jobs.send_stamp, {count}, {every})"
                produce(contender, url, calls, results=False)
                told[title] = quantiles([waited for _, waited in stamps(client, count)])
    return told


def returned(contender: Contender, url: str, jobs: int, since: str) -> list[float]:
    """Seconds until the result of a job is here: `waits` tells of those since its end (`waits_in_threads` likewise),
    `trips` since the call."""
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        with workers(contender, url, processes=1, results=True):
            warm_up(contender, url, client, processes=1, results=True)
            told = produce(contender, url, f"print(json.dumps(await jobs.{since}({jobs})))", results=True)
    seconds: list[float] = json.loads(told)[jobs // 10 :]
    return seconds


def figures(seconds: Mapping[str, list[float]]) -> dict[str, Figure]:
    """Medians, and the 99th percentiles as what is highest."""
    return {
        name: Figure(statistics.median(some), min(some), sorted(some)[int(0.99 * len(some))])
        for name, some in seconds.items()
    }


def weights(names: list[str], url: str, queued: int) -> dict[str, float]:
    """Bytes of the server's memory for each queued job."""
    told = {}
    with redis.Redis.from_url(url) as client:
        for name in names:
            client.flushdb()
            before = memory(client)
            produce(CONTENDERS[name], url, f"await jobs.enqueue({queued})", results=False)
            told[name] = round((memory(client) - before) / queued)
        client.flushdb()
    return told


def memory(client: "redis.Redis") -> int:
    """Bytes that the server uses, when it has tidied up."""
    before = 0
    while True:
        now: int = client.info("memory")["used_memory"]
        if abs(now - before) < 10_000:
            return now
        before = now
        time.sleep(0.5)


def judge_starts(report: Report, told: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """At or below the best peer, when idle."""
    idle = {name: both["idle"]["p50"] for name, both in told.items()}
    ours = {name: value for name, value in idle.items() if name.startswith("Backburner")}
    peers = {name: value for name, value in idle.items() if name not in ours}
    if ours and peers:
        mine, best = min(ours, key=ours.__getitem__), min(peers, key=peers.__getitem__)
        ratio = ours[mine] / peers[best]
        report.judge([Verdict(f"idle, p50: {mine} / {best}", ratio, "at most 1x", ratio <= 1)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, metavar="NAME")
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--queued", type=int, default=10_000)
    asked = parser.parse_args()
    sys.argv[1:] = [asked.url] if asked.url else []
    names = [name for name in asked.only or CONTENDERS if name not in LEFT_OUT]
    report = Report(Path(__file__).stem, PACKAGES)
    with server() as url:
        starts = {}
        for name in names:
            try:
                starts[name] = started(CONTENDERS[name], url, asked.jobs)
            except TimeoutError:
                print(f"{name}: jobs are missing", file=sys.stderr)
        lines = (
            f"{name:<28}  {title}: p50 {found['p50']:>7} ms, p99 {found['p99']:>7} ms"
            for name, both in starts.items()
            for title, found in both.items()
        )
        report.tell("From enqueueing to the start", starts, "\n  ".join(lines))
        judge_starts(report, starts)
        waits = {
            title: returned(CONTENDERS[name], url, asked.jobs, since) for title, name, since in WAITS if name in names
        }
        if waits:
            bars = [Bar(title, 1 / 2, "Celery, get") for title, name, _ in WAITS if name.startswith("Backburner")]
            title = "From the end of a job to its result (high: p99)"
            report.compare(title, figures(waits), next(iter(waits)), bars)
        trips = {
            name: returned(CONTENDERS[name], url, asked.jobs, "trips")
            for name in names
            if name.startswith("Backburner") or name == "Celery, prefork"
        }
        if trips:
            report.compare("From the call to the result (high: p99)", figures(trips), next(iter(trips)), ())
        queued = weights([name for name in names if name != "Celery, solo"], url, asked.queued)
        text = "\n  ".join(f"{name:<28} {size:>6,} bytes" for name, size in queued.items())
        report.tell(f"Memory for each of {asked.queued:,} queued jobs", queued, text)
        if not asked.only:
            report.write(url)


if __name__ == "__main__":
    main()
