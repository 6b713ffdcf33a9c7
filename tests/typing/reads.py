"""Checked by mypy, not run: what reads of a cache give, with a type and without. As in `decorated`, each `ignore`
stands for an error that there must be."""

import datetime as dt
from typing import Any, assert_type

from backburner import Cache

cache = Cache("memory://")


def load() -> list[str]:
    return []


def load_all(missing: list[str]) -> dict[str, int]:
    return dict.fromkeys(missing, 1)


def rows() -> Any:
    return []


async def aload() -> list[str]:
    return []


async def main() -> None:
    assert_type(cache.get("k", type=list[int]), list[int] | None)
    assert_type(cache.get("k", 0, type=dt.date), dt.date | int)
    assert_type(await cache.aget("k", type=list[int]), list[int] | None)
    assert_type(await cache.aget("k", "", type=dict[str, int]), dict[str, int] | str)
    assert_type(cache.tags("t").pull("k", type=bytes), bytes | None)
    assert_type(await cache.memo().apull("k", b"", type=bytes), bytes)
    assert_type(cache.many(["k"], type=float), dict[str, float])
    assert_type(await cache.amany(["k"], type=float), dict[str, float])
    assert_type(cache.remember("k", 60, rows, type=list[str]), list[str])
    assert_type(cache.remember("k", 60, load), list[str])
    assert_type(cache.remember("k", callback=load, grace="1h"), list[str])
    assert_type(cache.remember_forever("k", load, type=tuple[str, ...]), tuple[str, ...])
    assert_type(cache.remember_forever("k", load, jitter=0.1), list[str])
    assert_type(cache.flexible("k", (1, 2), load), list[str])
    assert_type(cache.flexible("k", ("1m", "2m"), load, type=set[str], none_ttl=1), set[str])
    assert_type(await cache.aremember("k", 60, aload), list[str])
    assert_type(await cache.aremember("k", 60, aload, type=set[str]), set[str])
    assert_type(await cache.aremember_forever("k", aload, type=set[str]), set[str])
    assert_type(await cache.aflexible("k", (1, 2), aload, type=set[str]), set[str])
    assert_type(cache.remember_many(["k"], 60, load_all), dict[str, int])
    assert_type(cache.remember_many(["k"], 60, load_all, type=float), dict[str, float])
    assert_type(await cache.aremember_many(["k"], 60, load_all, type=float), dict[str, float])
    cache.remember("k", 60, load, grase="1h")  # type: ignore[call-overload]
    cache.flexible("k", (1, 2), load, grace="1h")  # type: ignore[call-overload]
    cache.get(5, type=int)  # type: ignore[call-overload]
