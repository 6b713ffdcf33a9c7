"""500 requests for one page that nobody has stored, at the same moment: how often is the application called?

    make bench-http, or: python benchmarks/http_cold.py [redis://…]

First to one process, then to two that share a server, 250 to each. The connections are open before the first request
leaves. A page takes 50 ms; each round is a page of its own. Shown are the calls of a round (fewest and most), and how
long the slowest client waited. Takes three minutes.
"""

import asyncio
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass

from harness import Report, Verdict, in_units, server
from http_hits import PACKAGES, fresh_page
from served import COALESCING, CONSTANT, HOST, PAGE, SHOPS
from wrk import Served

from backburner.redis.url import ServerURL

ROUNDS = 10
CLIENTS = 500
COMPUTE = 0.05
"""Seconds that the page takes."""
NOT_SHARED = (", memory", ", SQLite")
"""Ends the names of those that processes do not share."""


@dataclass
class Outcome:
    """Of one contender's rounds."""

    calls: list[int]
    slowest: list[float]


async def rush(ports: list[int], path: str) -> float:
    """Seconds from the first request to the last response."""
    connections = await asyncio.gather(
        *(asyncio.open_connection("127.0.0.1", ports[number % len(ports)]) for number in range(CLIENTS))
    )
    request = f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode()
    began = time.perf_counter()
    for _, writer in connections:
        writer.write(request)
    answers = await asyncio.gather(*(reader.read() for reader, _ in connections))
    took = time.perf_counter() - began
    for _, writer in connections:
        writer.close()
    bad = [answer for answer in answers if not answer.startswith(b"HTTP/1.1 200") or len(answer) < len(PAGE)]
    if bad:
        raise SystemExit(f"{len(bad)} clients did not get the page: {bad[0][:200]!r}")
    return took


def cold_starts(name: str, processes: int, url: str) -> Outcome:
    outcome = Outcome([], [])
    with ExitStack() as stack:
        shops = [
            stack.enter_context(Served(name, "uvicorn", url, BENCH_COMPUTE=str(COMPUTE))) for _ in range(processes)
        ]
        ports = [shop.wait().port for shop in shops]
        asyncio.run(rush(ports, fresh_page()))  # so that each has its connections to the server
        for _ in range(ROUNDS):
            before = sum(shop.calls for shop in shops)
            outcome.slowest.append(asyncio.run(rush(ports, fresh_page())))
            outcome.calls.append(sum(shop.calls for shop in shops) - before)
    return outcome


def main() -> None:
    report = Report("http_cold", PACKAGES)
    with server() as given:
        url = ServerURL.parse(given).redis_url
        for processes in (1, 2):
            for name in (*SHOPS, *COALESCING):
                if name == CONSTANT or (processes > 1 and name.endswith(NOT_SHARED)):
                    continue
                outcome = cold_starts(name, processes, url)
                fewest, most, slowest = min(outcome.calls), max(outcome.calls), statistics.median(outcome.slowest)
                where = "one process" if processes == 1 else f"{processes} processes"
                report.tell(
                    f"{name}, {where}",
                    {"calls_fewest": fewest, "calls_most": most, "slowest_client_seconds": slowest},
                    f"{fewest} to {most} calls for {CLIENTS} requests, slowest client {in_units(slowest)}",
                )
                if name.startswith("Backburner"):
                    what = f"calls of any round, {name}, {where}"
                    report.judge([Verdict(what, most, "exactly 1", (fewest, most) == (1, 1))])
        report.write(url)


if __name__ == "__main__":
    main()
