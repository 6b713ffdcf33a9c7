"""Workers as users start them: what survives a crash, what stock Celery makes of us, and the command line."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any

import celery
import celery.exceptions
import psutil
import pytest
import redis
from celery.concurrency.thread import TaskPool

from backburner.queue import Celery
from backburner.queue.pool.caught import Catching
from backburner.redis.embedded import EmbeddedServer
from tests.conftest import Eventually
from tests.processes import Program, running
from tests.queue.conftest import PROGRAMS, MakeApp, StartWorker, close, runs
from tests.queue.programs import coroutines


def celery_command(arguments: str, url: str, cwd: Path = PROGRAMS) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "celery", *arguments.split()],
        cwd=cwd,
        env={**os.environ, "REDIS_URL": url},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.stdout + done.stderr


def test_a_job_whose_worker_is_killed_is_done_by_another(
    own_server: EmbeddedServer, make_app: MakeApp, start_worker: StartWorker, released: Path, eventually: Eventually
) -> None:
    app = make_app(own_server.url)
    with start_worker(own_server.url, "--pool=solo", app="impatient") as first:
        job = app.tasks["wait_for"].delay(str(released))
        eventually(lambda: runs(released) == 1)
        first.process.kill()
    released.touch()
    with start_worker(own_server.url, "--pool=solo", app="impatient"):
        assert job.get(timeout=20) == "released"
    assert runs(released) == 2


@pytest.mark.slow
def test_producer_and_worker_live_through_a_restart_of_the_broker(
    own_server: EmbeddedServer, make_app: MakeApp, start_worker: StartWorker, tmp_path: Path
) -> None:
    add = make_app(own_server.url).tasks["add"]
    with start_worker(own_server.url):
        assert add.delay(1, 2).get(timeout=5) == 3
        port = own_server.port
        os.kill(own_server.pid, signal.SIGKILL)
        own_server.stop()
        again = EmbeddedServer(tmp_path / "own server", port=port)
        again.start()
        try:
            assert add.delay(3, 4).get(timeout=20) == 7
        finally:
            again.stop()


@pytest.mark.slow
def test_delayed_jobs_start_when_due_on_a_machine_in_another_zone(
    make_app: MakeApp, own_server: EmbeddedServer, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = make_app(own_server.url).tasks["add"]
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        with start_worker(own_server.url, "--pool=solo"):
            hours = add.apply_async((0, 0), eta=datetime.now(UTC).replace(tzinfo=None) + timedelta(hours=3))
            started = time.monotonic()
            soon = add.apply_async((1, 2), eta=datetime.now(UTC).replace(tzinfo=None) + timedelta(seconds=0.7))
            sooner = add.apply_async((3, 4), countdown=0.7)
            due = datetime.now(UTC) + timedelta(seconds=0.7)
            told = add.app.tasks["when"].apply_async(eta=due)
            assert (soon.get(timeout=5), sooner.get(timeout=5)) == (3, 7)
            assert 0.6 < time.monotonic() - started < 4
            assert datetime.fromisoformat(told.get(timeout=5)) == due
            assert hours.state == "PENDING"
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.slow
def test_stock_producers_and_ours_share_a_queue_with_both_kinds_of_workers(
    app: Celery, worker: Program, url: str, start_worker: StartWorker
) -> None:
    with celery.Celery("stock", broker=url, backend=url, set_as_current=False) as stock:
        job = stock.send_task("add", (1, 2))
        assert job.get(timeout=5) == 3
        assert app.AsyncResult(job.id).snapshot().result == 3, "known once it has run"
        stock.backend.result_consumer.stop()
        stock.backend.client.close()
    stock_only = url.removesuffix("0") + "3"
    ours = Celery("ours", broker=stock_only, backend=stock_only, set_as_current=False)
    with start_worker(stock_only, app="stock", STOCK_URL=stock_only):
        job = ours.send_task("stock.double", (21,))
        assert job.get(timeout=5) == 42
        assert job.snapshot().name == "stock.double"
    close(ours)


@pytest.mark.slow
def test_a_time_limit_cancels_a_coroutine_and_the_process_goes_on(
    make_app: MakeApp, own_server: EmbeddedServer, start_worker: StartWorker, tmp_path: Path, eventually: Eventually
) -> None:
    app = make_app(own_server.url)
    with start_worker(own_server.url, "--pool=prefork -c 1"):
        process = app.tasks["whoami"].delay().get(timeout=10)
        job = app.tasks["nap_at"].apply_async((str(tmp_path / "nap"),), soft_time_limit=1)
        with pytest.raises(celery.exceptions.SoftTimeLimitExceeded):
            job.get(timeout=20)
        assert (tmp_path / "nap.ended").exists()
        assert app.tasks["nap"].delay(0).get(timeout=10)
        assert app.tasks["whoami"].delay().get(timeout=10) == process


@pytest.mark.slow
def test_a_soft_limit_is_raised_in_a_coroutine_of_a_pool_process_too(
    make_app: MakeApp, own_server: EmbeddedServer, start_worker: StartWorker
) -> None:
    tasks = coroutines.define(make_app(own_server.url)).tasks
    with start_worker(own_server.url, "--pool=prefork -c 2 -Q coroutines", "coroutines"):
        kinds = ["wait_for", "gather", "asyncio", "anyio"]
        jobs = [tasks["co.soft_within"].delay(kind) for kind in kinds]
        soft, unhandled = tasks["co.soft"].delay(), tasks["co.soft_unhandled"].delay()
        assert soft.get(timeout=20) == ["SoftTimeLimitExceeded()", 0]
        assert [job.get(timeout=20) for job in jobs] == [["SoftTimeLimitExceeded()", [kind], []] for kind in kinds]
        with pytest.raises(celery.exceptions.SoftTimeLimitExceeded):
            unhandled.get(timeout=20)


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["solo", "threads", "gevent"])
def test_what_no_program_catches_ends_the_job_and_keeps_no_place(
    make_app: MakeApp, own_server: EmbeddedServer, start_worker: StartWorker, pool: str
) -> None:
    tasks = coroutines.define(make_app(own_server.url)).tasks
    with start_worker(own_server.url, f"--pool={pool} -c 1 -Q coroutines", "coroutines"):
        for _ in range(5):
            with pytest.raises(RuntimeError, match=r"co.exit_thread raised KeyboardInterrupt\(\), which ends the job"):
                tasks["co.exit_thread"].delay().get(timeout=10)
        assert tasks["co.double"].delay(2).get(timeout=10) == 4


@pytest.mark.parametrize("pool", ["threads", pytest.param("prefork", marks=pytest.mark.slow)])
def test_what_celery_calls_as_a_function_may_be_a_coroutine_function(
    make_app: MakeApp,
    own_server: EmbeddedServer,
    start_worker: StartWorker,
    eventually: Eventually,
    tmp_path: Path,
    pool: str,
) -> None:
    tasks, told = coroutines.define(make_app(own_server.url)).tasks, tmp_path / "told"
    with start_worker(own_server.url, f"--pool={pool} -c 2 -Q coroutines", "coroutines"):
        jobs = [tasks["co.add"].starmap([(1, 2), (3, 4)]).delay() for _ in range(4)]
        assert [job.get(timeout=10) for job in jobs] == [[3, 7]] * 4
        with pytest.raises(KeyError):
            tasks["co.fail"].apply_async(link_error=tasks["co.aerrback"].s(str(told))).get(timeout=10)
        assert tasks["co.add"].delay(1, 2).get(timeout=10) == 3
        eventually(told.exists)


@pytest.mark.slow
def test_coroutines_of_a_gevent_worker_run_at_the_same_time_on_its_loop(
    make_app: MakeApp, own_server: EmbeddedServer, start_worker: StartWorker
) -> None:
    tasks = make_app(own_server.url).tasks
    with start_worker(own_server.url, "--pool=gevent -c 20"):
        begun = time.monotonic()
        naps = [tasks["nap"].delay(0.5) for _ in range(20)]
        asking = [tasks["ask_itself"].delay() for _ in range(20)]
        assert len({nap.get(timeout=10)[1] for nap in naps}) == 1
        assert [job.get(timeout=10) for job in asking] == [["ask_itself", job.id, job.id] for job in asking]
        assert time.monotonic() - begun < 5


@pytest.mark.slow
def test_a_worker_of_threads_that_is_to_scale_by_itself_says_at_once_that_it_cannot(
    own_server: EmbeddedServer, eventually: Eventually
) -> None:
    command = "celery -A jobs worker --pool=threads --autoscale 8,2"
    with running(command, PROGRAMS, {"REDIS_URL": own_server.url, "PYTHONPATH": ""}) as worker:
        eventually(lambda: worker.process.poll() is not None, timeout=30)
        assert worker.process.returncode == 1
        assert "leave it out, and say --concurrency 8" in worker.output
        assert "Traceback" not in worker.output


@pytest.mark.slow
def test_a_gevent_worker_hears_of_remote_control_after_that_connection_alone_was_lost(
    make_app: MakeApp, own_server: EmbeddedServer, start_worker: StartWorker, eventually: Eventually
) -> None:
    app = make_app(own_server.url)
    with start_worker(own_server.url, "--pool=gevent -c 4"), redis.Redis.from_url(own_server.url) as client:
        eventually(lambda: app.control.ping(timeout=0.5))
        for _ in range(2):
            assert client.client_kill_filter(_type="pubsub")
            eventually(lambda: app.control.ping(timeout=0.5), timeout=15)
        assert app.tasks["nap"].delay(0).get(timeout=10)


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["solo", "threads -c 1", "prefork -c 1", "asyncio -c 10"])
def test_a_result_backend_that_refuses_everything_costs_no_worker_and_has_jobs_wait_before_they_are_done_again(
    make_app: MakeApp,
    own_server: EmbeddedServer,
    start_worker: StartWorker,
    eventually: Eventually,
    tmp_path: Path,
    pool: str,
) -> None:
    database = tmp_path / "results.db"
    app = make_app(own_server.url, f"db+sqlite:///{database}")
    with (
        redis.Redis.from_url(own_server.url) as client,
        start_worker(own_server.url, f"--pool={pool}", CELERY_RESULT_BACKEND=f"db+sqlite:///{database}"),
        sqlite3.connect(database) as results,
    ):
        for change in ("INSERT", "UPDATE"):
            results.execute(
                f"CREATE TRIGGER no_{change} BEFORE {change} ON celery_taskmeta BEGIN SELECT RAISE(ABORT, 'no'); END"
            )
        results.commit()
        job = app.tasks["add"].delay(1, 2)
        eventually(lambda: client.zcard("backburner:delayed"), timeout=20)
        [count] = client.scan_iter("backburner:unrecorded:*")
        client.set(count, 9)  # as after many pauses
        eventually(lambda: client.zcard("backburner:failed"), timeout=20)
        [member] = client.zrange("backburner:failed", 0, -1)
        assert client.hget(b"backburner:failed:" + member, "reason") == b"unrecorded"
        for change in ("INSERT", "UPDATE"):
            results.execute(f"DROP TRIGGER no_{change}")
        results.commit()
        with pytest.raises(celery.exceptions.BackendStoreError, match="ended 10 times, and how could not be recorded"):
            job.get(timeout=30)


def test_an_error_past_the_tracer_is_told_by_a_pool_of_threads() -> None:
    pool, failures = TaskPool(1), Queue[Any]()
    Catching(SimpleNamespace(pool=pool))

    def trace(*_: Any) -> None:
        raise redis.ConnectionError("gone")

    pool.apply_async(trace, ("a task", "the-id"), error_callback=failures.put)
    assert isinstance(failures.get(timeout=5).exception.exc, redis.ConnectionError)


@pytest.mark.slow
def test_an_operator_sees_what_each_connection_is_for(worker: Program, app: Celery, eventually: Eventually) -> None:
    assert worker.says("ready.")
    app.tasks["add"].delay(1, 2).get(timeout=10)
    names = {f"backburner-{role}" for role in ("producer", "claims", "leases", "broker", "results")}
    eventually(lambda: {each["name"] for each in app.backend.client.client_list()} >= names)


def test_the_commands_of_celery_work(worker: Program, url: str) -> None:
    assert "pong" in celery_command("-A jobs.app inspect ping", url)
    usage = celery_command("-A jobs worker --help", url)
    assert "--reload" in usage
    assert "--reload-dir" in usage


@pytest.mark.parametrize("pool", ["solo", "asyncio"])
def test_a_worker_that_a_wrong_setting_ends_says_so_in_one_line(tmp_path: Path, url: str, pool: str) -> None:
    (tmp_path / "shop.py").write_text(
        "from backburner import Celery\napp = Celery('shop')\napp.conf.broker_transport_options = {'lease': 'long'}\n"
    )
    said = celery_command(f"-A shop worker --pool={pool}", url, tmp_path)
    assert "the worker ends: broker_transport_options['lease'] is 'long'; it must be a number, 1 or more\n" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("command", ["worker", "beat", "inspect ping"])
def test_an_application_with_a_wrong_setting_is_told_in_one_sentence(tmp_path: Path, command: str) -> None:
    (tmp_path / "config.py").write_text("from backburner import Settings\nsettings = Settings()\n")
    (tmp_path / "shop.py").write_text(
        "from config import settings\nfrom backburner import Celery\napp = Celery('shop', settings=settings)\n"
    )
    said = celery_command(f"-A shop {command}", "http://localhost", tmp_path)
    assert "'http://localhost' is not a server URL: write redis://" in said
    assert "Traceback" not in said


def test_other_errors_of_an_application_keep_their_traceback(tmp_path: Path, url: str) -> None:
    (tmp_path / "shop.py").write_text("from backburner import Celery\napp = Celery('shop')\nint('one')\n")
    said = celery_command("-A shop worker", url, tmp_path)
    assert 'shop.py", line 3' in said
    assert "ValueError: invalid literal for int()" in said


@pytest.mark.slow
def test_a_worker_told_to_stop_leaves_no_process(
    own_server: EmbeddedServer, start_worker: StartWorker, eventually: Eventually
) -> None:
    with start_worker(own_server.url, "--pool=prefork -c 2") as worker:
        children = psutil.Process(worker.process.pid).children(recursive=True)
        assert len(children) >= 2
        assert worker.stop() == 0
    assert not [child for child in children if child.is_running()]
    with redis.Redis.from_url(own_server.url) as client:
        assert client.llen("celery") == 0


@pytest.mark.slow
def test_a_worker_that_starts_when_the_servers_memory_is_full_makes_room(
    own_server: EmbeddedServer, make_app: MakeApp, start_worker: StartWorker, eventually: Eventually
) -> None:
    app = make_app(own_server.url)
    add = app.tasks["add"]
    with start_worker(own_server.url):
        assert add.delay(1, 2).get(timeout=10) == 3
    add.delay_many([(number, 1) for number in range(5)])
    with redis.Redis.from_url(own_server.url) as client:
        client.config_set("maxmemory", "1")
        # With all that a worker does at its start, which `start_worker` leaves out.
        command, env = (
            "celery -A jobs worker --loglevel=info --pool=threads",
            {"REDIS_URL": own_server.url, "PYTHONPATH": ""},
        )
        with running(command, PROGRAMS, env) as worker:
            eventually(lambda: worker.says("ready.") and not client.llen("celery"), timeout=30)
            eventually(lambda: worker.output.count("succeeded") == 5)
        client.config_set("maxmemory", "0")
        job = add.delay(1, 2)
        add.apply_async((1, 2), countdown=3600)
        client.config_set("maxmemory", "1")
        assert job.state == "PENDING"
        assert app.control.purge() == 2, "which makes room, too"
