"""Claims about two processes, made by two processes."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backburner import Cache

ROOT = Path(__file__).parents[2]


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


@pytest.mark.parametrize("attempt", range(3))
def test_five_hundred_misses_over_two_processes_compute_once(
    redis_url: str, programs: list[Program], attempt: int
) -> None:
    del attempt  # each must do
    programs += [Program("compute", redis_url, "250") for _ in range(2)]
    assert [program.says() for program in programs] == ["ready", "ready"]
    for program in programs:
        program.tell("go")
    assert [program.says() for program in programs] == ["250", "250"]
    marks = Cache(redis_url, prefix="marks:", strict=True)
    assert marks.get("computed") == 1
    marks.close()


def test_who_waits_is_woken_by_the_one_that_computed(redis_url: str, cache: Cache, programs: list[Program]) -> None:
    programs.append(Program("slow", redis_url))
    assert programs[0].says() == "computing"
    programs[0].tell("value")
    began = time.perf_counter()
    assert cache.remember("key", 60, lambda: "computed twice") == "value"
    assert time.perf_counter() - began < 0.4  # the safety net under the push has half a second
    assert programs[0].says() == "value"


def test_a_killed_leader_is_replaced_when_its_lease_ends(redis_url: str, cache: Cache, programs: list[Program]) -> None:
    programs.append(Program("hang", redis_url, "1"))
    assert programs[0].says() == "computing"
    programs[0].process.kill()
    began = time.perf_counter()
    assert cache.remember("key", 60, lambda: "of the next") == "of the next"
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize("interfere", ["forget", "put", "flush", "pull"])
def test_what_another_process_writes_or_removes_while_a_value_is_computed_wins(
    redis_url: str, cache: Cache, programs: list[Program], interfere: str
) -> None:
    programs.append(Program("slow", redis_url))
    assert programs[0].says() == "computing"
    match interfere:
        case "put":
            cache.put("key", "newer")
        case "flush":
            cache.flush()
        case verb:
            getattr(cache, verb)("key")
    programs[0].tell("of before")
    assert programs[0].says() == "of before"
    assert cache.get("key") == ("newer" if interfere == "put" else None)


def test_who_waits_goes_on_at_once_when_the_other_process_gave_up_or_was_overruled(
    redis_url: str, cache: Cache, programs: list[Program]
) -> None:
    programs.append(Program("slow", redis_url))
    assert programs[0].says() == "computing"
    cache.forget("key")
    began = time.perf_counter()
    assert cache.remember("key", 60, lambda: "after") == "after"  # the lease went with the key
    assert time.perf_counter() - began < 0.4
    programs[0].tell("of before")
    assert programs[0].says() == "of before"
    assert cache.get("key") == "after"
