"""Jobs on a real RabbitMQ, by Celery's own transport, with results on Redis: what is promised for Redis is kept."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import celery
import pytest
from kombu.exceptions import OperationalError

from backburner.errors import PublishError, ResultTimeout, ResultUnavailable
from backburner.queue import Celery, JobEvent, JobGroup
from backburner.testing import FaultProxy
from tests.conftest import Eventually
from tests.processes import Program
from tests.queue.conftest import MakeApp, StartWorker, runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

SLACK = 1.0
"""Seconds that a call may take beyond its budget on a machine that does other things too."""


@pytest.fixture(scope="module")
def worker(rabbitmq: str, server: Any, start_worker: StartWorker) -> Iterator[Program]:
    """A worker that the tests of this file share."""
    with start_worker(server.url, CELERY_BROKER_URL=rabbitmq) as program:
        yield program


@pytest.fixture
def app(rabbitmq: str, url: str, make_app: MakeApp) -> Celery:
    return make_app(url, broker=rabbitmq)


@pytest.fixture
def proxy(rabbitmq: str) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", urlsplit(rabbitmq).port or 0) as proxy:
        yield proxy


def test_jobs_are_enqueued_in_every_way_and_their_results_awaited(app: Celery, worker: Program) -> None:
    add, nap = app.tasks["add"], app.tasks["nap"]

    async def from_a_loop() -> tuple[Any, ...]:
        one, many = await add.adelay(1, 2), await add.adelay_many([(3, 4), {"a": 5, "b": 6}])
        napped = await nap.adelay(0)
        return await one.aget(10), await JobGroup(many).aget(10), (await napped.aget(10))[0] is not None

    assert add.delay(1, 2).get(10) == 3
    assert [job.get(10) for job in add.delay_many([(1, 1), (2, 2)])] == [2, 4]
    assert app.send_task("add", (2, 3)).get(10) == 5
    assert asyncio.run(from_a_loop()) == (3, [7, 11], True)
    assert celery.chain(add.s(1, 1), add.s(2)).delay().get(10) == 4
    assert celery.chord([add.s(1, 1), add.s(2, 2)], app.tasks["celery.accumulate"].s()).delay().get(10) == [[2, 4]]


def test_delayed_jobs_start_when_they_are_due(app: Celery, worker: Program) -> None:
    add = app.tasks["add"]
    began = time.monotonic()
    jobs = [
        add.apply_async((1, 2), countdown=1),
        add.apply_async((3, 4), eta=datetime.now(UTC) + timedelta(seconds=1)),
        *add.delay_many([(5, 6)], countdown=1),
    ]
    assert [job.get(10) for job in jobs] == [3, 7, 11]
    assert time.monotonic() - began > 0.9


def test_progress_and_events_are_heard(app: Celery, worker: Program, released: Path) -> None:
    released.touch()

    async def follow() -> list[JobEvent]:
        job = await app.tasks["tell"].adelay(str(released), 2)
        return [event async for event in job.aevents()]

    events = asyncio.run(follow())
    assert [event.data["message"] for event in events if event.kind == "log"] == ["line 0", "line 1", "the last"]
    assert events[-1].data == {"state": "SUCCESS"}


def test_jobs_are_cancelled_whether_they_wait_or_run(
    app: Celery, worker: Program, tmp_path: Path, eventually: Eventually
) -> None:
    waiting = app.tasks["add"].apply_async((1, 2), countdown=60)
    waiting.cancel()
    assert waiting.state == "REVOKED"
    running = app.tasks["nap_at"].delay(str(tmp_path / "nap"))
    eventually((tmp_path / "nap").exists)
    running.cancel()
    with pytest.raises(celery.exceptions.TaskRevokedError):
        running.get(10)
    eventually((tmp_path / "nap.ended").exists)


def test_states_are_told_as_far_as_they_are_known(app: Celery, worker: Program, released: Path) -> None:
    unknown = app.AsyncResult("nobody enqueued this")
    assert unknown.state == "PENDING", "RabbitMQ keeps no records of jobs"
    with pytest.raises(ResultTimeout):
        unknown.get(timeout=0.1)
    job = app.tasks["wait_for"].delay(str(released), 2)
    released.touch()
    assert job.get(10) == "released"
    seen = job.snapshot()
    assert (seen.state, seen.result, seen.name) == ("SUCCESS", "released", None)


@pytest.mark.parametrize("warm", [False, True], ids=["first call", "pooled connection"])
@pytest.mark.parametrize("fault", [FaultProxy.refuse, FaultProxy.stall], ids=["refused", "silent"])
def test_a_sick_broker_is_an_error_within_the_budget(
    rabbitmq: str, url: str, make_app: MakeApp, proxy: FaultProxy, fault: Callable[[FaultProxy], None], warm: bool
) -> None:
    add = make_app(url, broker=_through(proxy), timeout=1.0).tasks["add"]
    options = {"queue": "nobody reads this"}
    if warm:
        add.apply_async((1, 2), **options)
    fault(proxy)
    for _ in range(2):
        with _taking_at_most(1.0 + SLACK), pytest.raises(PublishError, match="'add' was not enqueued") as error:
            add.apply_async((1, 2), **options)
        assert isinstance(error.value, OperationalError)
        assert "guest:guest" not in str(error.value)
    with _taking_at_most(1.0 + SLACK), pytest.raises(PublishError):
        asyncio.run(add.aapply_async((1, 2), **options))
    proxy.pass_through()
    assert add.apply_async((1, 2), **options).state == "PENDING"


def test_a_wrong_password_is_an_error_like_any_other_of_a_broker(rabbitmq: str, url: str, make_app: MakeApp) -> None:
    app = make_app(url, broker=rabbitmq.replace("guest:guest", "guest:wrong"))
    with pytest.raises(PublishError, match="ACCESS_REFUSED") as error:
        app.tasks["add"].delay(1, 2)
    assert "guest:wrong" not in str(error.value)
    with pytest.raises(ResultUnavailable, match="ACCESS_REFUSED"):
        app.AsyncResult("of a record that cannot be read").snapshot()


def test_a_job_whose_worker_was_killed_is_done_by_another(
    rabbitmq: str, url: str, make_app: MakeApp, start_worker: StartWorker, released: Path, eventually: Eventually
) -> None:
    app = make_app(url, broker=rabbitmq, task_default_queue="killed")
    job = app.tasks["wait_for"].delay(str(released))
    options, variables = "--pool=solo --queues=killed", {"CELERY_BROKER_URL": rabbitmq}
    with start_worker(url, f"{options} -n first@tests", **variables) as first:
        eventually(lambda: runs(released) == 1)
        first.process.kill()
    released.touch()
    with start_worker(url, f"{options} -n second@tests", **variables):
        assert job.get(timeout=20) == "released"
    assert runs(released) == 2


def _through(proxy: FaultProxy) -> str:
    return f"amqp://guest:guest@127.0.0.1:{proxy.port}//"


@contextmanager
def _taking_at_most(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


@pytest.mark.parametrize("pool", ["threads", "prefork", "asyncio", "gevent"])
def test_a_job_whose_end_cannot_be_recorded_is_done_again_after_pauses_and_not_lost(
    rabbitmq: str,
    url: str,
    make_app: MakeApp,
    start_worker: StartWorker,
    eventually: Eventually,
    tmp_path: Path,
    pool: str,
) -> None:
    database, queue = tmp_path / "results.db", f"refused-{pool}"
    backend = f"db+sqlite:///{database}"
    add = make_app(url, backend, broker=rabbitmq).tasks["add"]
    with (
        start_worker(
            url, f"--pool={pool} -c 1 -Q {queue} -n {queue}", CELERY_BROKER_URL=rabbitmq, CELERY_RESULT_BACKEND=backend
        ) as program,
        closing(sqlite3.connect(database)) as results,
    ):
        for change in ("INSERT", "UPDATE"):
            results.execute(
                f"CREATE TRIGGER no_{change} BEFORE {change} ON celery_taskmeta BEGIN SELECT RAISE(ABORT, 'no'); END"
            )
        results.commit()
        job = add.apply_async((1, 2), queue=queue)
        received = lambda: program.output.count("] received")  # noqa: E731  # to be short
        eventually(lambda: program.output.count("its message goes back"), timeout=20)
        began, before = time.monotonic(), received()
        eventually(lambda: received() > before, timeout=20)
        assert time.monotonic() - began > 0.8, "it was received again at once"
        for change in ("INSERT", "UPDATE"):
            results.execute(f"DROP TRIGGER no_{change}")
        results.commit()
        assert job.get(timeout=30) == 3
        assert received() <= 3
