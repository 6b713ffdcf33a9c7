"""``--pool=asyncio`` while its server is gone or silent: what runs goes on, ends once, and its results get there."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from backburner.redis.embedded import EmbeddedServer
from backburner.testing import FaultProxy
from tests.conftest import Eventually
from tests.queue.conftest import MakeApp, StartWorker, runs
from tests.queue.programs.coroutines import define

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

POOL = "--pool=asyncio -c 100 -Q coroutines"
SOON = 10.0
"""Seconds until a server that is back is consumed from again, on a busy machine."""


@pytest.fixture
def tasks(make_app: MakeApp, own_server: EmbeddedServer) -> Any:
    unsynced(own_server)
    return define(make_app(own_server.url)).tasks


def unsynced(server: EmbeddedServer) -> None:
    """Have it write at once what it is told; it would put that off while the disk is busy, and lose it when killed."""
    with redis.Redis.from_url(server.url) as client:
        client.config_set("appendfsync", "no")


def kill(server: EmbeddedServer) -> None:
    os.kill(server.pid, signal.SIGKILL)


def restart(server: EmbeddedServer) -> None:
    server.restart()
    unsynced(server)


def test_coroutines_go_on_while_the_server_is_gone(
    tasks: Any, own_server: EmbeddedServer, start_worker: StartWorker, tmp_path: Path, eventually: Eventually
) -> None:
    ended, later = tmp_path / "ended", tmp_path / "later"
    with start_worker(own_server.url, POOL, "coroutines") as worker:
        jobs = tasks["co.told"].delay_many([(str(later), str(ended))] * 50)
        jobs += tasks["co.hold"].delay_many([(str(later),)] * 50)
        eventually(lambda: runs(later) == 100)
        kill(own_server)
        eventually(lambda: worker.says("Connection to broker lost"), timeout=20)
        later.touch()
        eventually(lambda: runs(ended) == 50)  # while nobody can be told
        restart(own_server)
        back = time.monotonic()
        assert {job.get(timeout=20) for job in jobs} == {"released"}
        assert tasks["co.add"].delay(1, 2).get(timeout=20) == 3
        assert time.monotonic() - back < SOON
        assert worker.stop() == 0
    assert (runs(later), runs(ended)) == (100, 50), "each once"


def test_coroutines_go_on_while_the_server_is_silent(
    tasks: Any, own_server: EmbeddedServer, start_worker: StartWorker, tmp_path: Path, eventually: Eventually
) -> None:
    held = tmp_path / "released"
    with (
        FaultProxy("127.0.0.1", own_server.port) as proxy,
        start_worker(proxy.url, POOL, "coroutines", LEASE="30") as worker,
    ):
        pause = tasks["co.longest_pause"].delay(str(held))
        jobs = tasks["co.hold"].delay_many([(str(held),)] * 49)
        eventually(lambda: runs(held) == 49)
        proxy.stall()
        eventually(lambda: worker.says("Connection to broker lost"), timeout=30)
        held.touch()
        proxy.pass_through()
        back = time.monotonic()
        assert {job.get(timeout=20) for job in jobs} == {"released"}
        assert tasks["co.add"].delay(1, 2).get(timeout=20) == 3
        assert time.monotonic() - back < SOON
        assert pause.get(timeout=10) < 2, "the loop waits for nobody; clients do, for two seconds and more"
    assert runs(held) == 49, "each once"


def test_coroutines_go_on_while_the_server_takes_nothing(
    tasks: Any, own_server: EmbeddedServer, start_worker: StartWorker, tmp_path: Path, eventually: Eventually
) -> None:
    held = tmp_path / "released"
    with (
        start_worker(own_server.url, POOL, "coroutines", LEASE="30") as worker,
        redis.Redis.from_url(own_server.url) as client,
    ):
        pause = tasks["co.longest_pause"].delay(str(held))
        eventually(lambda: pause.state == "STARTED")
        client.config_set("min-replicas-to-write", 1)
        eventually(lambda: worker.output.count("Connection to broker lost") > 8, timeout=30)
        client.config_set("min-replicas-to-write", 0)
        held.touch()
        assert pause.get(timeout=20) < 0.8, "Celery would sleep for a second"
        assert tasks["co.add"].delay(1, 2).get(timeout=20) == 3


def test_no_result_is_lost_while_the_server_starts_again(
    tasks: Any, own_server: EmbeddedServer, start_worker: StartWorker, tmp_path: Path, eventually: Eventually
) -> None:
    path = tmp_path / "told"
    with start_worker(own_server.url, POOL, "coroutines") as worker:
        jobs = tasks["co.nap_told"].delay_many([(0.01 * (n % 50), str(path)) for n in range(1000)])
        blocks = [tasks["co.block"].delay(0.05) for _ in range(20)]
        eventually(lambda: runs(path) > 100)
        for share in (300, 600):
            kill(own_server)
            restart(own_server)
            eventually(lambda: runs(path) > share, timeout=20)  # noqa: B023  # called at once
        for job in jobs:
            assert job.get(timeout=20) is None
        assert {tuple(block.get(timeout=20)) for block in blocks} == {(False, worker.process.pid)}
        assert {job.state for job in jobs} == {"SUCCESS"}
        assert runs(path) == 1000, "each once"
