"""The lifespan of worker processes: entered before jobs, left after them, on the loop of their coroutines."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backburner.errors import ConfigError
from backburner.queue import Celery
from tests.conftest import Eventually
from tests.processes import running
from tests.queue.conftest import ALONE, PROGRAMS, MakeApp, StartWorker

POOLS = [
    "--pool=threads",
    pytest.param("--pool=asyncio", marks=pytest.mark.slow),
    pytest.param("--pool=solo", marks=pytest.mark.slow),
    pytest.param("--pool=prefork", marks=pytest.mark.slow),
]


def told(tale: Path) -> list[tuple[str, str]]:
    return [tuple(line.split()) for line in tale.read_text().splitlines()] if tale.exists() else []


@pytest.mark.parametrize("pool", POOLS)
def test_each_process_enters_before_its_jobs_and_leaves_after_them(
    make_app: MakeApp, url: str, start_worker: StartWorker, tmp_path: Path, pool: str, eventually: Eventually
) -> None:
    app, tale = make_app(url), tmp_path / "tale"
    with start_worker(url, f"{pool} -Q living", "living", TALE=str(tale)) as worker:
        for job in [app.send_task("living.use", queue="living") for _ in range(10)]:
            numbers, words, process = job.get(timeout=10)
            assert numbers["process"] == process
            assert words == f"second, after {process}"
        for job in [app.send_task("living.ause", queue="living") for _ in range(10)]:
            numbers, _, loop = job.get(timeout=10)
            assert numbers["loop"] == loop
        last = app.send_task("living.ause", (1,), queue="living")
        eventually(lambda: [word for word, _ in told(tale)].count("began") == 11)
        assert worker.stop() == 0
    assert last.get(timeout=5)[0] == numbers or "prefork" in pool, "it was there until the end"
    processes = {process for _, process in told(tale)}
    assert len(processes) == (2 if "prefork" in pool else 1)
    for process in processes:
        words = [word for word, of in told(tale) if of == process]
        assert (words[0], words[-1]) == ("entered", "left")
        assert words.count("entered") == words.count("left") == 1


@pytest.mark.slow
@pytest.mark.parametrize("pool", [pool if isinstance(pool, str) else pool.values[0] for pool in POOLS])
def test_jobs_get_their_dependencies_and_leave_them_closed(
    make_app: MakeApp, url: str, start_worker: StartWorker, tmp_path: Path, pool: str
) -> None:
    app, tale = make_app(url), tmp_path / "tale"
    with start_worker(url, f"{pool} -Q living", "living", TALE=str(tale)) as worker:
        for name in ("living.depend", "living.adepend"):
            for job in [app.send_task(name, (number,), queue="living") for number in range(20)]:
                number, process, text = job.get(timeout=10)
                assert text == f"a session of {process}, for {number}"
        with pytest.raises(ZeroDivisionError):
            app.send_task("living.depend", (-1,), queue="living").get(timeout=10)
        assert worker.stop() == 0
    words = [word for word, _ in told(tale)]
    assert words.count("opened") == words.count("closed") == 41


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_that_cannot_enter_says_why_and_takes_no_jobs(
    make_app: MakeApp, url: str, tmp_path: Path, pool: str
) -> None:
    app, tale = make_app(url), tmp_path / "tale"
    job = app.send_task("living.use", queue="living")
    command = f"celery -A living worker --loglevel=info {ALONE} {pool} -Q living"
    variables = {"REDIS_URL": url, "PYTHONPATH": "", "TALE": str(tale), "FAILS": "no database"}
    with running(command, PROGRAMS, variables) as worker:
        assert worker.process.wait(30) == 1
        output = worker.output
    assert "the lifespan could not be entered, so there are no jobs for this worker" in output
    assert "ConnectionError: no database" in output
    assert job.state == "PENDING"
    words = [word for word, _ in told(tale)]
    assert words.count("entered") == words.count("left") > 0, "the first one was left again"


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_whose_lifespan_ends_by_itself_ends_too_before_it_takes_more_jobs(
    make_app: MakeApp, url: str, start_worker: StartWorker, tmp_path: Path, pool: str
) -> None:
    app = make_app(url)
    with start_worker(url, f"{pool} -Q living", "living", TALE=str(tmp_path / "tale")) as worker:
        app.send_task("living.lose", queue="living").get(timeout=10)
        assert worker.process.wait(30) == 1
        assert "the lifespan has ended by itself, so there are no more jobs for this worker" in worker.output
        assert "ConnectionError: lost" in worker.output


@pytest.mark.slow
def test_a_process_that_follows_another_enters_too(
    make_app: MakeApp, url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    app, tale = make_app(url), tmp_path / "tale"
    options = "--pool=prefork -c 1 --max-tasks-per-child 1 -Q living"
    with start_worker(url, options, "living", TALE=str(tale)):
        processes = {app.send_task("living.use", queue="living").get(timeout=10)[2] for _ in range(2)}
    assert len(processes) == 2
    assert {str(process) for process in processes} <= {process for word, process in told(tale) if word == "left"}


def test_where_no_jobs_run_there_is_none() -> None:
    app = Celery("none", set_as_current=False)

    @app.lifespan
    async def number():
        yield 1

    with pytest.raises(RuntimeError, match=r"number has not been entered: only processes that run jobs do that"):
        number()


def test_tasks_run_on_the_spot_are_on_its_loop_wherever_they_are_called() -> None:
    app = Celery("spot", set_as_current=False, broker="memory://", backend="cache+memory://")
    app.conf.task_always_eager = True

    @app.lifespan
    async def home() -> AsyncIterator[asyncio.AbstractEventLoop]:
        yield asyncio.get_running_loop()

    @app.task(shared=False)
    async def is_home() -> bool:
        return asyncio.get_running_loop() is home()

    async def called_in_a_coroutine() -> list[bool]:
        return [is_home.apply().get(), is_home.delay().get(), await (await is_home.adelay()).aget()]

    app.lifespans.enter()
    try:
        assert is_home.delay().get()
        assert asyncio.run(called_in_a_coroutine()) == [True] * 3
    finally:
        app.lifespans.leave()


def test_what_is_no_lifespan_is_refused_where_it_is_declared() -> None:
    app = Celery("none", set_as_current=False)
    for function in (os.getpid, lambda: (yield 1)):
        with pytest.raises(ConfigError, match="yields once"):
            app.lifespan(function)
