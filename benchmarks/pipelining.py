"""How long a GET of 1 KB takes for many coroutines of one event loop: one pipelined connection beside redis-py's pool.

    python benchmarks/pipelining.py [redis://…]

Without a URL an embedded server is started. Rounds alternate between contenders, so that a noisy moment hits all of
them; the figures are medians over the rounds, in microseconds per GET. Takes under 30 seconds and writes
results/pipelining.json.
"""

import asyncio
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import redis

from backburner.redis.client import aconnect
from backburner.redis.embedded import EmbeddedServer
from backburner.redis.pipelined import PipelinedClient

COROUTINES = (1, 64, 256)
ROUNDS = 11
GETS = {"pipelined": 8000, "redis-py": 2000}
"""In each round; a tenth of it for a coroutine that is alone."""
TIMEOUT = 5.0
VALUE = b"x" * 1024
EXPECTED = 5.0
"""Times faster than the pool, with 64 coroutines."""
RESULTS = Path(__file__).parent / "results" / "pipelining.json"


async def measure(client: Any, coroutines: int, gets: int) -> tuple[float, float]:
    """Microseconds of time, and of this process's CPU, per GET."""
    each = max(1, gets // coroutines)

    async def caller() -> None:
        for _ in range(each):
            await client.execute_command("GET", "value")

    began, cpu = perf_counter(), process_time()
    await asyncio.gather(*(caller() for _ in range(coroutines)))
    per_get = 1e6 / (each * coroutines)
    return (perf_counter() - began) * per_get, (process_time() - cpu) * per_get


async def compare(url: str) -> dict[int, dict[str, dict[str, float]]]:
    clients = {"pipelined": PipelinedClient(url, timeout=TIMEOUT), "redis-py": aconnect(url, timeout=TIMEOUT)}
    figures: dict[int, dict[str, dict[str, float]]] = {}
    for coroutines in COROUTINES:
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in clients}
        for round_ in range(ROUNDS + 1):
            for name, client in clients.items():
                time = await measure(client, coroutines, GETS[name] // (10 if coroutines == 1 else 1))
                if round_:  # the first one makes the connections
                    times[name].append(time)
        figures[coroutines] = {
            name: {
                "microseconds": round(statistics.median(time for time, _ in measured), 2),
                "cpu_microseconds": round(statistics.median(cpu for _, cpu in measured), 2),
                "fastest": round(min(measured)[0], 2),
                "slowest": round(max(measured)[0], 2),
            }
            for name, measured in times.items()
        }
    for client in clients.values():
        await client.aclose()
    return figures


@contextmanager
def server() -> Iterator[str]:
    if len(sys.argv) > 1:
        yield sys.argv[1]
        return
    with tempfile.TemporaryDirectory() as directory, EmbeddedServer(Path(directory)) as embedded:
        yield embedded.url


def main() -> None:
    with server() as url:
        with redis.Redis.from_url(url) as client:
            client.set("value", VALUE, ex=600)
            version = client.info("server")
        figures = asyncio.run(compare(url))
    print(f"{'coroutines':>10} {'pipelined':>12} {'redis-py':>12} {'ratio':>7}   CPU: {'pipelined':>9} {'redis-py':>9}")
    for coroutines, of in figures.items():
        ours, theirs = of["pipelined"], of["redis-py"]
        print(
            f"{coroutines:>10} {ours['microseconds']:>9.1f} us {theirs['microseconds']:>9.1f} us"
            f" {theirs['microseconds'] / ours['microseconds']:>6.1f}x"
            f"        {ours['cpu_microseconds']:>9.1f} {theirs['cpu_microseconds']:>9.1f}"
        )
    ratio = figures[64]["redis-py"]["microseconds"] / figures[64]["pipelined"]["microseconds"]
    print(f"64 coroutines: {ratio:.1f}x, expected {EXPECTED:.0f}x: {'reached' if ratio >= EXPECTED else 'MISSED'}")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps(
            {
                "python": platform.python_version(),
                "processor": f"{platform.machine()}, {os.cpu_count()} cores",
                "redis-py": importlib.metadata.version("redis"),
                "hiredis": importlib.metadata.version("hiredis"),
                "server": version.get("valkey_version") or version["redis_version"],
                "value_bytes": len(VALUE),
                "rounds": ROUNDS,
                "coroutines": figures,
            },
            indent=2,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
