"""``worker --processes N``: several workers under one supervisor, which replaces those that die or ask for it."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from celery.exceptions import TimeLimitExceeded

from backburner.redis.embedded import EmbeddedServer
from tests.conftest import Eventually
from tests.processes import free_port, running
from tests.queue.conftest import PROGRAMS, MakeApp, StartWorker, runs
from tests.queue.programs.coroutines import define

pytestmark = pytest.mark.slow

POOL = "--pool=asyncio -c 10 -Q coroutines"


@pytest.fixture
def tasks(make_app: MakeApp, own_server: EmbeddedServer) -> Any:
    return define(make_app(own_server.url)).tasks


@pytest.fixture
def start(start_worker: StartWorker, own_server: EmbeddedServer) -> Any:
    return lambda options, app="coroutines": start_worker(own_server.url, f"{POOL} {options}", app)


def processes(tasks: Any) -> set[int]:
    """Those that run tasks."""
    found = tasks["co.nap"].app.control.inspect(timeout=1).stats() or {}
    return {stats["pid"] for stats in found.values()}


def test_the_dead_are_replaced_and_all_leave_in_order(
    start: Any, tasks: Any, tmp_path: Path, eventually: Eventually
) -> None:
    path = tmp_path / "released"
    with start("--processes 2") as fleet:
        eventually(lambda: len(processes(tasks)) == 2, timeout=20)
        first, second = processes(tasks)
        job = tasks["co.hold"].delay(str(path))
        eventually(lambda: runs(path) == 1)
        os.kill(first, signal.SIGKILL)
        eventually(lambda: len(processes(tasks) - {first}) == 2, timeout=20)
        assert second in processes(tasks)
        children = psutil.Process(fleet.process.pid).children(recursive=True)
        fleet.process.send_signal(signal.SIGTERM)
        eventually(lambda: runs(path) == 2 or fleet.output.count("Warm shutdown") == 2, timeout=20)
        path.touch()
        assert job.get(timeout=20) == "released", "whichever of the two had it"
        assert fleet.process.wait(20) == 0
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_who_has_done_enough_is_replaced(start: Any, tasks: Any, eventually: Eventually) -> None:
    with start("--processes 1 --max-tasks-per-child 5") as fleet:
        before = tasks["co.nap"].delay(0).get(timeout=10)[2]
        for _ in range(5):
            assert tasks["co.nap"].delay(0).get(timeout=10)
        eventually(lambda: tasks["co.nap"].delay(0).get(timeout=10)[2] != before, timeout=20)
        assert fleet.says(f"process {before} has ended") or eventually(
            lambda: fleet.says(f"process {before} has ended")
        )


def test_without_a_supervisor_the_same_process_starts_again(start: Any, tasks: Any, eventually: Eventually) -> None:
    with start("--max-tasks-per-child 3") as worker:
        results = [tasks["co.nap"].delay(0.01).get(timeout=20) for _ in range(7)]
        assert {pid for _, _, pid in results} == {worker.process.pid}
        assert worker.output.count("a process has begun") >= 2
        assert worker.stop() == 0


def test_a_thread_that_hangs_has_the_process_replaced(start: Any, tasks: Any, eventually: Eventually) -> None:
    with start("--processes 1") as fleet:
        before = tasks["co.nap"].delay(0).get(timeout=10)[2]
        with pytest.raises(TimeLimitExceeded):
            tasks["co.stuck"].delay().get(timeout=10)
        eventually(lambda: fleet.says(f"process {before} has ended"), timeout=20)
        assert "time.sleep(3600)" in fleet.output, "its stack"
        assert tasks["co.nap"].delay(0).get(timeout=10)[2] != before


def test_who_hangs_is_replaced_and_its_jobs_run_elsewhere(
    start: Any, tasks: Any, tmp_path: Path, eventually: Eventually
) -> None:
    path = tmp_path / "released"
    with start("--processes 1", "coroutines:impatient") as fleet:
        before = tasks["co.nap"].delay(0).get(timeout=10)[2]
        neighbour, hangs = tasks["co.hold"].delay(str(path)), tasks["co.hang_once"].delay(str(tmp_path / "hung"))
        eventually(lambda: runs(path) == 1)
        after = hangs.get(timeout=20)
        eventually(lambda: runs(path) == 2)
        path.touch()
        assert neighbour.get(timeout=10) == "released"
        assert tasks["co.nap"].delay(0).get(timeout=10)[2] == after != before
        eventually(lambda: fleet.says(f"process {before} has ended"), timeout=20)
        assert "by co.hang_once" in fleet.output
        assert "its event loop hangs" in fleet.output
    assert runs(path) == 2


def test_who_has_needed_too_much_memory_is_replaced(start: Any, tasks: Any, eventually: Eventually) -> None:
    with start("--processes 1 --max-memory-per-child 300000") as fleet:
        before = tasks["co.nap"].delay(0).get(timeout=10)[2]
        assert tasks["co.nap"].delay(0).get(timeout=10)[2] == before
        assert tasks["co.eat"].delay(300).get(timeout=10) == 300 << 20
        eventually(lambda: fleet.says(f"process {before} has ended"), timeout=20)
        assert "KiB of memory" in fleet.output
        after = tasks["co.nap"].delay(0).get(timeout=10)[2]
        assert tasks["co.nap"].delay(0).get(timeout=10)[2] == after != before


def test_who_is_told_to_stop_before_it_has_taken_a_job_makes_no_fuss(eventually: Eventually) -> None:
    command = f"celery -A coroutines worker --loglevel=info --processes 1 {POOL}"
    nowhere = {"REDIS_URL": f"redis://127.0.0.1:{free_port()}/0", "PYTHONPATH": ""}
    with running(command, PROGRAMS, nowhere) as fleet:
        eventually(lambda: fleet.says("Cannot connect"), timeout=30)
        fleet.process.send_signal(signal.SIGTERM)
        fleet.process.wait(20)
        assert "Traceback" not in fleet.output
        assert "no jobs were returned" not in fleet.output


def test_a_number_that_is_none_is_refused(own_server: EmbeddedServer) -> None:
    environment = {**os.environ, "REDIS_URL": own_server.url}
    command = [sys.executable, "-m", "celery", "-A", "coroutines", "worker", "--processes", "0"]
    done = subprocess.run(
        command, cwd=PROGRAMS, env=environment, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode != 0
    assert "--processes 0: there must be one, at least" in done.stderr
