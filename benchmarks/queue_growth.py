"""How the throughput of workers changes with 1, 2 and 4 processes, and with 1 thousand to 1 million jobs queued.

    make bench-queue, or: python benchmarks/queue_growth.py [redis://…]

Jobs that do nothing, without results, as in queue_workers.py. Who could not end in two minutes is left out of the
larger queues. Also told: what the server's memory grows by for each queued job. Takes ten minutes.
"""

import statistics
from pathlib import Path

import redis
from harness import Figure, Report, server
from queue_workers import CONTENDERS, drain, produce

PROCESSES = (1, 2, 4)
GROWING = ("Backburner, solo", "Backburner, prefork", "Celery, prefork", "huey", "taskiq, lists")
QUEUED = {
    1_000: ("Backburner, solo", "Backburner, prefork", "Celery, prefork", "huey", "taskiq, lists"),
    100_000: ("Backburner, solo", "Backburner, prefork", "huey", "taskiq, lists"),
    1_000_000: ("Backburner, solo",),
}
ROUNDS = 2
"""Of up to 50,000 jobs; more are counted once."""


def seconds(url: str, name: str, jobs: int, processes: int) -> Figure:
    """For a job."""
    rounds = ROUNDS if jobs <= 50_000 else 1
    contender = CONTENDERS[name]
    times = [drain(contender, url, processes=processes, results=False, jobs=jobs).seconds for _ in range(rounds)]
    return Figure(statistics.median(times), min(times), max(times))


def weight(url: str, jobs: int) -> int:
    """Bytes of the server's memory for a queued job, its record included."""
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        before = client.info("memory")["used_memory"]
        produce(CONTENDERS["Backburner, solo"], url, f"await jobs.enqueue({jobs})", results=False)
        grown: int = client.info("memory")["used_memory"] - before
        client.flushdb()
    return round(grown / jobs)


def rate(figure: Figure) -> str:
    return f"{1 / figure.median:,.0f} jobs/s"


def main() -> None:
    report = Report(Path(__file__).stem, ("celery", "huey", "kombu", "taskiq", "taskiq-redis"))
    with server() as url:
        for processes in PROCESSES:
            told = {name: seconds(url, name, CONTENDERS[name].jobs, processes) for name in GROWING}
            report.compare(f"{processes} processes", told, "Celery, prefork")
            print(*(f"  {name}: {rate(figure)}" for name, figure in told.items()), sep="\n", flush=True)
        for queued, names in QUEUED.items():
            told = {name: seconds(url, name, queued, 2) for name in names}
            report.compare(f"{queued:,} queued, 2 processes", told, "Backburner, solo")
            print(*(f"  {name}: {rate(figure)}" for name, figure in told.items()), sep="\n", flush=True)
        # Of a thousand, what the allocator keeps from before would be most.
        weights = {f"{jobs:,} queued": weight(url, jobs) for jobs in QUEUED if jobs > 10_000}
        report.tell("Bytes of a queued job on the server", weights, str(weights))
        report.write(url)


if __name__ == "__main__":
    main()
