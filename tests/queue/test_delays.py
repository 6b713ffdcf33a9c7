"""What waits for its time does so on the server: cancelled there, kept there, and due by the server's clock."""

import json
import time
from datetime import timedelta
from typing import Any

import psutil
import pytest
import redis
from kombu.exceptions import DecodeError

from backburner.queue import Celery
from backburner.queue.keys import Keys
from tests.conftest import Eventually
from tests.processes import Program
from tests.queue.conftest import MakeApp, StartWorker

KEYS = Keys()


@pytest.fixture
def url(url: str) -> str:
    """A database that no worker listens to, with a consumer that looks after delayed messages."""
    url = url.removesuffix("0") + "3"
    with redis.Redis.from_url(url) as client:
        client.zadd(KEYS.consumers, {"somebody": 4_000_000_000})
    return url


@pytest.fixture
def client(url: str) -> Any:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        yield client


def test_a_job_that_waits_for_its_time_is_gone_when_it_is_cancelled(app: Celery, client: Any) -> None:
    job, other = (app.tasks["add"].apply_async((1, 2), countdown=60) for _ in range(2))
    assert client.zcard(KEYS.delayed) == 2
    job.cancel()
    assert client.zrange(KEYS.delayed, 0, -1) == client.hkeys(KEYS.delayed_entries) == [other.id]
    assert job.state == "REVOKED"


@pytest.mark.parametrize("off", [-3600, 3600])
@pytest.mark.parametrize("way", ["ours", "Celery's"])
def test_a_countdown_is_no_longer_where_the_clock_is_wrong(
    app: Celery, client: Any, monkeypatch: pytest.MonkeyPatch, off: int, way: str
) -> None:
    real, now = time.time, app.now
    monkeypatch.setattr(time, "time", lambda: real() + off)
    monkeypatch.setattr(app, "now", lambda: now() + timedelta(seconds=off))
    app.tasks["add"].apply_async((1, 2), countdown=60, **({"shadow": "x"} if way == "Celery's" else {}))
    [(_, due)] = client.zrange(KEYS.delayed, 0, -1, withscores=True)
    assert 55 < due - real() < 65


def test_what_is_due_is_so_for_every_worker(app: Celery, client: Any, url: str) -> None:
    from tests.queue.test_transport import Reader

    app.tasks["add"].apply_async((1, 2), countdown=0.05, queue="q")
    with redis.Redis.from_url(url) as raw:
        raw.delete(KEYS.consumers)
    reader = Reader(url, prefetch=1)
    [message] = (reader.drain(1), reader.messages)[1]
    reader.close()
    assert json.loads(client.lindex("q", 0))["headers"]["eta"] is None, "a stock worker would wait by its own clock"
    del message


@pytest.mark.slow
def test_a_retry_waits_on_the_server(
    make_app: MakeApp, url: str, start_worker: StartWorker, eventually: Eventually, client: Any
) -> None:
    app = make_app(url)
    with start_worker(url, "--pool=threads -c 2"):
        job = app.tasks["divide"].delay(1, 0)
        eventually(lambda: client.zrange(KEYS.delayed, 0, -1) == [job.id] and not client.keys(f"{KEYS.leased()}*"))
        with pytest.raises(ZeroDivisionError):
            job.get(timeout=10)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_hundred_thousand_that_wait_are_not_in_the_workers_memory(
    make_app: MakeApp, url: str, start_worker: StartWorker, eventually: Eventually, client: Any
) -> None:
    app = make_app(url, timeout=10)
    add = app.tasks["add"]
    with start_worker(url, "--pool=threads -c 2") as worker:
        assert add.delay(1, 2).get(timeout=10) == 3
        before = psutil.Process(worker.process.pid).memory_info().rss
        for _ in range(20):
            add.delay_many([(1, 2)] * 5000, countdown=3600)
        assert client.zcard(KEYS.delayed) == 100_000
        assert add.apply_async((3, 4), countdown=0.2).get(timeout=10) == 7
        grown = psutil.Process(worker.process.pid).memory_info().rss - before
    print(f"{grown / 1e6:.1f} MB more")
    assert grown < 5e6


@pytest.mark.slow
def test_of_what_cannot_be_read_who_waits_for_it_is_told(
    app: Celery, worker: Program, url: str, client: Any, eventually: Eventually, make_app: MakeApp, server: Any
) -> None:
    app = make_app(server.url)
    with redis.Redis.from_url(server.url) as client:
        job, torn = (app.AsyncResult(name) for name in ("unreadable", "torn"))
        good = {"lang": "py", "task": "add", "id": "unreadable"}
        info = {"delivery_info": {"routing_key": "celery", "exchange": ""}, "delivery_tag": "1"}
        content = {"content-type": "application/json", "content-encoding": "utf-8"}
        client.set(KEYS.job("unreadable"), "0\nadd\n\ncelery")
        client.set(KEYS.job("torn"), "0\nadd\n\ncelery")
        client.lpush("celery", json.dumps({"body": "{no json", "headers": good, "properties": info, **content}))
        client.lpush("celery", '{"body": "", "headers": {"id": "torn", "task": "add"')
        for each in (job, torn):
            with pytest.raises(DecodeError, match="cannot be read"):
                each.get(timeout=15)
        client.delete(KEYS.job("unreadable"), KEYS.job("torn"))
