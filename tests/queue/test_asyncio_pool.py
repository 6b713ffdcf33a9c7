"""``--pool=asyncio``: coroutines by the thousand on one loop, and all that Celery promises for them."""

import asyncio
import gc
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import chain, chord, group
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

from backburner.queue import Job
from backburner.redis.embedded import EmbeddedServer
from tests.conftest import Eventually
from tests.processes import Program
from tests.queue.conftest import MakeApp, StartWorker, runs
from tests.queue.programs.coroutines import define

PLACES = 200
POOL = f"--pool=asyncio -c {PLACES} -Q coroutines"
NODE = "coroutines@tests"
"""The worker that is shared. Others have the same server, and remote control reaches all of them."""


@pytest.fixture(scope="module")
def pool(server: EmbeddedServer, start_worker: StartWorker) -> Iterator[Program]:
    """A worker that the tests of this file share."""
    with start_worker(server.url, f"{POOL} -n {NODE}", "coroutines") as program:
        yield program


@pytest.fixture
def tasks(make_app: MakeApp, url: str, pool: Program) -> Any:
    return define(make_app(url)).tasks


@pytest.fixture
def inspect(tasks: Any) -> Any:
    """Asks the shared worker alone, and gives what it says."""
    asks = tasks["co.hold"].app.control.inspect(destination=[NODE], timeout=10, limit=1)
    return lambda what: getattr(asks, what)()[NODE]


async def state(job: Job[Any], wanted: str) -> None:
    async for event in job.aevents():
        if event.data.get("state") == wanted:
            return


def test_coroutines_and_functions_run_in_one_worker(tasks: Any, pool: Program) -> None:
    naps = [tasks["co.nap"].delay(0.1) for _ in range(150)]
    blocks = [tasks["co.block"].delay(0.05) for _ in range(10)]
    assert tasks["co.add"].delay(1, 2).get(timeout=10) == 3
    found = {tuple(nap.get(timeout=10)) for nap in naps}
    assert [module.partition(".")[0] for module, _, _ in found] == ["uvloop"], "one loop"
    assert {tuple(block.get(timeout=10)) for block in blocks} == {(False, pool.process.pid)}
    assert pool.says("a process has begun")


def test_the_garbage_collector_is_kept_from_what_stays_and_comes_less_often(tasks: Any) -> None:
    frozen, young, *older = tasks["co.collector"].delay().get(timeout=10)
    assert frozen > 10_000, "Celery and all that it has imported"
    assert (young, older) == (10_000, list(gc.get_threshold()[1:]))


def test_each_job_finds_itself(tasks: Any) -> None:
    jobs = [tasks["co.who"].delay() for _ in range(50)]
    for job in jobs:
        found, before = job.get(timeout=10)
        assert set(found) == {job.id}
        assert before is None, "its context is its own"


def test_retries(tasks: Any) -> None:
    assert tasks["co.retry"].delay(2).get(timeout=10) == 2
    assert tasks["co.autoretry"].delay(2).get(timeout=10) == 2


def test_canvas(tasks: Any) -> None:
    add, total = tasks["co.add"], tasks["co.sum"]
    assert chain(add.s(1, 2), add.s(3)).apply_async().get(timeout=10) == 6
    assert group(add.s(i, i) for i in range(5)).apply_async().get(timeout=10) == [0, 2, 4, 6, 8]
    assert chord([add.s(i, i) for i in range(5)], total.s()).apply_async().get(timeout=10) == 20


def test_a_task_calls_others_as_functions(tasks: Any) -> None:
    assert tasks["co.call"].delay().get(timeout=10) == [8, 3]
    assert tasks["co.double"].map([1, 2]).delay().get(timeout=10) == [2, 4]
    assert tasks["co.block"].starmap([(0,)]).delay().get(timeout=10)
    assert tasks["co.double"].chunks([(1,), (2,), (3,)], 2).delay().get(timeout=10) == [[2, 4], [6]]


@pytest.mark.parametrize("errback", ["co.errback", "co.aerrback"])
def test_an_errback_is_given_request_error_and_traceback(
    tasks: Any, tmp_path: Path, eventually: Eventually, errback: str
) -> None:
    tasks["co.fail"].apply_async(link_error=tasks[errback].s(str(tmp_path / "called")))
    eventually((tmp_path / "called").exists)


def test_coroutine_functions_are_mapped(tasks: Any) -> None:
    assert tasks["co.sum"].map([[1, 2], [3]]).delay().get(timeout=10) == [3, 3]
    assert tasks["co.add"].starmap([(1, 2), (3, 4)]).delay().get(timeout=10) == [3, 7]
    chunks = tasks["co.add"].chunks([(1, 2), (3, 4), (5, 6)], 2).group().apply_async()
    assert chunks.get(timeout=10) == [[3, 7], [11]]


def test_outside_of_tasks_there_is_no_current_task(tasks: Any, pool: Program, eventually: Eventually) -> None:
    assert tasks["co.plain_thread"].delay().get(timeout=10) == [None]
    eventually(lambda: pool.says("a line outside of tasks"))
    assert pool.says("outside of tasks the current one is None")
    assert "Logging error" not in pool.output


def test_a_coroutine_that_waits_as_functions_do_blocks_nobody(tasks: Any) -> None:
    wait = tasks["co.wait"]
    assert wait.delay(disable_sync_subtasks=False).get(timeout=10) == 3
    assert wait.delay(disable_sync_subtasks=False, interval=0.1).get(timeout=10) == 3
    with pytest.raises(RuntimeError, match="Never call"):
        wait.delay().get(timeout=10)
    assert len(tasks["co.wait_for_group"].delay(0.1).get(timeout=10)) == 3


def test_what_a_task_raises_is_its_own_affair(tasks: Any, pool: Program) -> None:
    bystander = tasks["co.nap"].delay(0.5)
    with pytest.raises(KeyError, match="no such thing"):
        tasks["co.fail"].delay().get(timeout=10)
    for name, raised in [("exit", "SystemExit"), ("exit_thread", "KeyboardInterrupt"), ("cancel_itself", "Cancelled")]:
        with pytest.raises(RuntimeError, match=rf"co.{name} raised {raised}"):
            tasks[f"co.{name}"].delay().get(timeout=10)
    assert tasks["co.exit_child"].delay().get(timeout=10) == "SystemExit(4)"
    with pytest.raises(Exception, match="not JSON serializable"):
        tasks["co.unencodable"].delay().get(timeout=10)
    assert bystander.get(timeout=10)[2] == pool.process.pid


@pytest.mark.slow
@pytest.mark.parametrize("name", ["co.exhaust", "co.exhaust_thread"])
def test_a_task_that_runs_out_of_memory_keeps_no_place(
    make_app: MakeApp, own_server: EmbeddedServer, start_worker: StartWorker, name: str
) -> None:
    tasks = define(make_app(own_server.url)).tasks
    with start_worker(own_server.url, "--pool=asyncio -c 1 -Q coroutines", "coroutines"):
        for _ in range(5):
            with pytest.raises(MemoryError):
                tasks[name].delay().get(timeout=10)
        assert tasks["co.add"].delay(1, 2).get(timeout=10) == 3


def test_limits_of_time(tasks: Any, tmp_path: Path, eventually: Eventually) -> None:
    soft = tasks["co.soft"].delay()
    with pytest.raises(SoftTimeLimitExceeded):
        tasks["co.soft_unhandled"].delay().get(timeout=10)
    with pytest.raises(TimeLimitExceeded):
        tasks["co.hard"].delay(str(tmp_path / "ended")).get(timeout=10)
    eventually((tmp_path / "ended").exists)
    assert soft.get(timeout=10) == ["SoftTimeLimitExceeded(0.1)", 0]


@pytest.mark.parametrize("kind", ["wait_for", "gather", "asyncio", "anyio"])
def test_a_soft_limit_ends_what_the_coroutine_waits_for(tasks: Any, kind: str) -> None:
    assert tasks["co.soft_within"].delay(kind).get(timeout=10) == ["SoftTimeLimitExceeded(0.1)", [kind], [0.1]]


def test_a_job_that_runs_is_cancelled(tasks: Any, tmp_path: Path, eventually: Eventually) -> None:
    path = tmp_path / "released"
    job = tasks["co.hold"].delay(str(path))
    eventually(lambda: runs(path) == 1)
    job.cancel()
    eventually(Path(f"{path}.cancelled").exists)
    eventually(lambda: job.state == "REVOKED")


def test_a_job_that_runs_is_revoked_by_remote_control(tasks: Any, tmp_path: Path, eventually: Eventually) -> None:
    path, other = tmp_path / "released", tmp_path / "other"
    job, neighbour = tasks["co.hold"].delay(str(path)), tasks["co.hold"].delay(str(other))
    eventually(lambda: runs(path) == runs(other) == 1)
    job.app.control.revoke(job.id, terminate=True, destination=[NODE])
    eventually(Path(f"{path}.cancelled").exists)
    eventually(lambda: job.state == "REVOKED")
    other.touch()
    assert neighbour.get(timeout=10) == "released"


def test_a_job_is_awaited_and_cancelled_by_a_coroutine(tasks: Any, tmp_path: Path) -> None:
    async def use() -> None:
        added = await tasks["co.add"].adelay(1, 2)
        assert await added.aget(timeout=10) == 3
        held = await tasks["co.hold"].adelay(str(tmp_path / "never"))
        await state(held, "STARTED")
        await held.acancel()
        await state(held, "REVOKED")

    asyncio.run(use())


def test_remote_control(tasks: Any, pool: Program, inspect: Any, tmp_path: Path, eventually: Eventually) -> None:
    path = tmp_path / "released"
    job = tasks["co.hold"].delay(str(path))
    eventually(lambda: runs(path) == 1)
    [active] = inspect("active")
    assert (active["id"], active["worker_pid"]) == (job.id, pool.process.pid)
    found = inspect("stats")["pool"]
    assert (found["max-concurrency"], found["running"], found["waiting"]) == (PLACES, 1, 0)
    path.touch()
    assert job.get(timeout=10) == "released"


@pytest.mark.slow
def test_places_are_added_and_taken_away_by_remote_control(
    tasks: Any, inspect: Any, tmp_path: Path, eventually: Eventually
) -> None:
    path, control = tmp_path / "released", tasks["co.hold"].app.control
    told = {"destination": [NODE], "reply": True, "timeout": 10, "limit": 1}
    assert control.pool_shrink(PLACES - 2, **told) == [{NODE: {"ok": "pool will shrink"}}]
    try:
        jobs = tasks["co.hold"].delay_many([(str(path),)] * 10)
        eventually(lambda: runs(path) == 2)
        assert inspect("stats")["pool"]["max-concurrency"] == 2
        assert len(inspect("active")) == 2
        assert control.pool_grow(3, **told) == [{NODE: {"ok": "pool will grow"}}]
        eventually(lambda: runs(path) == 5)
        assert len(inspect("active")) == 5
        path.touch()
        assert {job.get(timeout=10) for job in jobs} == {"released"}
    finally:
        control.pool_grow(PLACES - inspect("stats")["pool"]["max-concurrency"], **told)
    naps = tasks["co.nap"].delay_many([(0.1,)] * PLACES)
    assert all(nap.get(timeout=10) for nap in naps)


def spread(jobs: list[Job[Any]]) -> float:
    """Seconds between the first and the last begin."""
    begins = [job.get(timeout=10) for job in jobs]
    return max(begins) - min(begins)


@pytest.mark.slow
def test_limits_of_rate(tasks: Any) -> None:
    limited, control = tasks["co.limited"], tasks["co.limited"].app.control
    told = {"destination": [NODE], "reply": True, "timeout": 10, "limit": 1}
    jobs = limited.delay_many([()] * 21)
    assert tasks["co.add"].delay(1, 2).get(timeout=10) == 3, "others go on meanwhile"
    assert not jobs[-1].ready()
    assert spread(jobs) > 1.7, "ten a second; the first may have been late"
    assert control.rate_limit("co.limited", "5/s", **told) == [{NODE: {"ok": "new rate limit set successfully"}}]
    assert spread(limited.delay_many([()] * 6)) > 0.8
    control.rate_limit("co.limited", 0, **told)
    try:
        spread(limited.delay_many([()] * 100))  # would take ten times as long as is waited
    finally:
        control.rate_limit("co.limited", "10/s", **told)


def test_jobs_beyond_a_limit_of_rate_go_on_as_fast_as_it_allows(tasks: Any) -> None:
    limited, control = tasks["co.limited"], tasks["co.limited"].app.control
    told = {"destination": [NODE], "reply": True, "timeout": 10, "limit": 1}
    control.rate_limit("co.limited", "100/s", **told)
    try:
        limited.delay_many([()] * 60)[-1].get(timeout=10)  # it was one a second
    finally:
        control.rate_limit("co.limited", "10/s", **told)


def test_who_blocks_the_loop_is_named(tasks: Any, pool: Program, eventually: Eventually) -> None:
    job = tasks["co.hog"].delay(0.5)
    job.get(timeout=10)
    eventually(lambda: pool.says("the event loop runs again"))
    assert f"by co.hog[{job.id}]" in pool.output
    assert "time.sleep(seconds)" in pool.output, "its stack"


@pytest.mark.slow
def test_who_ignores_being_cancelled_is_abandoned(
    tasks: Any, pool: Program, inspect: Any, tmp_path: Path, eventually: Eventually
) -> None:
    path = tmp_path / "began"
    job = tasks["co.stubborn"].delay(str(path))
    with pytest.raises(TimeLimitExceeded):
        job.get(timeout=10)
    eventually(lambda: pool.says(f"co.stubborn[{job.id}] goes on 5 s after it was cancelled"), timeout=20)
    eventually(lambda: inspect("stats")["pool"]["running"] == 0)


@pytest.mark.slow
def test_soft_shutdown_waits_a_while_then_gives_back(
    make_app: MakeApp, own_server: EmbeddedServer, start_worker: StartWorker, tmp_path: Path, eventually: Eventually
) -> None:
    tasks, path, soon = define(make_app(own_server.url)).tasks, tmp_path / "released", tmp_path / "soon"
    with start_worker(own_server.url, POOL, "coroutines") as worker:
        held = tasks["co.hold"].delay(str(path))
        thread = tasks["co.hold_thread"].delay(str(path))
        nap = tasks["co.nap_told"].delay(0.3, str(soon))
        eventually(lambda: runs(path) == 2 and runs(soon) == 1)
        worker.process.send_signal(signal.SIGQUIT)
        worker.process.wait(20)
        assert nap.get(timeout=1) is None
        assert Path(f"{path}.cancelled").exists()
    path.touch()
    with start_worker(own_server.url, POOL, "coroutines"):
        assert held.get(timeout=10) == "released"
        assert thread.get(timeout=10) == "released"
    assert runs(path) == 4


@pytest.mark.slow
def test_what_a_killed_worker_ran_is_run_by_another(
    make_app: MakeApp, own_server: EmbeddedServer, start_worker: StartWorker, tmp_path: Path, eventually: Eventually
) -> None:
    tasks, path = define(make_app(own_server.url)).tasks, tmp_path / "released"
    options = POOL.replace("200", "500")
    with start_worker(own_server.url, options, "coroutines") as worker:
        jobs = tasks["co.hold"].delay_many([(str(path),)] * 600)
        eventually(lambda: runs(path) == 500, timeout=20)
        worker.process.kill()
        path.touch()
        with start_worker(own_server.url, options, "coroutines"):
            assert {job.get(timeout=30) for job in jobs} == {"released"}
    assert runs(path) == 1100, "those that ran were run again, the others once"


@pytest.mark.slow
def test_a_job_acknowledged_early_is_not_run_again(
    make_app: MakeApp, own_server: EmbeddedServer, start_worker: StartWorker, tmp_path: Path, eventually: Eventually
) -> None:
    tasks, late, early = define(make_app(own_server.url)).tasks, tmp_path / "late", tmp_path / "early"
    with start_worker(own_server.url, POOL, "coroutines") as worker, redis.Redis.from_url(own_server.url) as client:
        job = tasks["co.hold"].delay(str(late))
        tasks["co.hold_early"].delay(str(early))
        eventually(lambda: runs(late) == runs(early) == 1)
        eventually(lambda: [client.hlen(key) for key in client.keys("backburner:leased:*")] == [1])
        worker.process.kill()
        late.touch()
        with start_worker(own_server.url, POOL, "coroutines"):
            assert job.get(timeout=20) == "released"
            assert tasks["co.add"].delay(1, 2).get(timeout=10) == 3, "what was there before has begun"
    assert (runs(late), runs(early)) == (2, 1)


@pytest.mark.slow
def test_an_app_has_it_as_its_default(own_server: EmbeddedServer, start_worker: StartWorker) -> None:
    with start_worker(own_server.url, "-Q coroutines", "coroutines:asynchronous") as worker:
        assert "concurrency: 100 (taskpool)" in worker.output
    with start_worker(own_server.url, "-Q coroutines --pool=threads -c 2", "coroutines:asynchronous") as worker:
        assert "concurrency: 2 (thread)" in worker.output


@pytest.mark.slow
def test_warm_shutdown_waits(
    make_app: MakeApp, own_server: EmbeddedServer, start_worker: StartWorker, tmp_path: Path, eventually: Eventually
) -> None:
    tasks, path = define(make_app(own_server.url)).tasks, tmp_path / "released"
    with start_worker(own_server.url, POOL, "coroutines") as worker:
        job = tasks["co.hold"].delay(str(path))
        eventually(lambda: runs(path) == 1)
        worker.process.send_signal(signal.SIGTERM)
        eventually(lambda: worker.says("Warm shutdown"))
        path.touch()
        assert worker.process.wait(10) == 0
        assert job.get(timeout=1) == "released"


def test_celerys_signals_tell_of_each_job(
    make_app: MakeApp, own_server: EmbeddedServer, start_worker: StartWorker, tmp_path: Path, eventually: Eventually
) -> None:
    told = tmp_path / "told"
    (tmp_path / "signalling.py").write_text(
        "import os\n"
        "from celery import signals\n"
        "from backburner.queue import Celery\n"
        "from backburner.settings import Settings\n"
        "app = Celery('signalling', settings=Settings(redis_url=os.environ['REDIS_URL']))\n"
        "@app.task(name='signalled')\n"
        "async def signalled(fails):\n"
        "    assert not fails\n"
        "def tell(signal=None, sender=None, **_):\n"
        f"    open({str(told)!r}, 'a').write(f'{{signal.name}} {{sender.name}}\\n')\n"
        "for each in (signals.task_prerun, signals.task_postrun, signals.task_success, signals.task_failure):\n"
        "    each.connect(tell, weak=False)\n"
    )
    app = make_app(own_server.url)
    with start_worker(own_server.url, "--pool=asyncio -c 10", "signalling", tmp_path):
        for fails, ending in ((False, "task_success"), (True, "task_failure")):
            app.send_task("signalled", [fails])
            names = ["task_prerun", ending, "task_postrun"]
            eventually(lambda: told.exists() and told.read_text().count("task_postrun") == 1)
            assert told.read_text().splitlines() == [f"{name} signalled" for name in names]
            told.unlink()
