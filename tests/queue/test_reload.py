"""``worker --reload``: new code soon, no job lost or run twice, and nothing left behind."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from backburner.queue import Celery
from backburner.redis.embedded import EmbeddedServer
from tests.processes import Program
from tests.queue.conftest import MakeApp, StartWorker, runs

Eventually = Callable[..., Any]

SOURCE = """
import os, sys, time
from backburner.queue import Celery

app = Celery("reloaded")

@app.task(name="version")
def version():
    return {version!r}

@app.task(name="hold")
def hold(path):
    with open(f"{{path}}.runs", "a") as runs:
        runs.write("x")
    while not os.path.exists(path):
        time.sleep(0.02)
    return {version!r}
"""


class Project:
    """A folder with tasks that the test edits, and a worker that follows."""

    def __init__(self, folder: Path, app: Celery, worker: Program) -> None:
        self.folder, self.app, self.worker = folder, app, worker

    def save(self, version: object, extra: str = "", name: str = "tasks.py") -> None:
        (self.folder / name).write_text(SOURCE.format(version=version) + extra)

    def version(self) -> Any:
        return self.app.send_task("version").get(timeout=10)

    def processes(self) -> list[psutil.Process]:
        supervisor = psutil.Process(self.worker.process.pid)
        return [supervisor, *supervisor.children(recursive=True)]


@pytest.fixture
def start_project(
    tmp_path: Path, server: EmbeddedServer, make_app: MakeApp, start_worker: StartWorker
) -> Iterator[Callable[[str], Project]]:
    # A database of its own: the shared worker knows none of these tasks.
    url = server.url.removesuffix("0") + "4"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    folder = tmp_path / "project"
    folder.mkdir()
    workers = []

    def start(options: str = "--pool=solo") -> Project:
        (folder / "tasks.py").write_text(SOURCE.format(version=1))
        worker = start_worker(url, f"--reload {options}", app="tasks", cwd=folder)
        workers.append(worker)
        return Project(folder, make_app(url), worker.__enter__())

    yield start
    for worker in workers:
        worker.__exit__(None, None, None)


StartProject = Callable[..., Project]


@pytest.mark.parametrize("pool", ["solo", "threads -c 2", "prefork -c 2"])
def test_changed_code_runs_within_two_seconds_and_a_running_job_ends_as_it_began(
    start_project: StartProject, pool: str, released: Path, eventually: Eventually
) -> None:
    project = start_project(f"--pool={pool}")
    project.save(2)
    eventually(lambda: project.version() == 2)
    job = project.app.send_task("hold", (str(released),))
    eventually(lambda: runs(released) == 1)
    project.save(3)
    saved = time.monotonic()
    eventually(lambda: project.version() == 3)
    assert time.monotonic() - saved < 2
    released.touch()
    assert job.get(timeout=10) == 2, "the old code ran it to its end"
    assert runs(released) == 1


def test_code_that_does_not_start_leaves_the_old_in_place_and_is_shown_once(
    start_project: StartProject, eventually: Eventually
) -> None:
    project = start_project()
    for extra, error in (
        ("\nthis is no python\n", "SyntaxError"),
        ("\nimport no_such_module\n", "ModuleNotFoundError"),
    ):
        project.save(2, extra)
        eventually(lambda error=error: error in project.worker.output)
        eventually(lambda: "the code does not start" in project.worker.output)
        assert project.version() == 1
        assert project.worker.output.count(f"{error}:") == 1
    project.save(3)
    eventually(lambda: project.version() == 3)


def test_a_change_of_the_settings_file_reloads_too(start_project: StartProject, eventually: Eventually) -> None:
    project = start_project()
    project.save(1, "\nimport pathlib\nVALUE = pathlib.Path('.env').read_text()\nversion.run = lambda: VALUE\n")
    (project.folder / ".env").write_text("NAME=a")
    eventually(lambda: project.version() == "NAME=a")
    (project.folder / ".env").write_text("NAME=b")
    eventually(lambda: project.version() == "NAME=b")


@pytest.mark.parametrize("pool", ["solo", "prefork -c 2"])
def test_a_killed_supervisor_takes_its_workers_along_and_returns_their_jobs(
    start_project: StartProject, pool: str, released: Path, eventually: Eventually
) -> None:
    project = start_project(f"--pool={pool}")
    project.app.send_task("hold", (str(released),))
    eventually(lambda: runs(released) == 1)
    processes = project.processes()
    project.worker.process.kill()
    eventually(lambda: not [each for each in processes if is_running(each)])
    with project.app.connection_for_write() as connection:
        assert connection.default_channel.client.llen("celery") == 1
    assert runs(released) == 1


def test_stopping_ends_everything_in_order_and_returns_what_does_not_end(
    start_project: StartProject, released: Path, eventually: Eventually
) -> None:
    project = start_project("--pool=threads -c 2")
    project.app.send_task("hold", (str(released),))
    eventually(lambda: runs(released) == 1)
    processes = project.processes()
    asked = time.monotonic()
    os.kill(project.worker.process.pid, signal.SIGINT)
    assert project.worker.process.wait(10) == 0
    assert time.monotonic() - asked < 6
    assert not [each for each in processes if is_running(each)]
    with project.app.connection_for_write() as connection:
        assert connection.default_channel.client.llen("celery") == 1


def is_running(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
