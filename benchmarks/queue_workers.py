"""How many jobs that do nothing workers get through, beside Celery and the field, without and with results.

    make bench-queue, or: python benchmarks/queue_workers.py [redis://…]
        [--only NAME …] [--results with|without] [--rounds 3]

Two processes (or one with two children), each as its documentation recommends for speed; Celery and Backburner with
the same settings (prefetch of 64 for each slot, no events), and Backburner also as it comes. Jobs are enqueued while
the workers are stopped (SIGSTOP), so that they find all of them at once. Also told: processor time of workers and
server for a job, and commands that the server carried out, those inside of scripts included. Takes ten minutes.
"""

import argparse
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import psutil
import redis
from harness import Bar, Figure, Report, server

HERE = Path(__file__).parent / "workers"
PROCESSES = 2
PATIENCE = 120.0
STAMPS = 16
"""Jobs that follow the others and tell when they are run: the last of them tells when all is done."""

TASKIQ = "taskiq worker for_taskiq:broker --workers {processes} --log-level WARNING"
RQ = "rq worker -w rq.SimpleWorker -u {url}"
ALONE = "--without-gossip --without-mingle --without-heartbeat --loglevel=WARNING"
CELERY = f"celery -A for_celery worker {ALONE} -n {{number}}@%h"
PLUS = f"celery -A for_celery_redis_plus worker {ALONE} -n {{number}}@%h"
OURS = f"celery -A for_backburner worker {ALONE} -n {{number}}@%h"


@dataclass(frozen=True)
class Contender:
    """Workers of one kind."""

    module: str
    command: str
    """With ``{processes}``: one command for all of them; else one command for each."""
    jobs: int = 20_000
    """In a round: as many as take a few seconds."""
    env: dict[str, str] = field(default_factory=dict)
    results: bool | None = None
    """Whether it can do with results only, or without only."""


def is_installed(name: str) -> bool:
    """Whether that package takes part here: not each one takes every version of Python."""
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


_ALL = {
    "Celery, prefork": Contender("for_celery", f"{CELERY} -c {{processes}}", 5_000),
    "Celery, solo": Contender("for_celery", f"{CELERY} -P solo", 6_000),
    "Celery, threads": Contender("for_celery", f"{CELERY} -P threads -c 10", 5_000),
    "celery-redis-plus, prefork": Contender("for_celery_redis_plus", f"{PLUS} -c {{processes}}", 6_000),
    "celery-redis-plus, solo": Contender("for_celery_redis_plus", f"{PLUS} -P solo", 6_000),
    "Backburner, prefork": Contender("for_backburner", f"{OURS} -c {{processes}}"),
    "Backburner, solo": Contender("for_backburner", f"{OURS} -P solo", 40_000),
    "Backburner, threads": Contender("for_backburner", f"{OURS} -P threads -c 10"),
    "Backburner, asyncio": Contender("for_backburner", f"{OURS} -P asyncio -c 100", 30_000, {"BENCH_ASYNC": "1"}),
    "Backburner, prefork, as it comes": Contender(
        "for_backburner", f"{OURS} -c {{processes}}", 10_000, {"BENCH_AS_IT_COMES": "1"}
    ),
    "taskiq, lists": Contender("for_taskiq", TASKIQ),
    "taskiq, streams": Contender("for_taskiq", TASKIQ, env={"BENCH_STREAM": "1"}),
    "huey": Contender("for_huey", "huey_consumer for_huey.huey -w {processes} -k process -q"),
    "saq": Contender("for_saq", "saq for_saq.settings", 10_000, results=True),
    "dramatiq": Contender("for_dramatiq", "dramatiq -p {processes} -t 8 for_dramatiq", 10_000),
    "streaq": Contender("for_streaq", "streaq run for_streaq:worker", 5_000),
    "arq": Contender("for_arq", "arq for_arq.Worker", 3_000),
    "rq": Contender("for_rq", f"{RQ} --logging_level WARNING default", 2_000, results=True),
}
CONTENDERS = {name: contender for name, contender in _ALL.items() if is_installed(contender.module[4:])}
_PACKAGES = "arq celery celery-redis-plus dramatiq huey kombu rq saq streaq taskiq taskiq-redis"
PACKAGES = tuple(filter(is_installed, _PACKAGES.split()))
WITHOUT = "without results"
WITH = "with results"


@dataclass(frozen=True)
class Drained:
    """One round of one contender."""

    seconds: float
    """For a job."""
    worker: float
    """Seconds of processor time for a job."""
    server: float
    commands: float


@contextmanager
def workers(contender: Contender, url: str, *, processes: int, results: bool) -> Iterator[list[psutil.Process]]:
    """Start workers. They are in one process group each, and gone afterwards."""
    env = os.environ | contender.env | {"BENCH_URL": url, "BENCH_RESULTS": str(int(results)), "PYTHONPATH": str(HERE)}
    shared = "{processes}" in contender.command
    started: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryFile() as log:
        try:
            for number in range(1 if shared else processes):
                command = shlex.split(contender.command.format(processes=processes, number=number, url=url))
                command[0] = str(Path(sys.executable).parent / command[0])
                started.append(
                    subprocess.Popen(command, cwd=HERE, env=env, stdout=log, stderr=log, start_new_session=True)
                )
            yield [psutil.Process(process.pid) for process in started]
        except TimeoutError:
            log.seek(0)
            print(log.read()[-2000:].decode(errors="replace"), file=sys.stderr)
            raise
        finally:
            for process in started:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def produce(contender: Contender, url: str, calls: str, *, results: bool) -> str:
    """Make calls of a contender's module, `jobs`, in a process of its own, for most keep connections to one server for
    ever. What it prints.
    """
    code = (
        f"import asyncio, json, job, {contender.module} as jobs\n"
        "async def main():\n"
        "    await jobs.start()\n"
        f"    {calls}\n"
        "asyncio.run(main())"
    )
    env = os.environ | contender.env | {"BENCH_URL": url, "BENCH_RESULTS": str(int(results)), "PYTHONPATH": str(HERE)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{contender.module}: nothing could be enqueued\n{done.stderr}")
    return done.stdout


def stamps(client: "redis.Redis", count: int) -> list[tuple[float, float]]:
    """Wait until jobs have told when they were run: when, and how long after they were sent, in seconds."""
    ends = time.monotonic() + PATIENCE
    while client.llen("bench:stamps") < count:
        if time.monotonic() > ends:
            raise TimeoutError
        time.sleep(0.02)
    told = [tuple(map(float, stamp.split())) for stamp in client.lrange("bench:stamps", 0, -1)]
    client.delete("bench:stamps")
    return [(when, waited) for when, waited in told]


def warm_up(contender: Contender, url: str, client: "redis.Redis", *, processes: int, results: bool) -> None:
    """Wait until the workers are there and have done something."""
    count = 20 * processes
    produce(contender, url, f"await job.repeat(jobs.send_stamp, {count}, 0.01)", results=results)
    stamps(client, count)


def all_of(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """With their children."""
    return [each for process in processes for each in (process, *process.children(recursive=True))]


def processor_time(processes: Iterable[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in all_of(processes))


def drain(contender: Contender, url: str, *, processes: int, results: bool, jobs: int) -> Drained:
    """Have jobs enqueued, and workers at them."""
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        with workers(contender, url, processes=processes, results=results) as started:
            warm_up(contender, url, client, processes=processes, results=results)
            for process in all_of(started):
                process.send_signal(signal.SIGSTOP)
            calls = f"await jobs.enqueue({jobs}); await job.repeat(jobs.send_stamp, {STAMPS})"
            produce(contender, url, calls, results=results)
            before, cpu = client.info(), processor_time(started)
            began = time.time()
            for process in all_of(started):
                process.send_signal(signal.SIGCONT)
            told = stamps(client, STAMPS)
            after, spent = client.info(), processor_time(started) - cpu

    def gone(name: str) -> float:
        return (after[name] - before[name]) / jobs

    return Drained(
        (max(when for when, _ in told) - began) / jobs,
        spent / jobs,
        gone("used_cpu_user") + gone("used_cpu_sys"),
        gone("total_commands_processed"),
    )


def measure(names: Iterable[str], url: str, rounds: int, *, results: bool) -> dict[str, list[Drained]]:
    """Each contender's rounds."""
    told: dict[str, list[Drained]] = {}
    for number in range(rounds):
        for name in names:
            contender = CONTENDERS[name]
            if contender.results not in (None, results):
                continue
            try:
                found = drain(contender, url, processes=PROCESSES, results=results, jobs=contender.jobs)
            except TimeoutError:
                print(f"  {name}: not done within {PATIENCE:g} s", flush=True)
                continue
            print(f"  round {number + 1}, {name}: {1 / found.seconds:,.0f} jobs/s", file=sys.stderr, flush=True)
            told.setdefault(name, []).append(found)
    return told


def tell(report: Report, title: str, told: dict[str, list[Drained]], bars: Iterable[Bar]) -> None:
    """A table of times, and one of what they cost."""
    figures = {
        name: Figure(
            statistics.median(each.seconds for each in some),
            min(each.seconds for each in some),
            max(each.seconds for each in some),
        )
        for name, some in told.items()
    }
    base = next(iter(figures))
    report.compare(title, figures, base, bars)
    costs = {
        name: {
            "jobs per second": round(1 / figures[name].median),
            "worker, us": round(1e6 * statistics.median(each.worker for each in some), 1),
            "server, us": round(1e6 * statistics.median(each.server for each in some), 1),
            "commands": round(statistics.median(each.commands for each in some), 1),
        }
        for name, some in told.items()
    }
    lines = (
        f"{name:<34} {cost['jobs per second']:>7,}/s  workers {cost['worker, us']:>7} us, "
        f"server {cost['server, us']:>6} us, {cost['commands']:>5} commands"
        for name, cost in costs.items()
    )
    report.tell(f"Processor time and commands for a job, {title}", costs, "\n  ".join(lines))


def bars(figures: Iterable[str], *, results: bool) -> list[Bar]:
    """What DESIGN promises of 2 processes."""
    prefork, solo, asynchronous = (2.9, 9, 7) if results else (3.5, 15, 10)
    peers = [name for name in figures if not name.startswith(("Celery", "Backburner"))]
    return [
        Bar("Backburner, prefork", 1 / prefork, "Celery, prefork"),
        Bar("Backburner, solo", 1 / solo, "Celery, prefork"),
        Bar("Backburner, asyncio", 1 / asynchronous, "Celery, prefork"),
        *(Bar(ours, 1, peer) for ours in ("Backburner, solo", "Backburner, asyncio") for peer in peers),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, metavar="NAME")
    parser.add_argument("--results", choices=("with", "without"))
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    sys.argv[1:] = [asked.url] if asked.url else []
    names = list(asked.only or CONTENDERS)
    report = Report(Path(__file__).stem, PACKAGES)
    halves = [half for half in ((False, WITHOUT), (True, WITH)) if asked.results in (None, half[1].split()[0])]
    with server() as url:
        for results, title in halves:
            told = measure(names, url, asked.rounds, results=results)
            tell(report, title, told, bars(told, results=results))
        if not (asked.only or asked.results):
            report.write(url)


if __name__ == "__main__":
    main()
