"""The quickstart, by the commands of its README, on a real server and with real processes."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from backburner.redis.embedded import EmbeddedServer
from tests.processes import ROOT, free_port, running

FOLDER = ROOT / "examples" / "quickstart"

Answers = Callable[[str], bool]
Follow = Callable[[httpx2.Client, str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def api(valkey: EmbeddedServer, eventually: Callable[..., Any], answers: Answers) -> Iterator[httpx2.Client]:
    url = f"http://127.0.0.1:{(port := free_port())}"
    with running(f"uvicorn main:app --port {port}", FOLDER, {"REDIS_URL": valkey.url}):
        eventually(lambda: answers(url), timeout=20)
        with httpx2.Client(base_url=url) as client:
            yield client


@pytest.mark.slow
def test_a_division_goes_through_the_worker(
    api: httpx2.Client, valkey: EmbeddedServer, states_of: Follow, eventually: Callable[..., Any]
) -> None:
    assert "/divide" in api.get("/").json()["message"]
    half = api.post("/divide", json={"x": 1, "y": 2})
    assert half.status_code == 202
    assert api.get(half.headers["Location"]).json()["state"] == "PENDING"
    by_zero = api.post("/divide", json={"x": 1, "y": 0})

    command = "celery -A main.celery worker --loglevel=info"
    with running(command, FOLDER, {"REDIS_URL": valkey.url}):
        seen = states_of(api, half.json()["url"])
        assert [job["state"] for job in seen] == ["PENDING", "STARTED", "SUCCESS"]
        assert seen[-1]["result"] == 0.5

        failed = states_of(api, by_zero.json()["url"])[-1]
        assert failed["state"] == "FAILURE"
        assert failed["error"].startswith("ZeroDivisionError")


def test_a_job_that_nobody_enqueued_is_not_found(api: httpx2.Client) -> None:
    answer = api.get("/jobs/nonsense")
    assert answer.status_code == 404
    assert "nonsense" in answer.json()["detail"]


@pytest.mark.parametrize("pool", [pytest.param("", marks=pytest.mark.slow), "--pool=solo "])
def test_tasks_called_from_an_interactive_session(
    valkey: EmbeddedServer, pool: str, eventually: Callable[..., Any]
) -> None:
    env = {"REDIS_URL": valkey.url}
    with (
        running(f"celery -A task worker {pool}-l info", FOLDER, env) as worker,
        running("python -i task.py", FOLDER, env) as session,
    ):
        session.type("divide(1, 2)\n")
        session.type("job = add.delay(40, 2)\n")
        session.type("job.get(timeout=15) * 1000\n")
        eventually(lambda: session.says("0.5"), timeout=20)
        eventually(lambda: session.says("42000"), timeout=20)
        assert worker.says("task.add")
