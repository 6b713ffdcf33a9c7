"""How many jobs that wait one process has at a time: a thousand that sleep for 0.1 s, and what ten thousand need.

    make bench-queue, or: python benchmarks/queue_asyncio.py [redis://…]

One process of each, with room for a thousand jobs, without results. The jobs are enqueued before, while the worker is
stopped; the time is from the first one's beginning to the last one's end, so nothing is better than 0.1 s. Memory is
that of the worker while ten thousand jobs sleep, compared with none. Jobs that do nothing are in queue_workers.py.
Celery's gevent pool takes part where gevent is installed, which is not pinned: it compiles for a while.
"""

import signal
import statistics
import sys
import time
from pathlib import Path

import psutil
import redis
from harness import Bar, Figure, Report, server
from queue_workers import CELERY, OURS, PACKAGES, Contender, all_of, is_installed, produce, warm_up, workers

NAP = 0.1
NAPS = 1000
MANY = 10_000
ROUNDS = 5
PATIENCE = 20.0
IDEAL = "nothing but the sleep"
GEVENT = "Celery, gevent"

CONTENDERS = {
    "Backburner, asyncio": Contender("for_backburner", f"{OURS} -P asyncio -c {{naps}}", env={"BENCH_ASYNC": "1"}),
    "Celery, threads": Contender("for_celery", f"{CELERY} -P threads -c {{naps}}"),
    GEVENT: Contender("for_celery", f"{CELERY} -P gevent -c {{naps}}"),
    "taskiq, lists": Contender(
        "for_taskiq", "taskiq worker for_taskiq:broker --workers 1 --max-async-tasks {naps} --log-level WARNING"
    ),
    "saq": Contender("for_saq", "saq for_saq.settings"),
    "streaq": Contender("for_streaq", "streaq run for_streaq:worker"),
    "arq": Contender("for_arq", "arq for_arq.Worker"),
}


def sleeping(name: str, naps: int, nap: float) -> Contender:
    """The contender, with so many jobs that sleep for so long."""
    contender = CONTENDERS[name]
    env = {"BENCH_NAP": str(nap), "BENCH_NAPS": str(naps), "BENCH_CONCURRENCY": str(naps)}
    # The other placeholders are filled in where it is started.
    command = contender.command.replace("{naps}", str(naps)).replace("{number}", "0")
    return Contender(contender.module, command, naps, contender.env | env)


def a_thousand(name: str, url: str) -> float:
    """Seconds from the first one's beginning to the last one's end."""
    contender = sleeping(name, NAPS, NAP)
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        with workers(contender, url, processes=1, results=False) as started:
            warm_up(contender, url, client, processes=1, results=False)
            _stop_and_enqueue(started, contender, url, NAPS)
            ends = time.monotonic() + PATIENCE
            while (found := client.lpop("bench:naps")) is None:
                if time.monotonic() > ends:
                    raise TimeoutError
                time.sleep(0.02)
            first, last = map(float, found.split())
            return last - first


def memory(url: str) -> float:
    """Bytes for each of many jobs that sleep."""
    contender = sleeping("Backburner, asyncio", MANY, 30.0)
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        with workers(contender, url, processes=1, results=False) as started:
            warm_up(contender, url, client, processes=1, results=False)
            before = _resident(started)
            _stop_and_enqueue(started, contender, url, MANY)
            ends = time.monotonic() + 25
            while client.llen("celery") and time.monotonic() < ends:
                time.sleep(0.1)
            time.sleep(1.0)
            return (_resident(started) - before) / MANY


def _stop_and_enqueue(started: list[psutil.Process], contender: Contender, url: str, count: int) -> None:
    for process in all_of(started):
        process.send_signal(signal.SIGSTOP)
    produce(contender, url, f"await jobs.enqueue({count})", results=False)
    for process in all_of(started):
        process.send_signal(signal.SIGCONT)


def _resident(started: list[psutil.Process]) -> int:
    return sum(process.memory_info().rss for process in all_of(started))


def main() -> None:
    report = Report(Path(__file__).stem, PACKAGES)
    names = [name for name in CONTENDERS if name != GEVENT or is_installed("gevent")]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with server() as url:
        for number in range(ROUNDS):
            for name in names:
                try:
                    seconds[name].append(a_thousand(name, url))
                except TimeoutError:
                    print(f"  {name}: not done", flush=True)
                    continue
                print(f"  round {number + 1}, {name}: {seconds[name][-1]:.3f} s", file=sys.stderr, flush=True)
        figures = {
            name: Figure(statistics.median(some), min(some), max(some)) for name, some in seconds.items() if some
        }
        figures[IDEAL] = Figure(NAP, NAP, NAP)
        ours = "Backburner, asyncio"
        peers = [Bar(ours, 1, name) for name in figures if name not in (ours, IDEAL)]
        report.compare(f"{NAPS} jobs of {NAP} s in one process", figures, IDEAL, [Bar(ours, 1.5, IDEAL), *peers])
        each = memory(url)
        report.tell(
            f"Memory for each of {MANY} jobs that sleep", {ours: each}, f"{ours}: {each / 1024:.1f} KiB for each"
        )
        report.write(url)


if __name__ == "__main__":
    main()
