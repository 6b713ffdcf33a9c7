"""Workers whose server is killed, whose connections fall silent or are cut: they consume again, and repeat nothing."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from backburner.queue import Celery
from backburner.redis.embedded import EmbeddedServer
from backburner.testing import FaultProxy
from tests.conftest import Eventually
from tests.faults.ledger import Ledger
from tests.faults.test_workers import app, kill, ledger, server, worker
from tests.faults.test_workers_still import POOLS, ended

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

__all__ = ["app", "ledger", "server", "worker"]  # fixtures

BACK = 5.0
"""Seconds after which a server that is back is consumed from again."""
BUSY = 2.0
"""Seconds that a busy machine may add."""


def kill_and_restart(server: EmbeddedServer, away: float) -> None:
    os.kill(server.pid, signal.SIGKILL)
    time.sleep(away)
    server.restart()


def connections(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return len(client.client_list()) - 1


@POOLS
def test_a_server_that_was_killed_is_consumed_from_again_and_live_jobs_are_not_repeated(
    app: Celery, server: EmbeddedServer, ledger: Ledger, worker: Any, pool: str, tmp_path: Path, eventually: Eventually
) -> None:
    released = tmp_path / "released"
    url = server.url
    with worker(f"-P {pool} -c 2", LEASE="4") as one, worker("-P solo -n other@tests", LEASE="4") as two:
        eventually(lambda: one.says("ready.") and two.says("ready."), timeout=30)
        before = eventually(lambda: connections(url))
        live, later, soon = ledger.entry(), ledger.entry(), ledger.entry()
        app.send_task("hold", (live, str(released)))
        eventually(lambda: ledger.starts(live))
        app.send_task("work", (later, 0), countdown=3)
        kill_and_restart(server, away=5)  # for longer than the lease
        back = time.monotonic()
        app.send_task("work", (soon, 0))
        eventually(lambda: ended(ledger, soon, later), timeout=20)
        assert ledger.runs[soon][0].start - back < BACK + BUSY
        released.touch()
        eventually(lambda: ended(ledger, live))
        with redis.Redis.from_url(url) as client:
            for _ in range(5):
                cut(client)
                again = ledger.entry()
                app.send_task("work", (again, 0))
                eventually(lambda: ended(ledger, again), timeout=20)  # noqa: B023  # called at once
            eventually(lambda: connections(url) <= before + 4)  # those of the app of this test, and no zombies
            eventually(lambda: not client.keys("backburner:leased:*"))
            eventually(lambda: client.zcard("backburner:consumers") <= 2)
    assert [ledger.starts(job) for job in (live, later, soon)] == [1, 1, 1]


def test_what_waits_for_its_time_outlives_all_workers_and_the_server(
    app: Celery, server: EmbeddedServer, ledger: Ledger, worker: Any, eventually: Eventually
) -> None:
    soon, later = [ledger.entry() for _ in range(20)], [ledger.entry() for _ in range(20)]
    with worker("-P threads -c 2") as killed:
        eventually(lambda: killed.says("ready."), timeout=30)
        due = time.monotonic() + 4
        for job in soon:
            app.send_task("work", (job, 0), countdown=4)
        for job in later:
            app.send_task("work", (job, 0), countdown=3600)
        kill(killed)
    kill_and_restart(server, away=1)
    with worker("-P threads -c 2") as another:
        eventually(lambda: ended(ledger, *soon), timeout=30)
        assert another.process.poll() is None
    assert all(due <= ledger.runs[job][0].start for job in soon)
    assert [ledger.starts(job) for job in (*soon, *later)] == [1] * len(soon) + [0] * len(later)
    with redis.Redis.from_url(server.url) as client:
        assert client.zcard("backburner:delayed") == len(later)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_connections_that_fell_silent_are_replaced_and_live_jobs_are_not_repeated(
    app: Celery, server: EmbeddedServer, ledger: Ledger, worker: Any, pool: str, tmp_path: Path, eventually: Eventually
) -> None:
    released = tmp_path / "released"
    with (
        FaultProxy("127.0.0.1", server.port) as proxy,
        worker(f"-P {pool} -c 2", LEASE="40", REDIS_URL=proxy.url) as one,
        worker("-P solo -n other@tests -Q elsewhere", LEASE="40") as two,
    ):
        eventually(lambda: one.says("ready.") and two.says("ready."), timeout=30)
        eventually(lambda: proxy.open_connections)
        before = proxy.open_connections
        live, soon = ledger.entry(), ledger.entry()
        app.send_task("hold", (live, str(released)))
        eventually(lambda: ledger.starts(live))
        proxy.stall()
        app.send_task("work", (soon, 0))
        eventually(lambda: one.says("Connection to broker lost"), timeout=30)
        proxy.pass_through()
        back = time.monotonic()
        eventually(lambda: ended(ledger, soon), timeout=20)
        assert ledger.runs[soon][0].start - back < BACK + BUSY
        released.touch()
        eventually(lambda: ended(ledger, live))
        eventually(lambda: proxy.open_connections <= before + 3)
    assert [ledger.starts(job) for job in (live, soon)] == [1, 1]


def cut(client: Any) -> None:
    client.client_kill_filter(_type="normal", skipme=True)
    client.client_kill_filter(_type="pubsub", skipme=True)
    time.sleep(0.4)


def fill(client: Any) -> None:
    client.config_set("maxmemory", 1)
    time.sleep(0.2)
    client.config_set("maxmemory", 0)
    time.sleep(0.02)


def demote(client: Any) -> None:
    client.replicaof("127.0.0.1", 1)
    time.sleep(0.2)
    client.replicaof("NO", "ONE")
    time.sleep(0.2)


def churn(disturb: Callable[[Any], object], client: Any, eventually: Eventually, done: Callable[[], bool]) -> None:
    """Disturb the server again and again until all is done."""

    def step() -> bool:
        disturb(client)
        return done()

    eventually(step, timeout=40)


@pytest.mark.parametrize("disturbance", ["cut connections", "flushed scripts", "full memory", "read-only"])
def test_nothing_is_lost_nor_repeated_while_the_server_is_disturbed(
    app: Celery, server: EmbeddedServer, ledger: Ledger, worker: Any, disturbance: str, eventually: Eventually
) -> None:
    disturb = {
        "cut connections": cut,
        "flushed scripts": lambda client: client.script_flush(),
        "full memory": fill,
        "read-only": demote,
    }
    with (
        worker("-P threads -c 4", LEASE="10", KNOWS_NEW="") as one,
        worker("-P prefork -c 2 -n other@tests", LEASE="10") as two,
        redis.Redis.from_url(server.url) as client,
    ):
        eventually(lambda: one.says("ready.") and two.says("ready."), timeout=30)
        for n in range(150):
            countdown = {"countdown": n % 3 / 2} if n % 5 == 0 else {}
            app.send_task("work", (ledger.entry(), 0.02), **countdown)
        lives = [ledger.entry() for _ in range(2)]
        for live in lives:
            app.send_task("work", (live, 3))
        churn(disturb[disturbance], client, eventually, lambda: not ledger.unfinished())
    assert {ledger.starts(job) for job in ledger.jobs} == {1}


@POOLS
def test_connections_that_are_reset_are_replaced_at_once(
    app: Celery, server: EmbeddedServer, ledger: Ledger, worker: Any, pool: str, eventually: Eventually
) -> None:
    # Told that there is something to read, nobody may wait for it on the connection that replaces the lost one.
    with (
        FaultProxy("127.0.0.1", server.port) as proxy,
        worker(f"-P {pool} -c 2", LEASE="40", REDIS_URL=proxy.url) as one,
    ):
        eventually(lambda: one.says("ready."), timeout=30)
        job = ledger.entry()
        app.send_task("work", (job, 0))
        eventually(lambda: ended(ledger, job))  # so it has made its connections
        for reset in range(1, 6):
            proxy.reset()
            job, sent = ledger.entry(), time.monotonic()
            app.send_task("work", (job, 0))
            eventually(lambda: ended(ledger, job), timeout=20)  # noqa: B023  # called at once
            assert ledger.runs[job][0].start - sent < BACK + BUSY
            eventually(lambda: one.output.count("Connected to") > reset)  # noqa: B023
    assert {ledger.starts(job) for job in ledger.jobs} == {1}


@pytest.mark.parametrize("pool", ["prefork", "asyncio"])
def test_what_runs_is_not_ended_when_the_connection_is_lost_for_its_lease_is_not(
    app: Celery, server: EmbeddedServer, ledger: Ledger, worker: Any, pool: str, tmp_path: Path, eventually: Eventually
) -> None:
    released, live = tmp_path / "released", ledger.entry()
    with (
        worker(f"-P {pool} -c 1", LEASE="40", CANCELS="yes") as one,
        redis.Redis.from_url(server.url) as client,
    ):
        eventually(lambda: one.says("ready."), timeout=30)
        app.send_task("hold", (live, str(released)))
        eventually(lambda: ledger.starts(live))
        cut(client)
        eventually(lambda: one.output.count("Connected to") == 2, timeout=20)
        released.touch()
        eventually(lambda: ended(ledger, live))
        eventually(lambda: not client.keys("backburner:leased:*"))
    assert ledger.starts(live) == 1


def test_a_process_of_the_pool_may_have_ended_unnoticed_when_the_connection_is_lost(
    app: Celery, server: EmbeddedServer, ledger: Ledger, worker: Any, tmp_path: Path, eventually: Eventually
) -> None:
    unnoticed = tmp_path / "unnoticed"
    with worker("-P prefork -c 1", "unnoticed", UNNOTICED=str(unnoticed)) as one:
        eventually(lambda: one.says("ready."), timeout=30)
        unnoticed.touch()
        [child] = psutil.Process(one.process.pid).children()
        child.kill()
        eventually(lambda: one.says("a process has ended, unnoticed"))
        with redis.Redis.from_url(server.url) as client:
            client.client_kill_filter(_type="normal", skipme=True)
        eventually(lambda: one.output.count("Connected to") == 2 or one.process.poll() is not None)
        unnoticed.unlink()
        job = ledger.entry()
        app.send_task("work", (job, 0))
        eventually(lambda: ended(ledger, job), timeout=20)
    assert ledger.starts(job) == 1
