"""Jobs that could not be done and were kept: looked at, tried again, let go."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import redis

from backburner.errors import ConfigError, ResultUnavailable
from backburner.queue import Celery, FailedJobs
from backburner.redis.embedded import EmbeddedServer
from backburner.testing import FaultProxy
from tests.conftest import Eventually
from tests.processes import Program
from tests.queue.conftest import MakeApp, StartWorker


def keep(url: str, name: str, message: str, list_: str = "celery", reason: str = "rejected") -> None:
    """Put one where the transport puts them."""
    with redis.Redis.from_url(url) as client:
        client.zadd("backburner:failed", {name: datetime.now(UTC).timestamp()})
        client.hset(
            f"backburner:failed:{name}",
            mapping={"reason": reason, "detail": "why", "list": list_, "message": message},
        )


@pytest.fixture
def quiet_url(url: str) -> str:
    """A database that no worker listens to."""
    return url.removesuffix("0") + "3"


@pytest.fixture
def quiet(make_app: MakeApp, quiet_url: str) -> Celery:
    return make_app(quiet_url)


def test_a_rejected_job_is_told_and_done_when_it_is_tried_again(
    app: Celery, worker: Program, tmp_path: Path, eventually: Eventually
) -> None:
    before = datetime.now(UTC)
    job = app.tasks["reject_until"].apply_async((str(tmp_path / "now"),), link=app.tasks["add"].si(1, 2))
    eventually(lambda: app.failed_jobs.count() == 1)
    [failed] = app.failed_jobs
    assert (failed.name, failed.job_id, failed.task) == (job.id, job.id, "reject_until")
    assert (failed.reason, failed.queue) == ("rejected", "celery")
    assert 0 <= (failed.failed_at - before).total_seconds() < 10
    assert json.loads(failed.message)["headers"]["id"] == job.id
    assert app.failed_jobs.get(job.id) == failed
    (tmp_path / "now").touch()
    assert app.failed_jobs.retry(job.id)
    assert job.get(timeout=10) == job.id
    assert job.children[0].get(timeout=10) == 3, "its callback has come along"
    assert app.failed_jobs.count() == 0
    assert app.failed_jobs.get(job.id) is None
    assert not app.failed_jobs.retry(job.id)


@pytest.mark.slow
def test_a_job_that_killed_its_workers_may_do_so_as_often_again(
    make_app: MakeApp, url: str, start_worker: StartWorker, tmp_path: Path, eventually: Eventually
) -> None:
    app = make_app(url)
    app.conf.broker_transport_options = {"max_deliveries": 2}
    with start_worker(url, "--pool=prefork -c 1 -Q deadly"):
        job = app.tasks["kill_until"].apply_async((str(tmp_path / "now"),), queue="deadly")
        eventually(lambda: job.state == "FAILURE", timeout=30)
        assert [failed.reason for failed in app.failed_jobs] == ["crashed"]
        assert app.failed_jobs.retry(job.id)
        eventually(lambda: app.failed_jobs.count() == 1, timeout=30)
        eventually(lambda: app.AsyncResult(job.id).state == "FAILURE", timeout=30)
        (tmp_path / "now").touch()
        assert app.failed_jobs.retry(job.id)
        assert app.AsyncResult(job.id).get(timeout=20) == "survived"


def test_it_goes_back_to_the_end_of_its_list_and_is_pending_again(quiet: Celery, quiet_url: str) -> None:
    job = quiet.tasks["add"].apply_async((1, 2), queue="tea", priority=3)
    with redis.Redis.from_url(quiet_url, decode_responses=True) as client:
        list_ = "tea\x06\x163"
        message = client.rpop(list_)
        client.lpush(list_, "another")
        client.delete(f"backburner:job:{job.id}")
        client.set("backburner:crashes:" + json.loads(message)["properties"]["delivery_tag"], 2)
        keep(quiet_url, job.id, message, list_, "crashed")
        client.sadd("backburner:failed-untold", job.id)
        quiet.backend.mark_as_failure(job.id, RuntimeError("its workers died"))
        assert quiet.failed_jobs.get(job.id).queue == "tea"
        assert quiet.failed_jobs.retry(job.id)
        assert client.lrange(list_, 0, -1) == [message, "another"]
        assert quiet.AsyncResult(job.id).state == "PENDING"
        assert quiet.AsyncResult(job.id).snapshot().name == "add"
        assert not [key for key in client.scan_iter("backburner:*") if not key.startswith("backburner:job:")]


def test_of_one_whose_result_is_ignored_it_stays_known(quiet: Celery, quiet_url: str) -> None:
    job = quiet.tasks["add"].apply_async((1, 2), queue="tea", ignore_result=True)
    with redis.Redis.from_url(quiet_url, decode_responses=True) as client:
        keep(quiet_url, job.id, client.rpop("tea"), "tea", "crashed")
    assert quiet.failed_jobs.retry(job.id)
    assert quiet.AsyncResult(job.id).get(timeout=5) is None


def test_what_is_no_message_can_be_let_go(quiet: Celery, quiet_url: str) -> None:
    for number, text in enumerate(["no message", "[1]", '{"headers": null}', '{"headers": {"id": 5}}']):
        keep(quiet_url, f"failed{number}", text)
    assert [(failed.name, failed.job_id, failed.task) for failed in quiet.failed_jobs] == [
        (f"failed{number}", None, None) for number in range(4)
    ]
    assert all(quiet.failed_jobs.forget(failed.name) for failed in quiet.failed_jobs)
    assert list(quiet.failed_jobs) == []
    assert not quiet.failed_jobs.forget("failed0")


def test_they_come_in_the_order_in_which_they_failed(quiet: Celery, quiet_url: str) -> None:
    names = [f"{number:03}" for number in range(250)]
    for name in reversed(names):
        keep(quiet_url, name, "{}")
    found = iter(quiet.failed_jobs)
    first = next(found)
    quiet.failed_jobs.forget(names[0])  # while they are looked at
    assert [first.name, *(failed.name for failed in found)] == names[:0:-1]


def test_what_its_list_does_not_take_stays(quiet: Celery, quiet_url: str) -> None:
    keep(quiet_url, "one", "{}", "taken")
    with redis.Redis.from_url(quiet_url) as client:
        client.set("taken", "by somebody else")
    with pytest.raises(ResultUnavailable, match="WRONGTYPE"):
        quiet.failed_jobs.retry("one")
    assert quiet.failed_jobs.count() == 1


@pytest.mark.parametrize("fault", [FaultProxy.refuse, FaultProxy.stall], ids=["refused", "silent"])
def test_a_server_that_is_away_is_told_soon(make_app: MakeApp, server: object, url: str, fault: object) -> None:
    with FaultProxy("127.0.0.1", server.port) as proxy:  # type: ignore[attr-defined]
        app = make_app(proxy.url)
        assert app.failed_jobs.count() == 0
        fault(proxy)  # type: ignore[operator]
        with pytest.raises(ResultUnavailable, match="CELERY_BROKER_URL or REDIS_URL"):
            app.failed_jobs.count()


def test_other_brokers_keep_none() -> None:
    with (
        Celery("tests", broker="memory://", set_as_current=False) as app,
        pytest.raises(ConfigError, match="memory://"),
    ):
        FailedJobs(app).count()


def test_what_failed_can_be_let_go_when_the_servers_memory_is_full(
    make_app: MakeApp, own_server: EmbeddedServer
) -> None:
    jobs = make_app(own_server.url).failed_jobs
    keep(own_server.url, "the-name", "{}")
    with redis.Redis.from_url(own_server.url) as client:
        client.config_set("maxmemory", "1")
        assert jobs.forget("the-name")
        assert not jobs.forget("the-name")
        assert jobs.count() == 0
        assert not client.exists("backburner:failed:the-name")
