"""Tools that watch and control workers do so with ours: Flower over HTTP, and Celery's commands as users type them."""

import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis

from backburner.queue import Celery
from backburner.queue.keys import Keys
from backburner.redis.embedded import EmbeddedServer
from tests.conftest import Eventually
from tests.processes import Program, environment, free_port, running
from tests.queue.conftest import PROGRAMS, MakeApp, StartWorker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

KEYS = Keys()
Run = Callable[[str], str]


@pytest.fixture
def run(url: str) -> Run:
    """Run one of Celery's commands to its end; gives what it prints."""

    def run(command: str) -> str:
        done = subprocess.run(
            ["celery", "-A", "jobs", *command.split()],
            cwd=PROGRAMS,
            env=environment({"REDIS_URL": url, "PYTHONPATH": ""}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def told(run: Run, command: str) -> Any:
    """What the only worker says."""
    answers = json.loads(run(f"{command} --json"))
    [answer] = (answers[0] if isinstance(answers, list) else answers).values()
    return answer


@pytest.fixture
def deserted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server without workers."""
    with EmbeddedServer(tmp_path_factory.mktemp("deserted")) as server:
        yield server.url


@pytest.mark.parametrize("pool", ["threads", "asyncio"])
def test_flower_shows_the_worker_and_what_became_of_jobs(
    pool: str, deserted: str, make_app: MakeApp, start_worker: StartWorker, eventually: Eventually
) -> None:
    app, url, port = make_app(deserted), deserted, free_port()
    variables = {"REDIS_URL": url, "PYTHONPATH": "", "FLOWER_UNAUTHENTICATED_API": "true"}
    command = f"celery -A jobs flower --address=127.0.0.1 --port={port}"

    def read(path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as response:
            return json.load(response)

    with start_worker(url, f"--pool={pool} -c 4"), running(command, PROGRAMS, variables) as flower:
        eventually(lambda: flower.says("Connected to"), timeout=30)
        eventually(lambda: read("/api/workers?refresh=1"), timeout=30)
        [(name, seen)] = read("/api/workers").items()
        assert name.startswith("celery@")
        assert "add" in seen["registered"]
        assert [queue["name"] for queue in seen["active_queues"]] == ["celery"]
        good, bad = app.tasks["add"].delay(20, 22), app.tasks["divide"].apply_async((1, 0), retries=1)
        assert good.get(timeout=10) == 42
        with pytest.raises(ZeroDivisionError):
            bad.get(timeout=10)
        eventually(lambda: {good.id, bad.id} <= {*read("/api/tasks")})
        states = lambda: [read("/api/tasks").get(job.id, {}).get("state") for job in (good, bad)]  # noqa: E731
        eventually(lambda: states() == ["SUCCESS", "FAILURE"])
        shown = read("/api/tasks")[good.id]
        assert (shown["name"], shown["args"], shown["result"]) == ("add", "(20, 22)", "42")
        assert read(f"/api/task/result/{good.id}")["result"] == 42
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/worker/{name}", timeout=20) as page:
            assert name in page.read().decode(), "its pool, limits and totals can be shown"


@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio"])
def test_a_worker_tells_of_jobs_that_wait_on_the_server(
    pool: str, deserted: str, make_app: MakeApp, start_worker: StartWorker
) -> None:
    app = make_app(deserted)
    add: Any = app.tasks["add"]
    eta = datetime.now(UTC) + timedelta(hours=1)

    def scheduled() -> list[dict[str, Any]]:
        [told] = app.control.inspect(timeout=10, limit=1).scheduled().values()
        return list(told)

    with start_worker(deserted, f"--pool={pool} -c 2"), redis.Redis.from_url(deserted) as client:
        assert scheduled() == []
        late = add.apply_async((1,), {"b": 2}, eta=eta, priority=9)
        add.apply_async((1, 2), eta=eta, queue="elsewhere")
        for number, text in enumerate((b"no message", b"[]", b'{"body": "?", "headers": null, "properties": {}}')):
            client.zadd(KEYS.delayed, {f"damaged {number}": time.time() + 30})
            client.hset(KEYS.delayed_entries, f"damaged {number}", b"celery\n" + text)
        [told] = scheduled()
        assert (told["eta"], told["request"]["id"], told["request"]["name"]) == (eta.isoformat(), late.id, "add")
        assert (told["request"]["args"], told["request"]["kwargs"]) == ([1], {"b": 2})
        assert told["request"]["delivery_info"]["priority"] == 9
        add.delay_many([(1, 2)] * 150, countdown=600)
        assert len(scheduled()) == 97
        assert add.delay(1, 2).get(timeout=10) == 3


def test_celerys_commands_inspect_and_control_a_worker(app: Celery, worker: Program, run: Run) -> None:
    assert "1 node online" in run("status")
    stats = told(run, "inspect stats")
    assert (stats["broker"]["transport"], stats["pool"]["max-concurrency"]) == ("redis", 4)
    assert told(run, "control add_consumer others") == {"ok": "add consumer others"}
    assert app.tasks["add"].apply_async((1, 2), queue="others").get(timeout=10) == 3
    app.control.cancel_consumer("others", reply=True)
    job = run("call add --args=[20,22]").strip()
    assert app.AsyncResult(job).get(timeout=10) == 42
    assert run(f"result {job}").strip() == "42"


def test_celerys_events_are_told_as_they_happen(app: Celery, worker: Program, url: str, eventually: Eventually) -> None:
    with running("celery -A jobs events --dump", PROGRAMS, {"REDIS_URL": url, "PYTHONPATH": ""}) as events:
        eventually(lambda: events.says("worker-heartbeat") or "heartbeat" in events.output, timeout=30)
        job = app.tasks["add"].delay(1, 2)
        assert job.get(timeout=10) == 3
        eventually(lambda: events.says(f"task succeeded: add({job.id})"))


def purged_by_command(url: str) -> int:
    done = subprocess.run(
        ["celery", "-A", "jobs", "purge", "--force"],
        cwd=PROGRAMS,
        env=environment({"REDIS_URL": url, "PYTHONPATH": ""}),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    told = re.search(r"Purged (\d+) messages", done.stdout)
    assert told
    return int(told[1])


@pytest.mark.parametrize("by_command", [True, False])
def test_purging_empties_the_queue_whatever_the_priority_and_whenever_due(
    deserted: str, make_app: MakeApp, by_command: bool
) -> None:
    app = make_app(deserted)
    for priority in range(10):
        app.tasks["add"].apply_async((1, 2), priority=priority)
    with redis.Redis.from_url(deserted) as client:
        # One that a worker has sorted, into a list that producers do not use.
        assert client.lmove("celery\x06\x163", "celery\x06\x165", "LEFT", "LEFT")
        # As if a worker were there: what is not due waits in the server then.
        client.zadd(KEYS.consumers, {"worker": time.time() + 600})
        app.tasks["add"].delay_many([(1, 2)] * 1200, countdown=300)
        app.tasks["add"].apply_async((1, 2), countdown=300, priority=9)
        elsewhere = app.tasks["add"].apply_async((1, 2), countdown=300, queue="elsewhere")
        client.zrem(KEYS.consumers, "worker")
        assert (purged_by_command(deserted) if by_command else app.control.purge()) == 1211
        assert not list(client.scan_iter("celery*", _type="list"))
        assert client.zrange(KEYS.delayed, 0, -1) == client.hkeys(KEYS.delayed_entries) == [elsewhere.id.encode()]
