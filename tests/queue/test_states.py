"""What a job says about itself, with a real worker."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import celery.exceptions
import pytest

from backburner.errors import ResultTimeout, ResultUnavailable, UnknownJob
from backburner.queue import Celery, Job, Progress, progress
from backburner.settings import Settings
from backburner.testing import FaultProxy
from tests.conftest import Eventually
from tests.processes import Program
from tests.queue.conftest import MakeApp, StartWorker
from tests.queue.programs.jobs import define


def test_a_job_is_pending_then_started_then_done(
    app: Celery, worker: Program, released: Path, eventually: Eventually
) -> None:
    later = app.tasks["wait_for"].apply_async((str(released),), countdown=1.5)
    assert later.state == "PENDING"
    waiting = later.snapshot()
    assert (waiting.state, waiting.name, waiting.ready) == ("PENDING", "wait_for", False)
    assert datetime.now(UTC) - waiting.enqueued_at < timedelta(seconds=5)
    eventually(lambda: later.state == "STARTED")
    assert later.snapshot().finished_at is None
    released.touch()
    assert later.get(timeout=5) == "released"
    done = later.snapshot()
    assert (done.state, done.result, done.error, done.ready) == ("SUCCESS", "released", None, True)
    assert done.enqueued_at < done.finished_at < datetime.now(UTC)


def test_a_job_that_fails_is_retried_first_with_its_error_shown(
    app: Celery, worker: Program, eventually: Eventually
) -> None:
    job = app.tasks["divide"].delay(1, 0)
    eventually(lambda: job.state == "RETRY")
    retrying = job.snapshot()
    assert retrying.error == "ZeroDivisionError: division by zero"
    assert "jobs.py" in retrying.traceback
    with pytest.raises(ZeroDivisionError):
        job.get(timeout=10)
    failed = job.snapshot()
    assert (failed.state, failed.error, failed.result) == ("FAILURE", retrying.error, None)


class Silent(Exception):
    def __str__(self) -> str:
        return f"{self.status}"  # which nobody sets who makes it of its arguments


def test_a_snapshot_is_given_whatever_a_task_has_reported_or_raised(app: Celery, eventually: Eventually) -> None:
    job, other = (app.AsyncResult(each) for each in ("reports", "raises"))
    app.backend.store_result(job.id, {"progress": 50}, "STARTED")
    eventually(lambda: job.state == "STARTED")
    assert job.snapshot().progress is None
    app.backend.store_result(job.id, None, "SUCCESS")
    app.backend.store_result(other.id, Silent(403), "FAILURE")
    assert other.snapshot().error == "Silent: (403,)"


def test_an_id_that_nobody_enqueued_is_unknown(app: Celery) -> None:
    job = app.AsyncResult("no-such-job")
    assert isinstance(job, Job)
    assert job.state == job.status == "UNKNOWN"
    assert not job.ready()
    with pytest.raises(UnknownJob, match="no-such-job"):
        job.snapshot()
    with pytest.raises(UnknownJob):
        asyncio.run(job.asnapshot())


def test_a_job_enqueued_by_name_only_is_known(app: Celery) -> None:
    job = app.send_task("somebody.elses", (1,))
    assert app.AsyncResult(job.id).snapshot().name == "somebody.elses"


def test_where_messages_do_not_name_their_jobs_states_are_celerys(make_app: MakeApp, url: str) -> None:
    app = make_app(url)
    app.conf.task_protocol = 1
    job = app.tasks["add"].apply_async((1, 2), queue="nobody-reads-it")
    assert job.state == app.AsyncResult(job.id).snapshot().state == "PENDING"
    with pytest.raises(ResultTimeout):
        app.AsyncResult(job.id).get(timeout=0.1)


def test_progress_is_seen_while_the_job_is_started_and_no_longer(
    app: Celery, worker: Program, released: Path, eventually: Eventually
) -> None:
    job = app.tasks["wait_for"].delay(str(released), steps=500)
    eventually(lambda: job.snapshot().progress == Progress(499, 500, "step 499"))
    assert job.state == "STARTED"
    assert {"pid", "hostname"} <= set(job.info)
    released.touch()
    job.get(timeout=5)
    assert job.snapshot().progress is None


def test_progress_outside_of_a_worker_does_nothing(app: Celery) -> None:
    progress(1, 2, "in a shell")

    @app.task(shared=False)
    def steps() -> str:
        progress(1, 2)
        return "done"

    assert steps.apply().get() == "done"
    assert steps() == "done"


def test_waiting_too_long_is_an_error_that_celery_programs_know(app: Celery) -> None:
    job = app.tasks["add"].apply_async((1, 1), countdown=60)
    for error in (ResultTimeout, TimeoutError, celery.exceptions.TimeoutError):
        with pytest.raises(error, match=r"did not finish within 0\.1 s"):
            job.get(timeout=0.1)


def test_a_result_that_is_there_needs_no_time_to_wait(app: Celery, worker: Program) -> None:
    job = app.tasks["add"].delay(1, 2)
    job.get(timeout=5)
    assert app.AsyncResult(job.id).get(timeout=0) == 3


@pytest.mark.slow
def test_a_result_can_be_read_while_the_broker_is_down(
    make_app: MakeApp, server: Any, url: str, worker: Program
) -> None:
    with FaultProxy("127.0.0.1", server.port) as proxy:
        app = make_app(proxy.url, url)
        job = app.tasks["add"].delay(1, 2)
        job.get(timeout=5)
        proxy.refuse()
        found = app.AsyncResult(job.id).snapshot()
        assert (found.state, found.result, found.name) == ("SUCCESS", 3, None)
        waiting = app.AsyncResult("no-such-job")
        with pytest.raises(ResultUnavailable):
            waiting.snapshot()


def test_a_coroutine_waits_without_blocking_its_loop(app: Celery, worker: Program, released: Path) -> None:
    async def main() -> tuple[Any, int]:
        job = await app.tasks["wait_for"].adelay(str(released))
        ticks = 0
        waiting = asyncio.ensure_future(job.aget(timeout=10))
        while not waiting.done():
            await asyncio.sleep(0.01)
            ticks += 1
            if ticks == 20:
                await asyncio.to_thread(released.touch)
        return waiting.result(), ticks

    result, ticks = asyncio.run(main())
    assert result == "released"
    assert ticks >= 20


def test_async_tasks_run_at_the_same_time_on_one_loop_that_lives_as_long_as_the_process(
    app: Celery, worker: Program
) -> None:
    jobs = [app.tasks["nap"].delay(0.01) for _ in range(12)]
    assert len({tuple(job.get(timeout=5)) for job in jobs}) == 1


def test_a_coroutine_knows_its_own_task_and_request(app: Celery, worker: Program) -> None:
    jobs = [app.tasks["ask_itself"].delay() for _ in range(12)]
    assert [job.get(timeout=5) for job in jobs] == [["ask_itself", job.id, job.id] for job in jobs]


def test_the_arguments_of_an_async_task_are_checked_when_it_is_enqueued(app: Celery) -> None:
    with pytest.raises(TypeError, match="seconds"):
        app.tasks["nap"].delay()


def test_an_async_task_called_directly_is_a_coroutine(app: Celery) -> None:
    async def main() -> Any:
        return await app.tasks["nap"](0)

    assert len(asyncio.run(main())) == 2


def test_eager_jobs_can_be_looked_at_like_others(make_app: MakeApp, url: str) -> None:
    app = make_app(url, task_always_eager=True)
    done = app.tasks["add"].delay(1, 2).snapshot()
    assert (done.state, done.result, done.name) == ("SUCCESS", 3, "add")
    assert asyncio.run(app.tasks["nap"].adelay(0)).snapshot().state == "SUCCESS"
    asyncio.run(_use_eager(app.tasks["add"].delay(1, 2)))
    failed = app.tasks["divide"].delay(1, 0).snapshot()
    assert (failed.state, failed.error) == ("FAILURE", "ZeroDivisionError: division by zero")


def test_an_eager_coroutine_awaits_jobs_as_one_in_a_worker_does(make_app: MakeApp, url: str) -> None:
    app = make_app(url, task_always_eager=True)

    @app.task(name="ask", shared=False)
    async def ask() -> int:
        return await (await app.tasks["add"].adelay(1, 2)).aget(timeout=1)

    assert ask.delay().get() == 3


async def _use_eager(job: Any) -> None:
    await job.acancel()
    job.cancel()
    assert await job.aget(timeout=1) == 3
    assert [event.data async for event in job.aevents()] == [{"state": "SUCCESS"}]


def test_every_app_can_be_pinged(app: Celery, worker: Program) -> None:
    assert app.send_task("backburner.ping").get(timeout=5) == "pong"


def test_canvas_works(app: Celery, worker: Program) -> None:
    add = app.tasks["add"]
    assert celery.chain(add.s(1, 2), add.s(3)).delay().get(timeout=5) == 6
    assert celery.group(add.s(i, i) for i in range(3))().get(timeout=5) == [0, 2, 4]


def test_a_state_that_cannot_be_read_is_an_error_soon(
    make_app: MakeApp, server: Any, url: str, eventually: Eventually
) -> None:
    with FaultProxy("127.0.0.1", server.port) as proxy:
        app = make_app(url, proxy.url)
        job = app.tasks["add"].delay(1, 2)
        for fail in (proxy.refuse, proxy.stall):
            fail()
            with pytest.raises(ResultUnavailable, match=job.id):
                job.snapshot()
            with pytest.raises(ResultUnavailable):
                _ = job.state
        proxy.pass_through()

        def readable() -> bool:
            try:
                return job.state in {"PENDING", "STARTED", "SUCCESS"}
            except ResultUnavailable:  # the machine was held up for a second
                return False

        eventually(readable)


@pytest.mark.slow
def test_waiting_survives_a_result_backend_that_goes_and_comes_back(
    make_app: MakeApp, server: Any, url: str, worker: Program, released: Path, eventually: Eventually
) -> None:
    with FaultProxy("127.0.0.1", server.port) as proxy:
        app = make_app(url, proxy.url)
        job = app.tasks["wait_for"].delay(str(released))
        eventually(lambda: job.state == "STARTED")

        async def main() -> Any:
            waiting = asyncio.ensure_future(job.aget(timeout=10))
            await asyncio.sleep(0.3)
            proxy.refuse()
            await asyncio.to_thread(released.touch)
            await asyncio.sleep(1)
            proxy.pass_through()
            return await waiting

        assert asyncio.run(main()) == "released"


def test_waiting_for_a_silent_result_backend_ends_in_time(
    make_app: MakeApp, server: Any, url: str, eventually: Eventually
) -> None:
    with FaultProxy("127.0.0.1", server.port) as proxy:
        proxy.stall()
        job = make_app(url, proxy.url).tasks["add"].delay(1, 2)
        with pytest.raises(ResultTimeout):
            job.get(timeout=0.5)


@pytest.mark.slow
def test_jobs_run_report_and_are_cancelled_whatever_keeps_results(
    url: str, start_worker: StartWorker, tmp_path: Path, eventually: Eventually
) -> None:
    backend = "cache+memory://"  # has a client, which is none of Redis's
    settings = Settings(redis_url=url, celery_result_backend=backend)
    app = define(Celery("elsewhere", settings=settings, set_as_current=False))
    released = tmp_path / "released"
    released.touch()
    with start_worker(url, "--pool=threads -c 1 -Q elsewhere", CELERY_RESULT_BACKEND=backend) as worker:
        app.tasks["wait_for"].apply_async((str(released), 3), queue="elsewhere")
        eventually(lambda: worker.says("wait_for") and worker.says("succeeded"))
        late = app.tasks["add"].apply_async((1, 2), queue="elsewhere", countdown=3600)
        late.cancel()
        assert late.state == "REVOKED"
        assert not worker.says("Traceback")
    app.close()
