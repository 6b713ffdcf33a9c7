"""How late delayed jobs start while the worker has nothing else to do, beside stock Celery's transport.

    make bench-queue, or: python benchmarks/queue_delays.py [redis://…]

A thousand jobs are due at random moments within ten seconds. The worker is of threads, one with our transport and one
with kombu's, where each delayed job waits in the worker's memory. A job looks at the server's clock first of all, which
costs it a round trip. Takes about a minute.
"""

import os
import random
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import quantiles

import redis
from harness import Report, Verdict, server

from backburner.queue import Celery
from backburner.settings import Settings

JOBS = 1_000
WITHIN = 10.0
"""Seconds in which they become due."""
LEAD = 8.0
"""Seconds until the first is due."""
BAR = 0.05
"""Seconds that one in a hundred may be late, at most."""
LATENESS = "lateness"
OURS, STOCK = "Backburner", "stock transport"

app = Celery("queue_delays", broker_transport=os.environ.get("DELAYS_TRANSPORT") or None)
clock: "redis.Redis" = redis.Redis.from_url(os.environ.get("REDIS_URL", "redis://localhost"))


@app.task(name="arrive", ignore_result=True)
def arrive(due: float) -> None:
    """Say how late it is."""
    clock.rpush(LATENESS, clock_of(clock) - due)


def clock_of(client: "redis.Redis") -> float:
    """The server's time."""
    seconds, micros = client.time()
    return seconds + micros / 1e6


def lateness(url: str, transport: str | None) -> list[float]:
    """Seconds that each job was late."""
    environment = {**os.environ, "REDIS_URL": url, "DELAYS_TRANSPORT": transport or ""}
    quiet = "--loglevel=error --without-gossip --without-mingle --without-heartbeat"
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "queue_delays",
        "worker",
        *quiet.split(),
        "-P",
        "threads",
        "-c",
        "10",
    ]
    producer = Celery(settings=Settings(redis_url=url), broker_transport=transport, set_as_current=False)
    with (
        redis.Redis.from_url(url) as client,
        subprocess.Popen(command, cwd=Path(__file__).parent, env=environment, stderr=subprocess.DEVNULL) as worker,
    ):
        try:
            client.flushdb()
            producer.send_task("arrive", (time.time(),))
            while not client.llen(LATENESS):
                time.sleep(0.1)
            client.delete(LATENESS)
            seconds = clock_of(client)
            for _ in range(JOBS):
                due = seconds + LEAD + random.random() * WITHIN
                producer.send_task("arrive", (due,), eta=datetime.fromtimestamp(due, UTC))
            if clock_of(client) > seconds + LEAD:
                raise RuntimeError(f"jobs were due before all were enqueued, in {LEAD:g} s")
            until = time.monotonic() + LEAD + 3 * WITHIN
            while client.llen(LATENESS) < JOBS and time.monotonic() < until:
                time.sleep(0.1)
            return [float(each) for each in client.lrange(LATENESS, 0, -1)]
        finally:
            worker.send_signal(signal.SIGKILL)
            producer.close()


def main() -> None:
    report = Report(Path(__file__).stem, ("celery", "kombu"))
    with server() as url:
        told = {}
        for name, transport in ((STOCK, "redis"), (OURS, None)):
            late = lateness(url, transport)
            cuts = quantiles(late, n=100)
            told[name] = {"jobs": len(late), "p50": cuts[49], "p99": cuts[98], "most": max(late), "least": min(late)}
        lines = (
            f"{name}: p50 {each['p50'] * 1e3:.1f} ms, p99 {each['p99'] * 1e3:.1f} ms, {each['jobs']} jobs"
            for name, each in told.items()
        )
        report.tell("Lateness of delayed jobs", told, "\n  ".join(lines))
        late = told[OURS]["p99"]
        report.verdicts.append(Verdict("p99 of lateness, in seconds", late, f"at most {BAR:g}", late <= BAR))
        report.write(url)


if __name__ == "__main__":
    main()
