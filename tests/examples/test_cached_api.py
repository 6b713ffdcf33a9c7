"""The cached API, by the commands of its README: two processes on one real server."""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from backburner.redis.embedded import EmbeddedServer
from tests.processes import ROOT, Program, free_port, running

Answers = Callable[[str], bool]
Both = tuple[httpx2.Client, httpx2.Client]

HOST = {"Host": "shop.example"}
"""As from a proxy in front of both; the host is part of what tells responses apart."""


@pytest.fixture
def programs() -> list[Program]:
    return []


@pytest.fixture
def both(
    valkey: EmbeddedServer,
    tmp_path: Path,
    eventually: Callable[..., None],
    answers: Answers,
    programs: list[Program],
) -> Iterator[Both]:
    folder = shutil.copytree(ROOT / "examples" / "cached_api", tmp_path / "cached_api")
    one, other = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    env = {"REDIS_URL": valkey.url, "CACHE_PREFIX": f"{tmp_path.name}:"}
    with (
        running(f"uvicorn main:app --port {one.rpartition(':')[2]}", folder, env) as first,
        running(f"uvicorn main:app --port {other.rpartition(':')[2]}", folder, env) as second,
        httpx2.Client(base_url=one, timeout=20, headers=HOST) as left,
        httpx2.Client(base_url=other, timeout=20, headers=HOST) as right,
    ):
        programs += [first, second]
        eventually(lambda: answers(one) and answers(other), timeout=20)
        yield left, right


def put(client: httpx2.Client, number: int, name: str, price: int) -> None:
    client.put(f"/products/{number}", json={"id": number, "name": name, "price": price}).raise_for_status()


def test_what_one_process_writes_the_other_one_shows_at_once(both: Both) -> None:
    left, right = both
    assert left.get("/products/1").status_code == 404
    put(left, 1, "Tea", 4)
    for price in range(20):
        put(left, 1, "Tea", price)
        assert right.get("/products/1").json()["price"] == price
        read = left.get("/products/1")
        assert "hit" in read.headers["cache-status"]
        assert read.json()["price"] == price


def test_the_report_is_computed_once_for_all_who_ask_and_anew_after_a_write(
    both: Both, programs: list[Program], eventually: Callable[..., None]
) -> None:
    def computed() -> int:
        return sum(program.output.count("computing the report") for program in programs)

    put(both[0], 1, "Tea", 4)
    with ThreadPoolExecutor(20) as threads:
        asked = [threads.submit(both[number % 2].get, "/report") for number in range(20)]
    assert [answer.result().json() for answer in asked] == [{"products": 1, "total": 4}] * 20
    assert computed() == 1
    put(both[1], 2, "Cake", 5)
    assert [client.get("/report").json()["total"] for client in both] == [9, 9]
    assert computed() == 2
