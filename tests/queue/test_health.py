"""``worker --health-port``: whether a worker takes jobs, as an HTTP server in it tells."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from backburner.queue import Celery
from backburner.testing import FaultProxy
from tests.conftest import Eventually
from tests.processes import Program, free_port, running
from tests.queue.conftest import ALONE, PROGRAMS, StartWorker, runs

pytestmark = pytest.mark.slow


@pytest.fixture
def hangs(tmp_path: Path) -> Path:
    return tmp_path / "hangs"


@pytest.fixture
def ask(start_worker: StartWorker, url: str, hangs: Path) -> Callable[..., Any]:
    @contextmanager
    def start(options: str, url: str = url) -> Iterator[tuple[Program, Callable[[], tuple[int, Any]]]]:
        port = free_port()
        options = f"{options} -Q healthy --health-port {port}"
        with start_worker(url, options, "healthy", HANGS=str(hangs)) as worker, httpx2.Client(timeout=5) as client:

            def health(number: int = 0) -> tuple[int, Any]:
                answer = client.get(f"http://127.0.0.1:{port + number}/health")
                return answer.status_code, answer.json()

            yield worker, health

    return start


@pytest.mark.parametrize("pool", ["solo", "prefork -c 1", "asyncio -c 10"])
def test_a_worker_that_works_is_well_and_one_that_stops_says_so(
    app: Celery, ask: Callable[..., Any], pool: str, released: Path, eventually: Eventually
) -> None:
    with ask(f"--pool={pool}") as (worker, health):
        job = app.tasks["wait_for"].apply_async((str(released),), queue="healthy")
        eventually(lambda: runs(released) == 1)
        eventually(lambda: health()[1]["running"] == 1)
        for _ in range(8):  # longer than its patience
            status, told = health()
            assert (status, told["status"], told["reason"], told["queues"]) == (200, "ok", None, ["healthy"])
            with pytest.raises(Exception, match="did not finish"):
                job.get(timeout=0.5)
        worker.process.terminate()
        if pool != "solo":  # which hears of nothing while it works
            eventually(lambda: health() == (503, {**told, "status": "failing", "reason": "it is stopping"}))
        released.touch()
        assert worker.process.wait(20) == 0
    assert job.get(timeout=5) == "released"


def test_a_broker_that_is_away_or_silent_is_told_until_it_is_back(
    server: Any, ask: Callable[..., Any], eventually: Eventually
) -> None:
    with FaultProxy("127.0.0.1", server.port) as proxy, ask("--pool=threads", proxy.url) as (_, health):
        for fault in (proxy.refuse, proxy.stall):
            eventually(lambda: health()[0] == 200)
            fault()
            eventually(lambda: "the broker has not answered for " in (health()[1]["reason"] or ""), timeout=20)
            assert health()[0] == 503
            proxy.pass_through()
            eventually(lambda: health()[0] == 200, timeout=30)


def test_a_loop_that_stands_still_is_told_and_a_process_that_does_gives_no_answer(
    ask: Callable[..., Any], hangs: Path, eventually: Eventually
) -> None:
    with ask("--pool=threads") as (worker, health):
        assert health()[0] == 200
        hangs.touch()
        eventually(lambda: "the event loop has not run for " in (health()[1]["reason"] or ""), timeout=20)
        hangs.unlink()
        eventually(lambda: health()[0] == 200)
        os.kill(worker.process.pid, signal.SIGSTOP)
        with pytest.raises(httpx2.TimeoutException):
            health()
        os.kill(worker.process.pid, signal.SIGCONT)
        eventually(lambda: health()[0] == 200)


def test_of_several_processes_each_has_a_port(app: Celery, ask: Callable[..., Any], eventually: Eventually) -> None:
    with ask("--pool=asyncio --processes 2") as (worker, health):
        eventually(lambda: worker.output.count("takes over") == 2, timeout=30)
        assert (health()[0], health(1)[0]) == (200, 200)
        hosts = {name for answer in app.control.ping(timeout=2) for name in answer if name.startswith("celery-")}
        assert len(hosts) == 2


@pytest.mark.parametrize(("port", "why"), [(None, "Address already in use"), (70_000, "bind(): port must be 0-65535.")])
def test_a_port_that_is_taken_or_none_ends_the_worker(url: str, port: int | None, why: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = port or taken.getsockname()[1]
        command = f"celery -A healthy worker {ALONE} --pool=solo --health-port {port}"
        with running(command, PROGRAMS, {"REDIS_URL": url, "PYTHONPATH": ""}) as worker:
            assert worker.process.wait(30) == 1
            assert f"nothing can listen at --health-port 127.0.0.1:{port}: {why}" in worker.output
            assert "Traceback" not in worker.output
