"""How long values take to become bytes and to come back, beside pickle and JSON without types.

    python benchmarks/codec.py

Every contender encodes and decodes the same values in one process. Rounds alternate between contenders, so that
a noisy moment hits all of them; the figures are medians over the rounds. Takes under 30 seconds and writes
results/codec.json.
"""

import gc
import importlib.metadata
import json
import os
import pickle
import platform
import statistics
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from time import perf_counter
from typing import Any

import orjson
from pydantic import BaseModel, TypeAdapter

from backburner.cache.codec import JSONCodec, PickleCodec

ROUNDS = 25
SECONDS_PER_ROUND = 0.005
RESULTS = Path(__file__).parent / "results" / "codec.json"


class Book(BaseModel):
    id: int
    title: str
    author: str
    language: str
    publisher: str | None
    pages: int
    price: float
    in_stock: bool
    tags: list[str]
    published: date
    created_at: datetime
    updated_at: datetime


def row(number: int) -> dict[str, Any]:
    created = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=number, microseconds=123456)
    return {
        "id": number,
        "title": f"The Collected Letters, Volume {number}",
        "author": f"Author {number}",
        "language": "en",
        "publisher": None,
        "pages": 300 + number,
        "price": 12.5 + number,
        "in_stock": True,
        "tags": ["letters", f"volume-{number}"],
        "published": date(1900 + number, 5, 17),
        "created_at": created,
        "updated_at": created + timedelta(hours=3),
    }


def plain(number: int) -> dict[str, Any]:
    return json.loads(json.dumps(row(number), default=str))


VALUES: dict[str, Any] = {
    "dict, 12 fields, 3 of them dates": row(1),
    "the same, dates as text": plain(1),
    "pydantic model of it": Book(**row(1)),
    "20 such dicts": [row(number) for number in range(20)],
    "20 such dicts, dates as text": [plain(number) for number in range(20)],
    "20 such models": [Book(**row(number)) for number in range(20)],
}

ANNOTATIONS: dict[str, Any] = {"pydantic model of it": Book, "20 such models": list[Book]}
"""What somebody would have to say about a value for pydantic to read it."""

Contender = tuple[Callable[[Any], bytes], Callable[[bytes], Any]]


def contenders(annotation: Any) -> dict[str, Contender]:
    codec = JSONCodec()
    signed = PickleCodec(b"a signing key for measuring only")
    adapter = TypeAdapter(annotation)
    annotated = {"TypeAdapter, validates": (adapter.dump_json, adapter.validate_json)} if annotation else {}
    return annotated | {
        "JSON codec": (codec.encode, codec.decode),
        "pickle": (lambda value: pickle.dumps(value, 5), pickle.loads),
        "signed pickle": (lambda value: signed.encode(value, "key"), lambda data: signed.decode(data, "key")),
        "orjson, types lost": (lambda value: orjson.dumps(value, default=BaseModel.model_dump), orjson.loads),
    }


def loops_per_round(function: Callable[[], object]) -> int:
    loops = 1
    while True:
        started = perf_counter()
        for _ in range(loops):
            function()
        if (took := perf_counter() - started) > SECONDS_PER_ROUND / 10:
            return max(1, round(loops * SECONDS_PER_ROUND / took))
        loops *= 4


def microseconds(function: Callable[[], object], loops: int) -> float:
    repeat = range(loops)
    started = perf_counter()
    for _ in repeat:
        function()
    return (perf_counter() - started) / loops * 1e6


def measure(value: Any, annotation: Any) -> dict[str, dict[str, float]]:
    jobs: dict[tuple[str, str], tuple[Callable[[], object], int]] = {}
    sizes = {}
    for name, (encode, decode) in contenders(annotation).items():
        data = encode(value)
        if "lost" not in name:
            assert decode(data) == value, name
        sizes[name] = len(data)
        for what, function in (
            ("encode", lambda encode=encode: encode(value)),
            ("decode", lambda decode=decode, data=data: decode(data)),
        ):
            jobs[name, what] = (function, loops_per_round(function))
    rounds: dict[tuple[str, str], list[float]] = {job: [] for job in jobs}
    gc.collect()
    gc.disable()
    for _ in range(ROUNDS):
        for job, (function, loops) in jobs.items():
            rounds[job].append(microseconds(function, loops))
    gc.enable()
    return {
        name: {
            "encode": statistics.median(rounds[name, "encode"]),
            "decode": statistics.median(rounds[name, "decode"]),
            "bytes": sizes[name],
        }
        for name in sizes
    }


def main() -> None:
    results = {name: measure(value, ANNOTATIONS.get(name)) for name, value in VALUES.items()}
    names = list(contenders(Book))
    names.append(names.pop(0))
    print("microseconds to encode / decode (bytes)\n")
    print(f"{'':34}" + "".join(f"{name:>26}" for name in names))
    for value, row_ in results.items():
        cells = [
            f"{row_[n]['encode']:.1f} / {row_[n]['decode']:.1f} ({row_[n]['bytes']:.0f})" if n in row_ else ""
            for n in names
        ]
        print(f"{value:34}" + "".join(f"{cell:>26}" for cell in cells))
    RESULTS.parent.mkdir(exist_ok=True)
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: importlib.metadata.version(name) for name in ("backburner", "orjson", "pydantic")},
        "microseconds": results,
    }
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
