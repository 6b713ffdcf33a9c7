"""The Django shop, by the commands of its README: all five states, seen over HTTP."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx2
import pytest

from backburner.redis.embedded import EmbeddedServer
from tests.processes import ROOT, free_port, running

FOLDER = ROOT / "examples" / "django_shop"

Answers = Callable[[str], bool]
Follow = Callable[[httpx2.Client, str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def shop(valkey: EmbeddedServer, eventually: Callable[..., Any], answers: Answers) -> Iterator[httpx2.Client]:
    url = f"http://127.0.0.1:{(port := free_port())}"
    with running(f"python manage.py runserver {port} --noreload", FOLDER, {"REDIS_URL": valkey.url}):
        eventually(lambda: answers(url), timeout=20)
        with httpx2.Client(base_url=url) as client:
            yield client


def order(shop: httpx2.Client, card: str) -> str:
    answer = shop.post("/orders/", json={"card": card, "cents": 999})
    assert answer.status_code == 202
    url: str = answer.json()["url"]
    return url


@pytest.mark.slow
def test_orders_go_through_all_five_states(shop: httpx2.Client, valkey: EmbeddedServer, states_of: Follow) -> None:
    cards = ["4242424242424242", "4000000000000002", "4000000000000119"]
    urls = [order(shop, card) for card in cards]
    with (
        running("celery -A shop worker --loglevel=info", FOLDER, {"REDIS_URL": valkey.url}),
        ThreadPoolExecutor() as threads,
    ):
        paid, declined, asked_again = threads.map(partial(states_of, shop), urls)

    assert states(paid) == ["PENDING", "STARTED", "SUCCESS"]
    assert paid[-1]["result"] == {"paid": 999, "attempts": 1}
    assert states(declined) == ["PENDING", "STARTED", "FAILURE"]
    assert declined[-1]["error"] == "CardDeclinedError: the card ending in 0002 was declined"
    assert states(asked_again) == ["PENDING", "STARTED", "RETRY", "STARTED", "SUCCESS"]
    assert "the payment provider is busy" in asked_again[2]["error"]
    assert asked_again[-1]["result"] == {"paid": 999, "attempts": 2}


def states(seen: list[dict[str, Any]]) -> list[str]:
    return [job["state"] for job in seen]


def test_what_is_no_order_and_no_job_is_refused(shop: httpx2.Client) -> None:
    assert shop.post("/orders/", content=b"nonsense").status_code == 400
    assert shop.post("/orders/", json={"card": "4242424242424242"}).status_code == 400
    assert shop.get("/jobs/nonsense/").status_code == 404
