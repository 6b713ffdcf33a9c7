"""Bytes that are damaged, of another format or of another key: nothing was there, and an event says so."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backburner import Cache
from backburner.cache.entry import HEADER
from backburner.events import Event, Undecodable

KEY, OTHER = "books:1", "books:2"
VALUES: dict[str, Any] = {
    "dict": {"title": "Emma", "price": 5},
    "typed": {"title": "Emma", "sold": date(2026, 11, 21)},
    "text": "Emma",
    "counter": -1234,
    "big number": 2**70,
    "fraction": 0.125,
    "long": ["Emma"] * 400,
}
VERBS = ["get", "has", "pull", "many", "remember", "remember_many", "flexible", "add", "increment", "touch", "expire"]


@pytest.fixture
def server(redis_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@dataclass
class Watched:
    """A strict cache without copies, and what it says that it cannot read."""

    cache: Cache
    seen: list[Event]

    def reasons(self) -> list[str]:
        """Why entries could not be read since this was last asked."""
        reasons = [event.reason for event in self.seen if isinstance(event, Undecodable) and event.key == KEY]
        self.seen.clear()
        return reasons


@pytest.fixture
def watched(redis_url: str) -> Iterator[Watched]:
    cache = Cache(redis_url, prefix="app:", strict=True, l1=False)
    seen: list[Event] = []
    cache.events.subscribe(seen.append, Undecodable)
    yield Watched(cache, seen)
    cache.close()


def finds_nothing(cache: Cache, verb: str) -> None:
    """Use a verb on a key whose bytes are worth nothing."""
    match verb:
        case "get":
            assert cache.get(KEY, "nothing") == "nothing"
        case "pull":
            assert cache.pull(KEY, "nothing") == "nothing"
        case "many":
            assert cache.many([KEY, "absent"]) == {}
        case "remember":
            assert cache.remember(KEY, 60, lambda: "new") == "new"
            assert cache.get(KEY) == "new"
        case "remember_many":
            assert cache.remember_many([KEY], 60, lambda keys: dict.fromkeys(keys, "new")) == {KEY: "new"}
            assert cache.get(KEY) == "new"
        case "flexible":
            assert cache.flexible(KEY, (60, 120), lambda: "new") == "new"
        case "add":
            assert cache.add(KEY, "new") is True
            assert cache.get(KEY) == "new"
        case "increment":
            assert cache.increment(KEY, 5) == 5
            assert cache.get(KEY) == 5
        case "touch":
            assert cache.touch(KEY, 60) is False
        case "expire":
            cache.expire(KEY)
            assert cache.missing(KEY)
        case _:
            assert cache.has(KEY) is False


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
@pytest.mark.parametrize("tags", [(), ("books",)], ids=["", "tagged"])
def test_an_entry_that_was_cut_off_is_a_miss_wherever_it_was_cut(
    watched: Watched, server: Any, value: object, tags: tuple[str, ...]
) -> None:
    cache = watched.cache.tags(*tags) if tags else watched.cache
    cache.put(KEY, value)
    whole = server.get(f"app:{KEY}")
    lengths = range(len(whole))
    server.mset({f"app:{KEY}:{length}": whole[:length] for length in lengths})
    assert watched.cache.many([f"{KEY}:{length}" for length in lengths]) == {}
    for length in (*range(0, len(whole), 7), len(whole) - 1):
        server.set(f"app:{KEY}", whole[:length])
        assert cache.get(KEY) is None
        assert len(watched.reasons()) == 1


@pytest.mark.parametrize("verb", VERBS)
def test_a_key_never_gets_the_value_of_another_key(watched: Watched, server: Any, verb: str) -> None:
    for value in VALUES.values():
        watched.cache.put(OTHER, value)
        server.copy(f"app:{OTHER}", f"app:{KEY}", replace=True)
        finds_nothing(watched.cache, verb)
        assert verb == "expire" or "another key" in watched.reasons()[0]
        assert watched.cache.get(OTHER) == value


@pytest.mark.parametrize("verb", VERBS)
def test_bytes_of_somebody_else_are_a_miss(watched: Watched, server: Any, verb: str) -> None:
    for data in (b"", b"not ours", b"\xbb\x02", b"5", b"J5", bytes(100), b"\xbb\x02" + bytes(100)):
        server.set(f"app:{KEY}", data)
        finds_nothing(watched.cache, verb)
        # A header of zeros says that it ended in 1970: to be overwritten by a count, whatever follows it.
        assert verb == "expire" or (verb == "increment" and len(data) == 102) or watched.reasons()


@pytest.mark.parametrize("verb", VERBS)
def test_an_entry_of_an_older_format_is_a_miss(watched: Watched, server: Any, verb: str) -> None:
    for_ever = float("inf")
    header = struct.pack(">BBHddddf", 0xBB, 1, 40, 0.0, for_ever, for_ever, for_ever, 0.0)
    server.set(f"app:{KEY}", header + b"J5")
    finds_nothing(watched.cache, verb)
    assert verb == "expire" or set(watched.reasons()) == {"entry format 1, this program reads 2"}


@pytest.mark.parametrize("verb", ["get", "many", "pull", "remember", "add", "increment", "touch"])
@given(data=st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_bytes_give_the_value_or_nothing(watched: Watched, server: Any, verb: str, data: st.DataObject) -> None:
    value = data.draw(st.sampled_from(list(VALUES.values())))
    watched.cache.tags("books").put(KEY, value)
    entry = bytearray(server.get(f"app:{KEY}"))
    is_counter = entry.endswith(b"\n")
    match data.draw(st.sampled_from(["random", "flipped", "longer", "spliced"])):
        case "random":
            damaged = data.draw(st.binary(max_size=100))
        case "flipped":
            # What the server adds to has no check over its digits.
            position = data.draw(st.integers(0, HEADER.size - 1 if is_counter else len(entry) - 1))
            entry[position] ^= 1 << data.draw(st.integers(0, 7))
            damaged = bytes(entry)
        case "longer":
            damaged = bytes(entry) + data.draw(st.binary(min_size=1, max_size=5))
        case _:
            start = data.draw(st.integers(0, len(entry) - 1))
            damaged = bytes(entry[:start]) + data.draw(st.binary(max_size=20))
    server.set(f"app:{KEY}", damaged)
    match verb:
        case "get":
            assert watched.cache.get(KEY) in (None, value)
        case "many":
            assert watched.cache.many([KEY, OTHER]) in ({}, {KEY: value})
        case "pull":
            assert watched.cache.pull(KEY) in (None, value)
        case "remember":
            assert watched.cache.remember(KEY, 60, lambda: "new") in (value, "new")
        case "add":
            watched.cache.add(KEY, "new")
            assert watched.cache.get(KEY) in (value, "new", None)
        case "increment":
            if isinstance(value, int) and value < 2**63:
                assert watched.cache.increment(KEY) in (value + 1, 1)
        case _:
            watched.cache.touch(KEY, 60)
            assert watched.cache.get(KEY) in (None, value)
