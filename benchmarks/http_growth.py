"""How a hit's cost grows: bodies from 1 KB to 1 MB, and 1 to 100,000 stored URLs; uvicorn, 64 connections.

    make bench-http, or: python benchmarks/http_growth.py [redis://…]

In front of an application that does next to nothing, so that bodies can be compared with what the web server takes for
them. URLs are of 1 KB and asked for at random; all are stored before the first request. Takes five minutes.
"""

import asyncio
from contextlib import ExitStack

from harness import Bar, Report, server
from http_hits import PACKAGES, race, tell
from served import SIZED
from wrk import Served

from backburner.redis.url import ServerURL

SIZES = {"1 KB": 1_000, "10 KB": 10_000, "100 KB": 100_000, "1 MB": 1_000_000}
URLS = (1, 100, 10_000, 100_000)
UNCACHED, *CACHED = SIZED


def bodies(report: Report, url: str) -> None:
    with ExitStack() as stack:
        shops = [stack.enter_context(Served(name, "uvicorn", url)) for name in SIZED]
        for shop in shops:
            shop.wait("/bodies/1/1")
        for label, size in SIZES.items():
            bursts = asyncio.run(
                race({shop.contender: lambda shop=shop, size=size: shop.burst(f"/bodies/{size}/1") for shop in shops})
            )
            tell(report, f"A body of {label}", bursts, UNCACHED)


def urls(report: Report, contender: str, url: str) -> None:
    with ExitStack() as stack:
        shops = {
            count: stack.enter_context(Served(contender, "uvicorn", url, BENCH_FILL=str(count))).wait("/bodies/1/1")
            for count in URLS
        }
        bursts = asyncio.run(
            race(
                {
                    f"{count:,} entries": lambda shop=shop, count=count: shop.burst("/bodies/1000/", urls=count)
                    for count, shop in shops.items()
                }
            )
        )
    few, many = f"{URLS[1]:,} entries", f"{URLS[-1]:,} entries"
    tell(report, f"Stored URLs, {contender}", bursts, few, (Bar(many, 2, few),))


def main() -> None:
    report = Report("http_growth", PACKAGES)
    with server() as given:
        url = ServerURL.parse(given).redis_url
        bodies(report, url)
        for contender in CACHED:
            urls(report, contender, url)
        report.write(url)


if __name__ == "__main__":
    main()
