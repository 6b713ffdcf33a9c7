"""How the throughput of workers changes with 1, 2 and 4 processes, and with 1 thousand to 1 million jobs queued.

    make bench-queue, or: python benchmarks/queue_growth.py [redis://…]

Jobs that do nothing, without results, as in queue_workers.py. Who could not end in two minutes is left out of the
larger queues. Also told: what the server's memory grows by for each queued job. Takes ten minutes.
"""

import statistics
from pathlib import Path

from harness import Figure, Report, server
from queue_latency import weights
from queue_workers import CONTENDERS, drain

OURS = "Backburner, solo"
PROCESSES = (1, 2, 4)
GROWING = (OURS, "Backburner, prefork", "Celery, prefork", "huey", "taskiq, lists")
QUEUED = {
    1_000: (OURS, "Backburner, prefork", "Celery, prefork", "huey", "taskiq, lists"),
    100_000: (OURS, "Backburner, prefork", "huey", "taskiq, lists"),
    1_000_000: (OURS,),
}
ROUNDS = 2
"""Of up to 50,000 jobs; more are counted once."""


def seconds(url: str, name: str, jobs: int, processes: int) -> Figure:
    """For a job."""
    rounds = ROUNDS if jobs <= 50_000 else 1
    contender = CONTENDERS[name]
    times = [drain(contender, url, processes=processes, results=False, jobs=jobs).seconds for _ in range(rounds)]
    return Figure(statistics.median(times), min(times), max(times))


def tell(report: Report, title: str, told: dict[str, Figure], base: str) -> None:
    report.compare(title, told, base)
    print(*(f"  {name}: {1 / figure.median:,.0f} jobs/s" for name, figure in told.items()), sep="\n", flush=True)


def main() -> None:
    report = Report(Path(__file__).stem, ("celery", "huey", "kombu", "taskiq", "taskiq-redis"))
    with server() as url:
        for processes in PROCESSES:
            told = {name: seconds(url, name, CONTENDERS[name].jobs, processes) for name in GROWING}
            tell(report, f"{processes} processes", told, "Celery, prefork")
        for queued, names in QUEUED.items():
            told = {name: seconds(url, name, queued, 2) for name in names}
            tell(report, f"{queued:,} queued, 2 processes", told, OURS)
        heavy = {f"{jobs:,} queued": weights([OURS], url, jobs)[OURS] for jobs in QUEUED}
        report.tell("Bytes of a queued job on the server", heavy, str(heavy))
        report.write(url)


if __name__ == "__main__":
    main()
