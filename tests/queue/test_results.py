"""Waiting for results: by one connection for the whole process, without missing one."""

import asyncio
import gc
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import celery.exceptions
import celery.result
import kombu.pools
import pytest
import redis
from celery.utils.serialization import get_pickleable_exception
from hiredis import PushNotification

from backburner.errors import JobFailed, ResultTimeout, ResultUnavailable, UnknownJob
from backburner.queue import Celery, Job, JobGroup, listener
from backburner.queue.http import jobs_router
from backburner.redis.embedded import EmbeddedServer
from backburner.testing import FaultProxy
from tests.alarms import Alarm
from tests.conftest import Eventually
from tests.processes import ROOT, Program, free_port
from tests.queue.conftest import PROGRAMS, MakeApp, StartWorker, close


@pytest.fixture
def proxy(server: Any) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", server.port) as proxy:
        yield proxy


def pending(app: Celery, count: int) -> list[Job]:
    """Jobs that nobody runs: the test itself is the worker, by `finish`."""
    jobs = [app.AsyncResult(f"job-{number}") for number in range(count)]
    for job in jobs:
        job.enqueued = True
    return jobs


def finish(app: Celery, jobs: list[Job]) -> None:
    for job in jobs:
        app.backend.store_result(job.id, job.id.upper(), "SUCCESS")


def test_a_thousand_wait_on_one_connection(
    make_app: MakeApp, url: str, proxy: FaultProxy, eventually: Eventually
) -> None:
    waiting_app, working_app = make_app(url, proxy.url), make_app(url)
    jobs = pending(waiting_app, 1000)

    async def main() -> list[Any]:
        waiting = asyncio.ensure_future(JobGroup(jobs).aget(timeout=30))
        await asyncio.to_thread(eventually, lambda: waiting_app.backend.listener.subscriptions == 1000)
        await asyncio.to_thread(finish, working_app, jobs)
        return await waiting

    assert asyncio.run(main()) == [f"JOB-{number}" for number in range(1000)]
    assert proxy.connections == 1
    eventually(lambda: waiting_app.backend.listener.subscriptions == 0)


def test_threads_and_event_loops_wait_on_the_same_connection(
    make_app: MakeApp, url: str, proxy: FaultProxy, eventually: Eventually
) -> None:
    waiting_app, working_app = make_app(url, proxy.url), make_app(url)
    jobs = pending(waiting_app, 21)
    with ThreadPoolExecutor(20) as threads:
        blocking = [threads.submit(job.get, 10) for job in jobs[:20]]
        on_a_loop = threading.Thread(target=lambda: asyncio.run(jobs[20].aget(10)))
        on_a_loop.start()
        eventually(lambda: waiting_app.backend.listener.subscriptions == 21)
        finish(working_app, jobs)
        assert [each.result(10) for each in blocking] == [f"JOB-{number}" for number in range(20)]
        on_a_loop.join()
    assert proxy.connections == 1


@pytest.mark.parametrize("when", ["before it runs", "when it runs"])
def test_who_is_interrupted_while_the_listeners_thread_begins_may_wait_again(
    app: Celery, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    start, begun = threading.Thread.start, list[threading.Thread]()

    def interrupted(thread: threading.Thread) -> None:
        if when == "when it runs":
            start(thread)
            begun.append(thread)
        raise Alarm

    [job] = pending(app, 1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(Alarm):
            job.get(timeout=10)
    for thread in begun:
        thread.join(10)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(job.get, timeout=10)
        finish(app, [job])
        assert waiting.result(15) == "JOB-0"
    listening = [each for each in threading.enumerate() if each.name.startswith("backburner-results")]
    assert len(listening) == 1


def test_no_result_is_missed_whenever_it_comes(make_app: MakeApp, url: str) -> None:
    app = make_app(url)
    jobs = pending(app, 300)

    async def main() -> list[Any]:
        working = asyncio.ensure_future(asyncio.to_thread(finish, app, jobs))
        results = []
        for job in jobs:
            first, second = await asyncio.gather(job.aget(5), app.AsyncResult(job.id, parent=job).aget(5))
            results.append(first)
            assert first == second
        await working
        return results

    assert asyncio.run(main()) == [f"JOB-{number}" for number in range(300)]


def test_what_a_thread_asks_to_be_told_while_it_waits_is_told_there_and_of_nothing_else(app: Celery) -> None:
    both, told = threading.Barrier(2), dict[str, list[Any]]()

    def wait(job: Job) -> None:
        def tell(meta: dict[str, Any]) -> None:
            told.setdefault(job.id, []).append((meta["task_id"], meta["status"], threading.get_ident()))
            if meta["status"] == "PROGRESS":
                both.wait(10)  # so that both are told of both states while the other one waits, too
                app.backend.store_result(job.id, "done", "SUCCESS")

        assert job.get(timeout=10, on_message=tell) == "done"
        assert told[job.id] == [(job.id, status, threading.get_ident()) for status in ("PROGRESS", "SUCCESS")]

    jobs = pending(app, 2)
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(wait, job) for job in jobs]
        for job in jobs:
            app.backend.store_result(job.id, {"done": 1}, "PROGRESS")
        for each in waiting:
            each.result(10)


def test_of_a_group_those_that_ended_before_are_told_to_on_message_too(app: Celery, eventually: Eventually) -> None:
    jobs = pending(app, 3)
    group = celery.result.ResultSet(jobs, app=app)
    finish(app, jobs[:1])
    eventually(lambda: jobs[0]._cache)
    told: list[str] = []
    threading.Timer(0.1, finish, (app, jobs[1:])).start()
    assert group.get(timeout=5, on_message=lambda meta: told.append(meta["task_id"])) == ["JOB-0", "JOB-1", "JOB-2"]
    assert sorted(told) == ["job-0", "job-1", "job-2"]


def test_who_is_told_may_wait_for_another_job_and_what_goes_wrong_there_is_raised(app: Celery) -> None:
    first, second = pending(app, 2)
    finish(app, [second])
    results = []
    threading.Timer(0.1, finish, (app, [first])).start()
    assert first.get(timeout=5, on_message=lambda _: results.append(second.get(timeout=5))) == "JOB-0"
    assert results == ["JOB-1"]

    def fail(_: dict[str, Any]) -> None:
        raise KeyError("of the program's own")

    (job,) = pending(app, 1)
    with pytest.raises(KeyError, match="of the program's own"):
        job.get(timeout=5, on_message=fail)
    assert job.get(timeout=5) == "JOB-0"


@pytest.mark.parametrize("kind", [Job, celery.result.AsyncResult])
def test_what_is_called_when_a_result_is_there_may_wait_for_others_holds_up_nobody_and_keeps_its_order(
    app: Celery, kind: type[Any], eventually: Eventually
) -> None:
    jobs = pending(app, 4)
    first, second, third, fourth = jobs if kind is Job else [kind(job.id, app=app) for job in jobs]
    group = celery.result.ResultSet([first, second], app=app)
    told: list[Any] = []
    first.then(lambda _: told.append(second.get(timeout=10)))
    first.then(lambda _: told.append(group.get(timeout=10)))
    group.then(lambda _: told.append(fourth.get(timeout=10)))
    third.then(lambda job: told.append(job.get()))
    finish(app, [first, third])
    assert third.get(timeout=5) == "JOB-2"
    assert first.get(timeout=5) == "JOB-0"
    assert told == []
    finish(app, [second, fourth])
    eventually(lambda: told == ["JOB-1", ["JOB-0", "JOB-1"], "JOB-2", "JOB-3"])


def test_what_goes_wrong_when_a_result_is_there_is_logged_and_the_next_is_told(
    app: Celery, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = pending(app, 2)
    told: list[Any] = []
    first.then(lambda _: told.append(1 / 0))
    second.then(lambda job: told.append(job.get()))
    finish(app, [first, second])
    eventually(lambda: told == ["JOB-1"])
    assert "ZeroDivisionError" in caplog.text


def test_the_backend_itself_waits_for_a_result_that_nobody_has_asked_for(app: Celery) -> None:
    (job,) = pending(app, 1)
    threading.Timer(0.1, finish, (app, [job])).start()
    assert app.backend.wait_for_pending(job, timeout=5) == "JOB-0"


def test_a_result_that_was_waited_for_is_kept_by_nobody(app: Celery, eventually: Eventually) -> None:
    jobs = pending(app, 3)
    group = celery.result.ResultSet(jobs[:2], app=app)
    finish(app, jobs)
    assert group.get(timeout=5) == ["JOB-0", "JOB-1"]
    assert jobs[2].get(timeout=5) == "JOB-2"
    left = [weakref.ref(job) for job in jobs]
    del jobs, group
    eventually(lambda: gc.collect() >= 0 and not any(ref() for ref in left))


def test_who_gives_up_leaves_nothing_behind_and_whoever_waits_with_the_same_object_goes_on(
    app: Celery, eventually: Eventually
) -> None:
    first, second = pending(app, 2)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(first.get, 10)
        eventually(lambda: app.backend.listener.subscriptions == 1)
        for job in (first, second, app.AsyncResult("job-0", parent=second)):
            with pytest.raises(ResultTimeout):
                job.get(timeout=0.01)
        eventually(lambda: app.backend.listener.subscriptions == 1)
        finish(app, [first])
        assert waiting.result(10) == "JOB-0"
    eventually(lambda: app.backend.listener.subscriptions == 0)
    left = weakref.ref(second)
    del second, job
    eventually(lambda: gc.collect() >= 0 and left() is None)


def test_each_thread_that_waits_for_a_job_that_fails_raises_an_exception_of_its_own(
    app: Celery, eventually: Eventually
) -> None:
    jobs = [pending(app, 1)[0] for _ in range(3)]
    with ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(job.get, 10) for job in jobs]
        eventually(lambda: len(app.backend._pending_results.concrete.get("job-0", ())) == 3)
        app.backend.store_result("job-0", KeyError("failed"), "FAILURE")
        assert len({id(each.exception(10)) for each in waiting}) == 3


def test_each_thread_that_waits_for_the_same_group_gets_all_results(app: Celery, eventually: Eventually) -> None:
    group = celery.result.ResultSet(pending(app, 3), app=app)
    same = celery.result.ResultSet(pending(app, 3), app=app)
    app.backend.store_result("job-0", "JOB-0", "SUCCESS")
    with ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(each.get, 10) for each in (group, group, same)]
        eventually(lambda: len(app.backend.result_consumer._audience.get("job-2", ())) == 3)
        finish(app, group.results[1:])
        assert [each.result(10) for each in waiting] == [["JOB-0", "JOB-1", "JOB-2"]] * 3


def test_who_waits_outlives_the_loss_of_the_connection(
    make_app: MakeApp, url: str, proxy: FaultProxy, eventually: Eventually
) -> None:
    waiting_app, working_app = make_app(url, proxy.url), make_app(url)
    jobs = pending(waiting_app, 100)

    async def main() -> list[Any]:
        waiting = asyncio.ensure_future(JobGroup(jobs).aget(timeout=20))
        await asyncio.to_thread(eventually, lambda: waiting_app.backend.listener.subscriptions == 100)
        await asyncio.to_thread(proxy.refuse)
        await asyncio.to_thread(finish, working_app, jobs[:50])
        await asyncio.to_thread(proxy.pass_through)
        await asyncio.to_thread(finish, working_app, jobs[50:])
        return await waiting

    assert len(asyncio.run(main())) == 100


def test_who_waits_outlives_whatever_a_provider_of_logins_raises(
    make_app: MakeApp, url: str, proxy: FaultProxy, eventually: Eventually
) -> None:
    class Tokens(redis.CredentialProvider):
        """As of a cloud, whose service is ill."""

        asked = 0
        is_ill = False

        def get_credentials(self) -> tuple[str, str]:
            self.asked += 1
            if self.is_ill:
                raise KeyError("AccessToken")
            return "default", "any"

    waiting_app, working_app, tokens = make_app(url, proxy.url), make_app(url), Tokens()
    waiting_app.backend.client.connection_pool.connection_kwargs["credential_provider"] = tokens
    [job] = pending(waiting_app, 1)

    async def main() -> Any:
        waiting = asyncio.ensure_future(job.aget(timeout=20))
        await asyncio.to_thread(eventually, lambda: tokens.asked == 1)
        tokens.is_ill = True
        await asyncio.to_thread(proxy.reset)
        await asyncio.to_thread(eventually, lambda: tokens.asked > 1)
        tokens.is_ill = False
        await asyncio.to_thread(finish, working_app, [job])
        return await waiting

    assert asyncio.run(main()) == "JOB-0"


@pytest.mark.slow
def test_a_hundred_that_wait_get_their_results_though_the_server_was_killed_meanwhile(
    make_app: MakeApp, start_worker: StartWorker, tmp_path: Path, released: Path, eventually: Eventually
) -> None:
    with ExitStack() as servers:
        first = servers.enter_context(EmbeddedServer(tmp_path / "server"))
        port = first.port
        app = make_app(first.url)
        with start_worker(first.url), ThreadPoolExecutor(50) as threads:
            jobs = app.tasks["wait_for"].delay_many([(str(released),)] * 100)
            blocking = [threads.submit(job.get, 50) for job in jobs[:50]]

            async def main() -> list[Any]:
                waiting = asyncio.ensure_future(JobGroup(jobs[50:]).aget(timeout=50))
                await asyncio.to_thread(eventually, lambda: app.backend.listener.subscriptions == 100)
                await asyncio.to_thread(eventually, lambda: Path(f"{released}.runs").exists())
                os.kill(first.pid, signal.SIGKILL)
                await asyncio.to_thread(first.stop)
                await asyncio.to_thread(released.touch)  # those that run end while the server is away
                again = EmbeddedServer(tmp_path / "server", port=port)
                await asyncio.to_thread(servers.enter_context, again)
                return await waiting

            assert asyncio.run(main()) == ["released"] * 50
            assert [each.result(50) for each in blocking] == ["released"] * 50
            eventually(lambda: app.backend.listener.subscriptions == 0)


def test_a_connection_that_falls_silent_is_given_up(
    make_app: MakeApp, url: str, proxy: FaultProxy, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backburner.queue.listener._SILENCE", 0.05)
    app = make_app(url, proxy.url)
    (job,) = pending(app, 1)

    async def main() -> None:
        waiting = asyncio.ensure_future(job.aget(timeout=20))
        await asyncio.to_thread(eventually, lambda: proxy.connections == 1)
        await asyncio.to_thread(proxy.stall)
        await asyncio.to_thread(eventually, lambda: proxy.connections > 1)
        waiting.cancel()

    asyncio.run(main())


def test_looking_at_a_job_outlives_connections_that_fell_silent_while_they_rested(
    make_app: MakeApp, url: str, proxy: FaultProxy
) -> None:
    app = make_app(url, proxy.url)
    [job] = jobs = pending(app, 1)
    finish(app, jobs)
    pool = app.backend.client.connection_pool
    for connection in [pool.get_connection() for _ in range(3)]:
        pool.release(connection)
    proxy.silence()
    assert asyncio.run(job.astatus()) == "SUCCESS"


def test_a_timeout_and_a_cancelled_waiter_leave_nothing_behind(
    make_app: MakeApp, url: str, eventually: Eventually
) -> None:
    app = make_app(url)
    first, second = pending(app, 2)

    async def main() -> None:
        with pytest.raises(ResultTimeout, match=r"did not finish within 0\.01 s"):
            await first.aget(timeout=0.01)
        waiting = asyncio.ensure_future(second.aget())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())
    eventually(lambda: app.backend.listener.subscriptions == 0)


@pytest.mark.parametrize("wait", [Job.get, lambda job, seconds: asyncio.run(job.aget(seconds))], ids=["get", "aget"])
def test_asking_whether_a_job_exists_takes_no_longer_than_waiting_may(
    make_app: MakeApp, proxy: FaultProxy, wait: Callable[[Job[Any], float], Any]
) -> None:
    app = make_app(proxy.url)
    job = app.AsyncResult(app.tasks["add"].apply_async((1, 2), countdown=60).id)
    assert job.state == "PENDING"
    proxy.delay(1.8)  # of its state, and of its record
    began = time.monotonic()
    with pytest.raises(ResultTimeout):
        wait(job, 0.1)
    assert time.monotonic() - began < 0.1 + 0.25 + 1.3
    proxy.pass_through()


@pytest.mark.slow
@pytest.mark.parametrize("wait", [Job.get, lambda job, seconds: asyncio.run(job.aget(seconds))], ids=["get", "aget"])
def test_who_waits_in_vain_for_a_backend_waits_no_longer_and_is_told_why(
    make_app: MakeApp, url: str, wait: Callable[[Job, float], Any]
) -> None:
    (job,) = pending(make_app(url, url.replace("//", "//nobody:secret@")), 1)
    began = time.monotonic()
    with pytest.raises(ResultUnavailable, match=r"within 1 s \(invalid username-password pair") as error:
        wait(job, 1.0)
    assert time.monotonic() - began < 3
    assert isinstance(error.value, celery.exceptions.TimeoutError), "it may still come: code for Celery waits again"


def test_a_server_that_refuses_to_be_listened_to_is_asked_less_and_less_and_complained_of_once(
    make_app: MakeApp, url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with redis.Redis.from_url(url) as client:
        client.acl_setuser("deaf", enabled=True, passwords=["+x"], commands=["+@all"], keys=["*"], reset_channels=True)
        pauses: list[float] = []

        class Stopping(threading.Event):
            def wait(self, timeout: float | None = None) -> bool:
                pauses.append(timeout or 0.0)
                return super().wait(0.01)

        monkeypatch.setattr(listener, "Event", Stopping)
        try:
            (job,) = pending(make_app(url, url.replace("//", "//deaf:x@")), 1)
            with pytest.raises(ResultUnavailable, match="channel"):
                job.get(0.5)
            assert pauses[:3] == [0.2, 0.4, 0.8]
            assert len([each for each in caplog.records if "are not heard" in each.message]) == 1
            client.execute_command("ACL", "SETUSER", "deaf", "&*")
            finish(job.app, [job])
            assert job.get(10) == "JOB-0"
        finally:
            client.acl_deluser("deaf")


def test_a_connection_that_is_closed_while_nobody_waits_is_replaced_without_a_warning(
    app: Celery, url: str, caplog: pytest.LogCaptureFixture, eventually: Eventually
) -> None:
    first, second = pending(app, 2)
    finish(app, [first])
    assert first.get(10) == "JOB-0"
    del first
    eventually(lambda: not app.backend.listener.subscriptions)
    with redis.Redis.from_url(url) as client:

        def listeners() -> set[str]:
            return {each["id"] for each in client.client_list() if each["name"] == "backburner-results"}

        before = listeners()
        for each in before:
            client.client_kill_filter(_id=each)
        eventually(lambda: listeners() - before)
    finish(app, [second])
    assert second.get(10) == "JOB-1"
    assert not [each for each in caplog.records if "are not heard" in each.message]


def test_for_a_group_the_first_look_is_one_for_all(
    make_app: MakeApp, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backburner.queue.waiting._PATIENCE", 0.2)
    jobs = pending(make_app(url, f"redis://127.0.0.1:{free_port()}/0"), 20)
    began = time.monotonic()
    with pytest.raises(celery.exceptions.TimeoutError):
        celery.result.ResultSet(jobs, app=jobs[0].app).join_native(timeout=0.1)
    assert time.monotonic() - began < 3, "20 times the patience are 4 s"


def test_the_tasks_own_exception_is_raised_with_the_workers_traceback(app: Celery, worker: Program) -> None:
    job = app.tasks["divide"].apply_async((1, 0), retries=1)
    with pytest.raises(ZeroDivisionError) as failed:
        asyncio.run(job.aget(timeout=10))
    shown = "".join(traceback.format_exception(failed.value))
    assert "return a / b" in shown
    with pytest.raises(ZeroDivisionError) as again:
        app.AsyncResult(job.id).get(timeout=10)
    assert "jobs.py" in str(again.value.__cause__)
    assert again.value is not failed.value
    assert isinstance(asyncio.run(job.aget(propagate=False)), ZeroDivisionError)


def test_who_waits_for_a_result_that_is_forgotten_gets_the_next_one(app: Celery, eventually: Eventually) -> None:
    (job,) = pending(app, 1)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(job.get, timeout=20)
        eventually(lambda: app.backend.result_consumer.is_awaited(job.id))
        job.forget()
        finish(app, [job])
        assert waiting.result(timeout=10) == "JOB-0"
    eventually(lambda: app.backend.listener.subscriptions == 0)
    assert not app.backend.result_consumer.is_awaited(job.id)


def test_who_looks_whether_a_result_is_there_does_not_wait_for_an_answer_that_is_not_wanted_any_more(
    make_app: MakeApp, url: str, proxy: FaultProxy, eventually: Eventually
) -> None:
    app = make_app(url, proxy.url)
    (job,) = pending(app, 1)
    proxy.stall()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(job.get, timeout=60)
        subscriptions = app.backend.result_consumer._subscriptions
        eventually(lambda: job.id in subscriptions and subscriptions[job.id].looked._cond._waiters)
        # As where the job's end is heard just when a thread begins to wait, and a promise of the job is fulfilled.
        job._maybe_set_cache({"status": "SUCCESS", "result": "done", "task_id": job.id, "traceback": None})
        app.backend.remove_pending_result(job)
        assert waiting.result(timeout=10) == "done"
    proxy.pass_through()


@pytest.mark.parametrize("timeout", [0, -5])
def test_with_no_time_left_a_result_that_is_there_is_read(app: Celery, timeout: float) -> None:
    done, other, waiting = pending(app, 3)
    finish(app, [done, other])
    assert done.get(timeout=timeout) == "JOB-0"
    assert asyncio.run(other.aget(timeout=timeout)) == "JOB-1"
    for get in (waiting.get, lambda timeout: asyncio.run(waiting.aget(timeout))):
        with pytest.raises(ResultTimeout, match="did not finish within 0 s"):
            get(timeout=timeout)


def test_an_exception_that_does_not_exist_here_is_a_failed_job(app: Celery) -> None:
    (job,) = pending(app, 1)
    failure = type("TooHot", (Exception,), {"__module__": "somewhere.else"})("burnt")
    app.backend.store_result(job.id, failure, "FAILURE", traceback="Traceback: there")
    with pytest.raises(JobFailed, match="TooHot: burnt") as failed:
        asyncio.run(job.aget(timeout=5))
    assert "Traceback: there" in str(failed.value.__cause__)


class Refused(Exception):
    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (Refused("no entry", status=403), "Refused: no entry"),
        (ExceptionGroup("several", [ValueError("one")]), "ExceptionGroup: ('several', \"[ValueError('one')]\")"),
    ],
)
@pytest.mark.parametrize("stored", [lambda failure: failure, get_pickleable_exception], ids=["as it is", "by a worker"])
def test_an_exception_that_cannot_be_made_again_is_a_failed_job_too(
    app: Celery, failure: Exception, told: str, stored: Callable[[Exception], Exception]
) -> None:
    (job,) = pending(app, 1)
    app.backend.store_result(job.id, stored(failure), "FAILURE")
    for get in (lambda: asyncio.run(job.aget(timeout=5)), lambda: app.AsyncResult(job.id).get(timeout=5)):
        with pytest.raises(JobFailed) as failed:
            get()
        assert str(failed.value).endswith(f"failed: {told}")
    assert app.AsyncResult(job.id).snapshot().error == told


def test_waiting_for_what_nobody_enqueued_ends_at_once(app: Celery) -> None:
    with pytest.raises(UnknownJob, match="no-such-job") as unknown:
        app.AsyncResult("no-such-job").get(timeout=60)
    assert str(pickle.loads(pickle.dumps(unknown.value))) == str(unknown.value)
    with pytest.raises(UnknownJob, match="no-such-job"):
        asyncio.run(app.AsyncResult("no-such-job").aget(timeout=60))
    assert asyncio.run(app.AsyncResult("no-such-job").astatus()) == "UNKNOWN"


def test_the_command_line_says_in_one_line_that_nobody_enqueued_it(url: str) -> None:
    command = [sys.executable, "-m", "celery", "-A", "jobs", "result", "no-such-job"]
    env = os.environ | {"REDIS_URL": url}
    said = subprocess.run(command, cwd=PROGRAMS, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode == 1
    assert said.stderr.startswith("Error: no job no-such-job was ever enqueued")
    assert said.stderr.count("\n") == 1


@pytest.mark.slow
def test_on_a_loop_too_who_waits_hears_that_what_the_job_follows_has_failed(app: Celery) -> None:
    header, (first,) = app.GroupResult("the-group", pending(app, 1)), pending(app, 1)
    for parent in (first, header):
        job = app.AsyncResult("follows", parent=parent)
        with pytest.raises(ResultTimeout):
            asyncio.run(job.aget(timeout=0.1))
        app.backend.store_result("job-0", celery.exceptions.TaskRevokedError("cancelled"), "REVOKED")
        with pytest.raises(celery.exceptions.TaskRevokedError):
            asyncio.run(job.aget(timeout=5))
        with pytest.raises(ResultTimeout):
            asyncio.run(job.aget(timeout=0.5, propagate=False))
        app.backend.client.flushdb()


@pytest.mark.parametrize("seen", [False, True])
def test_on_a_loop_too_the_failure_of_what_the_job_follows_goes_before_its_own(app: Celery, *, seen: bool) -> None:
    header = app.GroupResult("the-group", pending(app, 2))
    app.backend.store_result("job-0", 3, "SUCCESS")
    app.backend.store_result("job-1", KeyError("before"), "FAILURE")
    app.backend.store_result("follows", celery.exceptions.ChordError("own"), "FAILURE")
    for get in (lambda job: job.get(timeout=5), lambda job: asyncio.run(job.aget(timeout=5))):
        job = app.AsyncResult("follows", parent=header)
        assert not seen or job.failed()
        with pytest.raises(KeyError, match="before"):
            get(job)
    with pytest.raises(celery.exceptions.ChordError):
        raise asyncio.run(app.AsyncResult("follows", parent=header).aget(timeout=5, propagate=False))


def test_a_loop_that_closes_when_a_failure_was_raised_complains_of_nothing(
    app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    header = app.GroupResult("the-group", pending(app, 20))
    for number in range(20):
        app.backend.store_result(f"job-{number}", KeyError("before"), "FAILURE")
    app.backend.store_result("follows", ValueError("own"), "FAILURE")
    for _ in range(20):
        with pytest.raises(KeyError):
            asyncio.run(app.AsyncResult("follows", parent=header).aget(timeout=5))
    assert not caplog.records


def test_each_job_of_a_chain_is_recorded_when_the_chain_is_applied_and_not_by_every_one_before_it(
    own_server: EmbeddedServer, make_app: MakeApp, start_worker: StartWorker
) -> None:
    add = make_app(own_server.url).tasks["add"]
    steps = celery.chain(add.s(0, 1), *[add.s(1)] * 39)
    with start_worker(own_server.url), redis.Redis.from_url(own_server.url) as client:
        client.config_resetstat()
        assert steps().get(timeout=30) == 40
        stats: Any = client.info("commandstats")
        writes = stats["cmdstat_set"]["calls"]
    assert writes < 40 * 39 / 2


def test_who_knows_only_the_id_of_the_last_job_of_a_canvas_may_wait_for_it(app: Celery, worker: Program) -> None:
    add = app.tasks["add"]
    for canvas in (add.s(1, 1) | add.s(1), celery.chord([add.s(1, 1) | add.s(1), add.s(2, 2)], add.si(1, 2))):
        job_id = canvas.apply_async().id
        assert asyncio.run(app.AsyncResult(job_id).aget(timeout=10)) == app.AsyncResult(job_id).get(timeout=10) == 3


def test_on_a_loop_too_nobody_waits_for_a_result_that_is_ignored(app: Celery) -> None:
    job = app.tasks["add"].apply_async((1, 2), ignore_result=True)
    assert asyncio.run(job.aget(timeout=5)) is None
    assert asyncio.run(app.AsyncResult(job.id).aget(timeout=5)) is None
    assert app.AsyncResult(job.id).get(timeout=5) is None


def test_asking_about_jobs_needs_none_of_the_loops_own_threads(app: Celery) -> None:
    occupied = threading.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        task = loop.run_in_executor(None, occupied.wait, 20)
        job_id = (await app.tasks["add"].aapply_async((1, 2), queue="nobodys")).id
        assert await app.AsyncResult(job_id).astatus() == "PENDING"
        assert (await app.AsyncResult(job_id).asnapshot()).name == "add"
        assert (await anext(app.AsyncResult(job_id).aevents())).data == {"state": "PENDING"}
        with pytest.raises(ResultTimeout):
            await app.AsyncResult(job_id).aget(timeout=0.05)
        await app.AsyncResult(job_id).acancel()
        assert not task.done()
        occupied.set()
        await task

    asyncio.run(main())


def test_a_job_is_cancelled_though_all_producers_are_in_use_at_the_moment(app: Celery, url: str) -> None:
    job = app.tasks["add"].apply_async((1, 2), queue="nobodys")
    producers = app.control.mailbox.producer_pool = kombu.pools.ProducerPool(app.pool, limit=1)
    with ExitStack() as in_use:
        in_use.enter_context(producers.acquire())
        threading.Timer(0.05, in_use.close).start()
        job.cancel()
    assert job.state == "REVOKED"


def test_of_a_group_the_first_failure_is_raised(app: Celery, worker: Program, released: Path) -> None:
    async def main() -> None:
        slow = await app.tasks["wait_for"].adelay(str(released))
        failing = await app.tasks["divide"].aapply_async((1, 0), retries=1)
        with pytest.raises(ZeroDivisionError):
            await JobGroup([slow, failing]).aget(timeout=10)
        with pytest.raises(ResultTimeout, match="1 of 2 jobs finished"):
            await JobGroup([slow, failing]).aget(timeout=0.2, propagate=False)
        await asyncio.to_thread(released.touch)
        result, error = await JobGroup([slow, failing]).aget(timeout=10, propagate=False)
        assert result == "released"
        assert isinstance(error, ZeroDivisionError)

    asyncio.run(main())


@pytest.mark.slow
def test_a_job_that_waits_is_cancelled_at_once_and_no_later_worker_runs_it(
    make_app: MakeApp, url: str, start_worker: StartWorker, released: Path
) -> None:
    app = make_app(url)
    queue = "of-a-worker-to-come"
    job = app.tasks["wait_for"].apply_async((str(released),), queue=queue)
    delayed = app.tasks["wait_for"].apply_async((str(released),), queue=queue, countdown=1)
    released.touch()
    for each in (job, delayed):
        asyncio.run(each.acancel())
        assert asyncio.run(each.astatus()) == "REVOKED"
        with pytest.raises(celery.exceptions.TaskRevokedError):
            asyncio.run(each.aget(timeout=5))
    with start_worker(url, f"--pool=threads -c 2 -Q {queue}") as worker:
        assert app.tasks["wait_for"].apply_async((str(released),), queue=queue, countdown=1.2).get(timeout=10)
        # The one that waited for its time was removed, if a worker was there that it had to wait for.
        assert worker.output.count("Discarding revoked task") in {1, 2}
    assert Path(f"{released}.runs").stat().st_size == 1


def test_a_coroutine_that_runs_is_cancelled(
    app: Celery, worker: Program, tmp_path: Path, eventually: Eventually
) -> None:
    begun = tmp_path / "nap"
    job = app.tasks["nap_at"].delay(str(begun))
    eventually(begun.exists)
    job.cancel()
    eventually(Path(f"{begun}.ended").exists)
    with pytest.raises(celery.exceptions.TaskRevokedError):
        job.get(timeout=5)
    assert job.state == "REVOKED"


def test_a_retry_ends_as_it_would_alone_though_the_run_before_it_still_cleans_up(app: Celery, worker: Program) -> None:
    assert app.tasks["retry_and_clean_up"].delay().get(timeout=10) == "retried"


def test_a_function_in_a_thread_ends_where_it_reports(
    app: Celery, worker: Program, tmp_path: Path, eventually: Eventually
) -> None:
    begun = tmp_path / "chatter"
    job = app.tasks["chatter"].delay(str(begun))
    eventually(begun.exists)
    job.cancel()
    with pytest.raises(celery.exceptions.TaskRevokedError):
        job.get(timeout=5)


@pytest.mark.slow
def test_a_process_that_runs_a_job_is_ended(
    make_app: MakeApp, url: str, start_worker: StartWorker, released: Path, eventually: Eventually
) -> None:
    app = make_app(url)
    with start_worker(url, "--pool=prefork -c 1 -Q forked"):
        job = app.tasks["wait_for"].apply_async((str(released),), queue="forked")
        eventually(lambda: job.state == "STARTED")
        job.cancel()
        with pytest.raises(celery.exceptions.TaskRevokedError):
            job.get(timeout=10)
        assert app.tasks["add"].apply_async((1, 2), queue="forked").get(timeout=10) == 3


def test_a_closed_app_leaves_no_connection_and_no_thread_behind_and_can_be_used_again(
    make_app: MakeApp, url: str, eventually: Eventually
) -> None:
    app = make_app(url.removesuffix("0") + "6")

    def left() -> list[Any]:
        with redis.Redis.from_url(url) as client:
            connections = [each for each in client.client_list() if each["db"] == "6"]
        return connections + [each for each in threading.enumerate() if each.name.endswith(f" {url[:-1]}6")]

    for _ in range(2):
        job, other = app.tasks["add"].delay(1, 2), pending(app, 1)[0]
        other.then(lambda _: None)
        finish(app, [other])
        with pytest.raises(ResultTimeout):
            job.get(timeout=0.01)
        with pytest.raises(ResultTimeout):
            asyncio.run(job.aget(timeout=0.01))
        assert app.backend.get_state(job.id) == "PENDING"
        assert left()
        app.close()
        eventually(lambda: not left())


class Heard:
    """A subscription, of a channel where nobody says anything."""

    def __init__(self, channel: bytes) -> None:
        self.channel = channel
        self.looked = threading.Event()

    def question(self) -> tuple[bytes, bytes]:
        return b"GET", self.channel

    def answered(self, _reply: Any) -> None:
        self.looked.set()

    def heard(self, _message: bytes) -> None: ...


def test_what_comes_before_the_answer_to_a_question_is_part_of_that_answer() -> None:
    said = [
        PushNotification([b"message", b"channel", b"before"]),
        PushNotification([b"subscribe", b"channel", 1]),
        b"answer",
        PushNotification([b"message", b"channel", b"after"]),
    ]
    connection = SimpleNamespace(
        pack_commands=list, send_packed_command=lambda *_, **__: None, read_response=lambda **_: said.pop(0)
    )
    first, second = Asking(b"channel"), Asking(b"channel")
    session = listener._Session(lambda: connection, {b"channel": [first]})
    session.apply(deque([(second, True)]))
    while said:
        session._hand_out(connection)
    assert first.news == [b"before", b"after"]
    assert second.news == [b"answer", b"after"]


class Asking:
    """A subscription that keeps what it is told."""

    def __init__(self, channel: bytes) -> None:
        self.channel = channel
        self.news: list[bytes] = []

    def question(self) -> tuple[bytes, bytes]:
        return b"GET", self.channel

    def answered(self, reply: bytes) -> None:
        self.news.append(reply)

    heard = answered


@pytest.mark.slow
def test_threads_of_a_forked_child_that_listen_at_the_same_moment_all_hear(app: Celery) -> None:
    listener = app.backend.listener
    listener.add(parents := Heard(b"parent"))
    assert parents.looked.wait(5)
    for _ in range(20):  # of which each third would lose somebody
        child = os.fork()
        if not child:
            sys.setswitchinterval(1e-7)
            several = [Heard(b"child-%d" % number) for number in range(16)]
            threads = [threading.Thread(target=listener.add, args=(each,)) for each in several]
            for thread in threads:
                thread.start()
            os._exit(not all(each.looked.wait(5) for each in several))
        assert os.waitpid(child, 0)[1] == 0
    listener.remove(parents)


def test_a_forked_child_hears_of_a_job_that_its_parent_waits_for(app: Celery, eventually: Eventually) -> None:
    (job,) = pending(app, 1)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(job.get, 20)
        # Until then a thread is connecting, and a child would be left with what it holds in C libraries.
        heard = app.backend.result_consumer._subscriptions
        eventually(lambda: job.id in heard and heard[job.id].looked.is_set())
        child = os.fork()
        if not child:
            threading.Timer(0.1, finish, (app, [job])).start()
            with suppress(BaseException):
                os._exit(job.get(timeout=20) != "JOB-0")
            os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        assert waiting.result(10) == "JOB-0"


def test_a_forked_child_calls_what_its_own_results_are_for_and_not_its_parents(
    app: Celery, tmp_path: Path, eventually: Eventually
) -> None:
    first, second, third = pending(app, 3)
    may_go_on, told = threading.Event(), []
    first.then(lambda _: may_go_on.wait(10))
    second.then(lambda _: told.append(os.getpid()))
    finish(app, [first, second])
    assert second.get(timeout=5) == "JOB-1"
    child = os.fork()
    if not child:
        third.then(lambda job: told.append(job.get()))
        finish(app, [third])
        with suppress(BaseException):
            eventually(lambda: told)
            (tmp_path / "told").write_text(str(told))
        os._exit(0)
    os.waitpid(child, 0)
    may_go_on.set()
    eventually(lambda: told == [os.getpid()])
    assert (tmp_path / "told").read_text() == "['JOB-2']"


@pytest.fixture
def strict_url(redis7_url: str) -> Iterator[str]:
    """Of a server that closes a subscriber's connection for a reply of 100 KB, not of 32 MB. Valkey is rid of most
    replies before it looks at its limit.
    """
    limit = "client-output-buffer-limit"
    with redis.Redis.from_url(redis7_url) as client:
        before = client.config_get(limit)[limit]
        client.config_set(limit, "pubsub 100kb 0 0")
        yield redis7_url
        client.config_set(limit, before)


@pytest.mark.slow
def test_a_result_too_long_for_a_subscriber_arrives_and_the_others_are_waited_for(
    make_app: MakeApp, strict_url: str, eventually: Eventually
) -> None:
    app = make_app(strict_url)
    stored, published, other = pending(app, 3)
    text = "x" * 10_000_000
    app.backend.store_result(stored.id, text, "SUCCESS")

    async def main() -> None:
        waiting = [asyncio.ensure_future(job.aget(timeout=20)) for job in (published, other)]
        await asyncio.to_thread(eventually, lambda: app.backend.listener.subscriptions == 2)
        assert await stored.aget(timeout=20) == text
        assert await asyncio.to_thread(app.AsyncResult(stored.id, parent=stored).get, 20) == text
        await asyncio.to_thread(app.backend.store_result, published.id, text, "SUCCESS")
        assert await waiting[0] == text
        await asyncio.to_thread(finish, app, [other])
        assert await waiting[1] == "JOB-2"

    asyncio.run(main())


PREFIXED = """
from backburner.queue import Celery, progress
from backburner.settings import Settings

options = {"global_keyprefix": "shop:"}
app = Celery(
    "prefixed", settings=Settings(), broker_transport_options=options, result_backend_transport_options=options
)


@app.task(name="tell", shared=False)
def tell(step):
    progress(step, 2)
    return step
"""


@pytest.mark.slow
def test_who_may_use_the_keys_with_a_prefix_alone_can_do_everything(
    own_server: EmbeddedServer, start_worker: StartWorker, tmp_path: Path
) -> None:
    [documented] = re.findall("^ACL SETUSER shop .*$", (ROOT / "docs/deploying.md").read_text(), re.MULTILINE)
    with redis.Redis.from_url(own_server.url) as client:
        client.execute_command(*documented.replace(" ~* ", " ~shop:* ").split())
        url = own_server.url.replace("//", "//shop:secret@")
        (tmp_path / "prefixed.py").write_text(PREFIXED)
        program: dict[str, Any] = {}
        with pytest.MonkeyPatch.context() as patch, start_worker(url, app="prefixed", cwd=tmp_path) as worker:
            patch.setenv("REDIS_URL", url)
            exec(PREFIXED, program)
            app, tell = program["app"], program["tell"]
            assert tell.delay(1).get(timeout=10) == 1
            late = tell.apply_async((1,), countdown=3600)
            late.cancel()
            assert late.state == "REVOKED"
            jobs = jobs_router(app, auth=lambda: "ada")
            jobs.claim(late.id, {"owner": "ada", "asked": ""}, lasting=True)
            assert jobs.job_of("ada", late.id) == late
            close(app)
            assert not worker.says("permission")
        assert all(key.startswith(b"shop:") for key in client.scan_iter())


def test_what_was_told_while_nobody_could_hear_it_comes_before_the_end_whoever_else_waits_for_that(
    make_app: MakeApp, url: str, proxy: FaultProxy, eventually: Eventually
) -> None:
    app, elsewhere = make_app(proxy.url), make_app(url)
    [job] = pending(app, 1)

    async def follow() -> list[str]:
        return [event.kind async for event in job.aevents()]

    with ThreadPoolExecutor(2) as executor, redis.Redis.from_url(url) as client:
        waiting = executor.submit(job.get, 20)
        eventually(lambda: app.backend.listener.subscriptions == 1)
        following = executor.submit(asyncio.run, follow())
        eventually(lambda: client.pubsub_numsub(f"celery-task-meta-{job.id}:events")[0][1] == 1)
        eventually(lambda: app.backend.listener.subscriptions == 3)
        proxy.refuse()
        client.xadd(f"celery-task-meta-{job.id}:events", {"event": b'{"kind": "log", "message": "soon done"}'})
        finish(elsewhere, [job])
        proxy.pass_through()
        assert waiting.result() == job.id.upper()
        assert following.result(timeout=20)[-2:] == ["log", "state"]


@pytest.mark.parametrize("when", ["before", "meanwhile"])
@pytest.mark.parametrize("stored", [b"not JSON", b"\xff", b"[]", b'{"status": 5}', b'{"status": "SUCCESS"}'])
def test_a_result_that_cannot_be_read_is_an_error_for_all_who_wait(
    app: Celery, url: str, eventually: Eventually, stored: bytes, when: str
) -> None:
    def store(client: redis.Redis) -> None:
        client.set(f"celery-task-meta-{job.id}", stored)
        client.publish(f"celery-task-meta-{job.id}", stored)

    async def follow() -> None:
        async for _ in job.aevents():
            pass

    [job] = pending(app, 1)
    waits = (
        lambda: job.get(timeout=10),
        lambda: job.get(timeout=10, on_message=str),
        lambda: celery.result.ResultSet([job]).get(timeout=10),
        lambda: asyncio.run(job.aget(timeout=10)),
        lambda: asyncio.run(asyncio.wait_for(follow(), 10)),
    )
    with redis.Redis.from_url(url) as client, ThreadPoolExecutor(len(waits)) as executor:
        if when == "before":
            store(client)
        waiting = [executor.submit(wait) for wait in waits]
        if when == "meanwhile":
            eventually(lambda: client.pubsub_numsub(f"celery-task-meta-{job.id}")[0][1] == 1)
            eventually(lambda: app.backend.listener.subscriptions >= 4)  # `follow` has two, blocking waits share one
            store(client)
        for each in waiting:
            with pytest.raises(ResultUnavailable, match="cannot be read here"):
                each.result()
        with pytest.raises(ResultUnavailable, match="cannot be read here"):
            _ = job.state


def test_what_no_serializer_is_accepted_for_is_an_error_at_once(make_app: MakeApp, url: str) -> None:
    of_worker = make_app(url, result_serializer="yaml", accept_content=["json", "yaml"])
    [job] = pending(of_worker, 1)
    finish(of_worker, [job])
    with pytest.raises(ResultUnavailable, match="result_accept_content"):
        make_app(url).AsyncResult(job.id).get(timeout=10)
