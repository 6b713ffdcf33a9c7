"""A worker is killed in the middle of a job, and another one is started at once: after how long is the job done?

    make bench-queue, or: python benchmarks/queue_killed.py [--only NAME …] [--patience 120]

One worker process of each kind, with the settings of queue_workers.py, so with each project's own defaults for what is
asked here. Each contender has a server of its own, and all are killed at the same time, for nearly all of it is
waiting. Takes as long as the patience, and half a minute.
"""

import argparse
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import redis
from harness import Report
from queue_workers import CONTENDERS, PACKAGES, produce, warm_up, workers

from backburner.redis.embedded import EmbeddedServer

NAP = 20.0
"""Seconds that the job takes."""
BEGUN = 2.0
"""Seconds after which every contender has begun it."""


def killed(name: str, patience: float) -> float | None:
    """Seconds from the worker's death until the job is done, less what it takes; ``None`` if that is not within so
    many."""
    contender = CONTENDERS[name]
    results = bool(contender.results)
    with tempfile.TemporaryDirectory() as directory, EmbeddedServer(Path(directory)) as server:
        client = redis.Redis.from_url(server.url, socket_timeout=None)
        with workers(contender, server.url, processes=1, results=results):
            warm_up(contender, server.url, client, processes=1, results=results)
            produce(contender, server.url, "await jobs.enqueue(1)", results=results)
            time.sleep(BEGUN)
            if client.exists("bench:naps"):
                raise SystemExit(f"{name}: the job ended before its worker was killed")
        died = time.monotonic()
        with workers(contender, server.url, processes=1, results=results):
            done = client.blpop(["bench:naps"], patience)
            return time.monotonic() - died - NAP if done else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, metavar="NAME")
    parser.add_argument("--patience", type=float, default=120)
    asked = parser.parse_args()
    os.environ.update(BENCH_NAP=str(NAP), BENCH_NAPS="1")
    names = list(asked.only or CONTENDERS)
    with ThreadPoolExecutor(len(names)) as threads:
        told = dict(zip(names, threads.map(lambda name: killed(name, asked.patience), names), strict=True))
    report = Report(Path(__file__).stem, PACKAGES)
    lines = (
        f"{name:<34} " + ("not within " + f"{asked.patience:g} s" if seconds is None else f"{seconds:.0f} s")
        for name, seconds in sorted(told.items(), key=lambda item: item[1] or float("inf"))
    )
    report.tell("From a worker's death until its job is done, beside what the job takes", told, "\n  ".join(lines))
    if not asked.only:
        report.write()


if __name__ == "__main__":
    main()
