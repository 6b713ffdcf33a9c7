"""What the benchmarks have in common: rounds that alternate between contenders, medians, bars, and where results go.

Contenders take turns, so that a noisy moment of the machine hits all of them, and each figure is a median over the
rounds. Only ratios of one run are claims; absolute times belong to the machine. A bar that is missed is said, in the
table, in the JSON and by `summary.py`, and is no error: a benchmark reports.
"""

import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import redis

from backburner.redis.embedded import EmbeddedServer

RESULTS = Path(__file__).parent / "results"
SHORT = "--short" in sys.argv
"""Whether to run only what bars are about, a few rounds of it, and to write nothing: for a look while one works."""
if SHORT:
    sys.argv.remove("--short")

Round = Callable[[], float | Awaitable[float]]
"""Measures once, and gives seconds per call."""


@dataclass(frozen=True)
class Figure:
    """Seconds per call over the rounds."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Bar:
    """A contender may cost at most so many times what another one costs; less than one means faster."""

    contender: str
    at_most: float
    base: str

    def verdict(self, figures: Mapping[str, Figure]) -> "Verdict | None":
        """How it came out; ``None`` if one of the two did not run."""
        if self.contender not in figures or self.base not in figures:
            return None
        ratio = figures[self.contender].median / figures[self.base].median
        if self.at_most >= 1:
            return Verdict(
                f"{self.contender} / {self.base}", ratio, f"at most {self.at_most:.3g}x", ratio <= self.at_most
            )
        bar = 1 / self.at_most
        return Verdict(f"{self.base} / {self.contender}", 1 / ratio, f"at least {bar:g}x", 1 / ratio >= bar)


@dataclass(frozen=True)
class Verdict:
    """What was claimed, what was measured, and whether that is good enough."""

    what: str
    measured: float
    bar: str
    reached: bool


def called(call: Callable[[], Any], times: int) -> Round:
    """A round of so many calls."""

    def measure() -> float:
        began = time.perf_counter()
        for _ in range(times):
            call()
        return (time.perf_counter() - began) / times

    return measure


def awaited(call: Callable[[], Awaitable[Any]], times: int) -> Round:
    """A round of so many awaited calls, one after the other."""

    async def measure() -> float:
        began = time.perf_counter()
        for _ in range(times):
            await call()
        return (time.perf_counter() - began) / times

    return measure


async def compete(contenders: Mapping[str, Round], rounds: int) -> dict[str, Figure]:
    """Let contenders take turns. A first round, which connects and warms up, does not count."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, measure in contenders.items():
            result = measure()
            seconds = result if isinstance(result, float) else await result
            if number:
                times[name].append(seconds)
    return {name: Figure(statistics.median(some), min(some), max(some)) for name, some in times.items()}


@dataclass
class Report:
    """Prints as it grows, and is written as JSON at the end."""

    name: str
    packages: Iterable[str] = ()
    told: dict[str, Any] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)

    def compare(self, title: str, figures: Mapping[str, Figure], base: str, bars: Iterable[Bar] = ()) -> None:
        """A table of contenders, cheapest first, each as a multiple of `base`."""
        print(f"\n{title}")
        for name, figure in sorted(figures.items(), key=lambda item: item[1].median):
            print(f"  {name:<44} {in_units(figure.median):>10} {figure.median / figures[base].median:>8.1f}x")
        self.told[title] = {name: asdict(figure) for name, figure in figures.items()}
        self.judge(filter(None, (bar.verdict(figures) for bar in bars)))

    def judge(self, verdicts: Iterable[Verdict]) -> None:
        """Add verdicts, and say them."""
        for verdict in verdicts:
            self.verdicts.append(verdict)
            outcome = "reached" if verdict.reached else "MISSED"
            print(f"  {outcome}: {verdict.what} = {verdict.measured:.3g}, {verdict.bar}")

    def tell(self, title: str, columns: Mapping[str, Any], text: str) -> None:
        """A line of figures that are not compared."""
        print(f"\n{title}\n  {text}")
        self.told[title] = dict(columns)

    def write(self, server_url: str | None = None) -> None:
        """Put it into results/, with the versions that took part."""
        if SHORT:
            return
        versions = {name: metadata.version(name) for name in sorted({"redis", "hiredis", *self.packages})}
        if server_url is not None:
            with redis.Redis.from_url(server_url) as client:
                info = client.info("server")
            valkey = info.get("valkey_version")
            versions["server"] = f"Valkey {valkey}" if valkey else f"Redis {info['redis_version']}"
        told = {
            "when": datetime.now(UTC).date().isoformat(),
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "versions": versions,
            "seconds": self.told,
            "bars": [asdict(verdict) for verdict in self.verdicts],
        }
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{self.name}.json").write_text(json.dumps(told, indent=2) + "\n")


def in_units(seconds: float) -> str:
    """With the unit in which it reads best."""
    for unit, size in (("s ", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.0f} ns"


@contextmanager
def server() -> Iterator[str]:
    """The URL given on the command line, or that of an embedded server that is gone afterwards."""
    # Told to stop, as by `timeout`, a benchmark ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    if len(sys.argv) > 1:
        yield sys.argv[1]
        return
    with tempfile.TemporaryDirectory() as directory, EmbeddedServer(Path(directory)) as embedded:
        yield embedded.url


def book(number: int) -> dict[str, Any]:
    """About 1 KB as JSON, with what real rows hold."""
    return {
        "id": number,
        "title": f"The Tenant of Wildfell Hall, volume {number}",
        "author": "Anne Brontë",
        "isbn": f"978-0-00-{number:06d}-0",
        "price": 12.5,
        "pages": 448,
        "in_stock": True,
        "sold_out_since": None,
        "subjects": ["fiction", "classics", "England", "marriage", "19th century"],
        "published": datetime(1848, 6, 24, tzinfo=UTC).date(),
        "added_at": datetime(2026, 1, 5, 9, 30, tzinfo=UTC),
        "description": "A mysterious young widow arrives at Wildfell Hall, an Elizabethan mansion. " * 8,
    }
