"""Claims about two processes, made by two processes."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from backburner import Cache
from backburner.cache.stores.redis import RedisStore
from tests.conftest import Eventually

ROOT = Path(__file__).parents[2]
SAFETY_NET = 10.0
"""Seconds after which who waits for another process would look for itself, in tests of being woken."""


class Program:
    """A program of `programs`, line by line."""

    def __init__(self, name: str, *arguments: str) -> None:
        command = [sys.executable, "-m", "tests.contract.programs", name, *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    def says(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def tell(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def programs() -> Iterator[list[Program]]:
    started: list[Program] = []
    yield started
    for program in started:
        program.end()


@pytest.fixture
def cache(redis_url: str) -> Iterator[Cache]:
    cache = Cache(redis_url, strict=True)
    yield cache
    cache.close()


def _calls(client: redis.Redis, command: str) -> int:
    """How often the server was sent a command, or a script has called it, since `config_resetstat`."""
    return client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"]


@pytest.mark.parametrize("rounds", [1, pytest.param(25, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["asyncio", "threads"])
def test_five_hundred_misses_over_two_processes_compute_once_in_each_round(
    redis_url: str, programs: list[Program], kind: str, rounds: int
) -> None:
    programs += [Program("compute", redis_url, kind, "250") for _ in range(2)]
    assert [program.says() for program in programs] == ["ready", "ready"]
    keys = [f"round {n}" for n in range(rounds)]
    for key in keys:
        for program in programs:
            program.tell(key)
        assert [program.says() for program in programs] == ["250", "250"]
    marks = Cache(redis_url, prefix="marks:", strict=True)
    assert marks.many(keys) == dict.fromkeys(keys, 1)
    marks.close()


@pytest.mark.slow  # the lease has to end several times
def test_a_callback_that_outlasts_its_lease_several_times_is_called_once(
    redis_url: str, cache: Cache, programs: list[Program], eventually: Eventually
) -> None:
    programs.append(Program("slow", redis_url, "0.5"))
    assert programs[0].says() == "computing"
    with ThreadPoolExecutor(1) as pool, redis.Redis.from_url(redis_url) as client:
        client.config_resetstat()
        waiting = pool.submit(cache.remember, "key", 60, lambda: "computed twice")
        eventually(lambda: _calls(client, "pexpire") > 10)
        assert not waiting.done()
        programs[0].tell("value")
        assert waiting.result() == "value"
    assert programs[0].says() == "value"
    assert cache.get("key") == "value"


def test_a_process_that_was_held_up_for_longer_than_its_lease_stores_nothing(
    redis_url: str, cache: Cache, programs: list[Program]
) -> None:
    programs.append(Program("slow", redis_url, "0.3"))
    assert programs[0].says() == "computing"
    programs[0].process.send_signal(signal.SIGSTOP)
    assert cache.remember("key", 60, lambda: "of the next") == "of the next"
    programs[0].process.send_signal(signal.SIGCONT)
    programs[0].tell("of before")
    assert programs[0].says() == "of before"
    assert cache.get("key") == "of the next"


def test_two_processes_that_ask_for_overlapping_lists_compute_each_key_once(
    redis_url: str, programs: list[Program], eventually: Eventually
) -> None:
    programs.append(Program("gather", redis_url, "a", "b", "c"))
    assert programs[0].says() == "computing a b c"
    programs.append(Program("gather", redis_url, "d", "c", "b", "e"))
    assert programs[1].says() == "computing d e"
    with redis.Redis.from_url(redis_url) as client:
        client.config_resetstat()
        programs[1].tell("second")
        eventually(lambda: _calls(client, "blpop"))
        programs[0].tell("first")
        assert json.loads(programs[0].says()) == {"a": "first", "b": "first", "c": "first"}
        assert json.loads(programs[1].says()) == {"d": "second", "c": "first", "b": "first", "e": "second"}
        assert _calls(client, "evalsha") < 10  # it was told, and did not ask again and again


def test_who_waits_for_keys_of_a_list_computes_them_when_the_other_process_is_killed(
    redis_url: str, programs: list[Program]
) -> None:
    cache = Cache(redis_url, strict=True, lease=0.3)
    began, go = threading.Event(), threading.Event()

    def load(missing: list[str]) -> dict[str, list[str]]:
        began.set()
        assert go.wait(10)
        return dict.fromkeys(missing, missing)

    with ThreadPoolExecutor(1) as pool:
        programs.append(Program("gather", redis_url, "a", "b"))
        assert programs[0].says() == "computing a b"
        waiting = pool.submit(cache.remember_many, ["b", "c"], 60, load)
        assert began.wait(10)
        with redis.Redis.from_url(redis_url) as client:  # its lease is a long one; let it be nearly over
            client.pexpire("cache:\x01lease:b", 100)
        programs[0].process.kill()
        go.set()
        assert waiting.result() == {"b": ["b"], "c": ["c"]}
    cache.close()


@pytest.mark.parametrize("interfere", ["forget", "flush the tag"])
def test_what_another_process_removes_while_a_list_is_computed_wins(
    redis_url: str, cache: Cache, programs: list[Program], interfere: str
) -> None:
    other = Cache(redis_url, strict=True)

    def load(missing: list[str]) -> dict[str, int]:
        if interfere == "forget":
            other.forget("b")
        else:
            other.tags("books").flush()
        return dict.fromkeys(missing, 1)

    assert cache.tags("books").remember_many(["a", "b"], 60, load) == {"a": 1, "b": 1}
    assert cache.many(["a", "b"]) == ({"a": 1} if interfere == "forget" else {})
    other.close()


@pytest.mark.slow
def test_overlapping_lists_in_any_order_neither_hang_nor_compute_a_key_twice(
    redis_url: str, programs: list[Program]
) -> None:
    programs += [Program("overlap", redis_url, seed) for seed in ("one", "two")]
    assert [program.says() for program in programs] == ["ready", "ready"]
    for program in programs:
        program.tell("go")
    assert [program.says() for program in programs] == ["40", "40"]
    marks = Cache(redis_url, prefix="marks:", strict=True)
    keys = [f"key {n}" for n in range(40)]
    assert set(marks.many(keys).values()) == {1}
    marks.close()


@pytest.fixture
def wide_safety_net(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is not woken by push comes late beyond doubt."""
    monkeypatch.setattr(RedisStore, "patience", SAFETY_NET)


@pytest.mark.usefixtures("wide_safety_net")
def test_who_waits_is_woken_by_the_one_that_computed(redis_url: str, cache: Cache, programs: list[Program]) -> None:
    programs.append(Program("slow", redis_url))
    assert programs[0].says() == "computing"
    programs[0].tell("value")
    began = time.perf_counter()
    assert cache.remember("key", 60, lambda: "computed twice") == "value"
    assert time.perf_counter() - began < SAFETY_NET / 2
    assert programs[0].says() == "value"


def test_a_killed_leader_is_replaced_when_its_lease_ends(redis_url: str, cache: Cache, programs: list[Program]) -> None:
    programs.append(Program("hang", redis_url, "1"))
    assert programs[0].says() == "computing"
    programs[0].process.kill()
    began = time.perf_counter()
    assert cache.remember("key", 60, lambda: "of the next") == "of the next"
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize("interfere", ["forget", "put", "add", "increment", "flush", "pull"])
def test_what_another_process_writes_or_removes_while_a_value_is_computed_wins(
    redis_url: str, cache: Cache, programs: list[Program], interfere: str
) -> None:
    programs.append(Program("slow", redis_url))
    assert programs[0].says() == "computing"
    match interfere:
        case "put" | "add":
            getattr(cache, interfere)("key", "newer")
        case "flush":
            cache.flush()
        case verb:
            getattr(cache, verb)("key")
    programs[0].tell("of before")
    assert programs[0].says() == "of before"
    assert cache.get("key") == {"put": "newer", "add": "newer", "increment": 1}.get(interfere)


@pytest.mark.usefixtures("wide_safety_net")
def test_who_waits_goes_on_at_once_when_the_other_process_gave_up_or_was_overruled(
    redis_url: str, cache: Cache, programs: list[Program]
) -> None:
    programs.append(Program("slow", redis_url))
    assert programs[0].says() == "computing"
    cache.forget("key")
    began = time.perf_counter()
    assert cache.remember("key", 60, lambda: "after") == "after"  # the lease went with the key
    assert time.perf_counter() - began < SAFETY_NET / 2
    programs[0].tell("of before")
    assert programs[0].says() == "of before"
    assert cache.get("key") == "after"
