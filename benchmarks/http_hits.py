"""What a cached response costs, of a constant one, beside the field: 11 KB of JSON, on uvicorn and granian.

    make bench-http, or: python benchmarks/http_hits.py [--short] [redis://…]

The route has two dependencies, 20 pydantic models and a response model. 64 connections, one worker; contenders take
turns of one second. Each must give the same page and, where it caches, without calling the route. Beside
requests for the page there are conditional ones, which contenders answer with 304 that can. Takes eight minutes, and
one if it is to be short, without the peers.
"""

import asyncio
import itertools
import json
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace

from harness import SHORT, Bar, Figure, Report, compete, server
from served import CONSTANT, COPIES, MEMORY, PAGE, SERVER, SHOPS
from wrk import SERVERS, Burst, Served

from backburner.redis.url import ServerURL

ROUNDS = 5
PACKAGES = (
    *("cashews", "fastapi", "fastapi-cache2", "fastapi-cachex", "fastapi-redis-sdk", "granian", "hishel"),
    *("httptools", "uvicorn", "uvloop"),
)
UNCACHED = (CONSTANT, "no cache")
BARS = (
    Bar(MEMORY, 1 / 0.75, CONSTANT),
    Bar(COPIES, 1 / 0.75, CONSTANT),
    Bar(SERVER, 1 / 0.45, CONSTANT),
    Bar(COPIES, 1 / 9, "fastapi-cache2, memory"),
    Bar(SERVER, 1 / 9, "fastapi-cache2, Redis"),
)
CONTENDERS = (CONSTANT, MEMORY, COPIES, SERVER) if SHORT else tuple(SHOPS)
SLOWEST = "slowest of a hundred"
ASPECTS: dict[str, Callable[[Burst], float]] = {
    "time": lambda burst: burst.each,
    "processor": lambda burst: burst.processor,
    SLOWEST: lambda burst: burst.p99,
}
_pages = itertools.count(time.time_ns())


def fresh_page() -> str:
    """The path of a page that nobody has stored, also in a server that is used again."""
    return f"/books?page={next(_pages)}"


def checked(served: Served, path: str) -> str:
    """The entity-tag of a page that is right, and that does not reach the route again."""
    calls = []
    for _ in range(20):
        response, content = served.get(path)
        if response.status != 200 or json.loads(content) != json.loads(PAGE):
            raise SystemExit(f"{served.contender} gives another page: {response.status} {content[:200]!r}")
        calls.append(0 if served.contender in UNCACHED else served.calls)
    if calls[-1] != calls[2]:  # hishel stores while a second request is on its way
        raise SystemExit(f"{served.contender} calls the route again: {calls} times")
    return response.headers.get("etag", "")


async def race(measures: Mapping[str, Callable[[], Burst]]) -> dict[str, list[Burst]]:
    """Bursts in turns; the first of each does not count."""
    bursts: dict[str, list[Burst]] = {name: [] for name in measures}

    def one(name: str) -> float:
        bursts[name].append(measures[name]())
        return bursts[name][-1].each

    await compete({name: lambda name=name: one(name) for name in measures}, ROUNDS)
    return {name: some[1:] for name, some in bursts.items()}


def figures(bursts: Mapping[str, list[Burst]], of: Callable[[Burst], float]) -> dict[str, Figure]:
    told = {}
    for name, some in bursts.items():
        values = [of(burst) for burst in some]
        told[name] = Figure(statistics.median(values), min(values), max(values))
    return told


def tell(
    report: Report, title: str, bursts: Mapping[str, list[Burst]], base: str = CONSTANT, bars: tuple[Bar, ...] = ()
) -> None:
    """Three tables; bars count for what clients see, and for the processor, where a busy machine is fair."""
    for what, of in ASPECTS.items():
        found = figures(bursts, of)
        report.compare(f"{title}, {what}", found, base)
        if what != SLOWEST:
            verdicts = filter(None, (bar.verdict(found) for bar in bars))
            report.judge(replace(verdict, what=f"{verdict.what}; {title}, {what}") for verdict in verdicts)


def run(report: Report, web: str, url: str) -> None:
    path = fresh_page()
    with ExitStack() as stack:
        shops = [stack.enter_context(Served(name, web, url)) for name in CONTENDERS]
        tags = {shop.contender: checked(shop.wait(), path) for shop in shops}
        pages = {shop.contender: lambda shop=shop: shop.burst(path) for shop in shops}
        tell(report, f"A page, {web}", asyncio.run(race(pages)), bars=BARS)
        if SHORT:
            return
        conditional = {
            shop.contender: lambda shop=shop, tag=tag: shop.burst(path, {"If-None-Match": tag})
            for shop, tag in ((shop, tags[shop.contender]) for shop in shops)
            if tag and shop.get(path, **{"If-None-Match": tag})[0].status == 304
        }
        tell(report, f"A 304, {web}", asyncio.run(race({CONSTANT: pages[CONSTANT], **conditional})))


def main() -> None:
    report = Report("http_hits", PACKAGES)
    with server() as given:
        url = ServerURL.parse(given).redis_url
        for web in SERVERS:
            run(report, web, url)
        report.write(url)


if __name__ == "__main__":
    main()
