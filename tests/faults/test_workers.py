"""Workers that die at any moment: every job is counted by its id, none may be lost, none may run twice at a time."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import celery.exceptions
import psutil
import pytest
import redis
from billiard.exceptions import WorkerLostError

from backburner.queue import Celery
from backburner.redis.embedded import EmbeddedServer
from backburner.settings import Settings
from tests.conftest import Eventually
from tests.faults.chaos.account import History, account
from tests.faults.ledger import Ledger
from tests.processes import Program, running
from tests.queue.conftest import close

PROGRAMS = Path(__file__).parent / "programs"
LEASE = 2.0
_KILLS = 7


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "ledger")
    yield ledger
    ledger.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path / "server") as server:
        yield server


@pytest.fixture
def app(server: EmbeddedServer) -> Iterator[Celery]:
    app = Celery("tests", settings=Settings(redis_url=server.url, celery_publish_timeout=5), set_as_current=False)
    yield app
    close(app)


@pytest.fixture
def worker(server: EmbeddedServer, ledger: Ledger) -> Callable[..., AbstractContextManager[Program]]:
    def start(options: str, app: str = "ledger", **env: str) -> AbstractContextManager[Program]:
        command = f"celery -A {app} worker --loglevel=info --without-mingle --without-gossip {options}"
        variables = {"REDIS_URL": server.url, "PYTHONPATH": "", "LEDGER": str(ledger.file), "LEASE": str(LEASE), **env}
        return running(command, PROGRAMS, variables)

    return start


def kill(program: Program) -> None:
    """The whole worker at once, as a machine that is gone."""
    os.killpg(program.process.pid, signal.SIGKILL)
    program.process.wait()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("pool", ["solo", "threads", "prefork", "gevent"])
def test_no_job_is_lost_nor_finished_twice_when_workers_are_killed_at_random(
    app: Celery, ledger: Ledger, worker: Any, pool: str, eventually: Eventually
) -> None:
    history = History()
    with ExitStack() as stack:

        def start(name: str) -> Program:
            return stack.enter_context(worker(f"-P {pool} -c 2 -n {name}@tests", WORKER=name, PREFETCH="4"))

        names = ["0", "1"]
        workers = [start(name) for name in names]
        for round_ in range(_KILLS):
            victim = round_ % 2
            eventually(lambda: workers[victim].says("ready."), timeout=30)  # noqa: B023  # called at once
            for _ in range(30):
                app.send_task("work", (ledger.entry(), random.choice([0, 0.01, 0.05])))
            some = max(0, len(ledger.unfinished()) - random.randrange(30))
            eventually(lambda: len(ledger.unfinished()) <= some, timeout=30)  # noqa: B023
            kill(workers[victim])
            history.workers[names[victim]] = time.monotonic()
            names[victim] = str(round_ + 2)
            workers[victim] = start(names[victim])
        eventually(lambda: not ledger.unfinished(), timeout=LEASE + 15)
    told = account(pool, history, len(ledger.jobs), ledger.unfinished(), ledger.runs)
    assert (told.lost, told.live_twice, told.done_again) == (0, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_job_is_acknowledged_when_it_has_ended_and_not_after_those_that_came_with_it(
    app: Celery, server: EmbeddedServer, ledger: Ledger, worker: Any, pool: str, eventually: Eventually
) -> None:
    long = "long"
    for _ in range(3):
        app.send_task("work", (ledger.entry(), 0))
    app.send_task("work", (long, 5))
    with worker(f"-P {pool} -c 1", PREFETCH="4"), redis.Redis.from_url(server.url) as client:
        eventually(lambda: ledger.starts(long) and not ledger.unfinished(), timeout=30)
        eventually(lambda: [client.hlen(key) for key in client.scan_iter("backburner:leased:*")] == [1], timeout=2)
        assert ledger.runs[long][0].end is None


@pytest.mark.slow
def test_what_a_process_of_the_pool_has_is_not_given_to_others_when_the_connection_is_lost(
    app: Celery, server: EmbeddedServer, ledger: Ledger, worker: Any, eventually: Eventually
) -> None:
    with worker("-P prefork -c 1") as one, redis.Redis.from_url(server.url) as client:
        eventually(lambda: one.says("ready."), timeout=30)
        [child] = psutil.Process(one.process.pid).children()
        child.suspend()  # it cannot say that it has begun
        first, last = ledger.entry(), ledger.entry()
        app.send_task("work", (first, 0))
        eventually(lambda: one.says("received"))
        client.client_kill_filter(_type="normal", skipme=True)
        eventually(lambda: one.output.count("Connected to") == 2)
        child.resume()
        eventually(lambda: first not in ledger.unfinished())
        app.send_task("work", (last, 0))
        eventually(lambda: not ledger.unfinished())
        eventually(lambda: not list(client.scan_iter("backburner:leased:*")))
    assert (ledger.starts(first), ledger.starts(last)) == (1, 1)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_job_that_kills_what_runs_it_is_kept_after_three_deaths_and_others_are_done(
    app: Celery, server: EmbeddedServer, ledger: Ledger, worker: Any, pool: str, eventually: Eventually
) -> None:
    job = app.send_task("die", ("deadly",))
    for _ in range(4):
        app.send_task("work", (ledger.entry(), 0))
    with ExitStack() as stack, redis.Redis.from_url(server.url, decode_responses=True) as client:
        start = lambda: stack.enter_context(worker(f"-P {pool} -c 1", MAX_DELIVERIES="3"))  # noqa: E731  # to be short
        running_ = start()

        def kept() -> list[str]:
            nonlocal running_
            if running_.process.poll() is not None:
                running_ = start()
            return client.zrange("backburner:failed", 0, -1)

        (member,) = eventually(kept, timeout=60)
        assert client.hget(f"backburner:failed:{member}", "reason") == "crashed"
        eventually(lambda: not ledger.unfinished(), timeout=30)
        with pytest.raises(WorkerLostError, match="its worker died 3 times"):
            job.get(timeout=20)
        eventually(lambda: not client.exists("backburner:failed-untold"))
    assert ledger.starts("deadly") == 3


@pytest.mark.slow
def test_a_message_whose_task_nobody_knows_waits_for_a_worker_that_does(
    app: Celery, server: EmbeddedServer, worker: Any, eventually: Eventually
) -> None:
    with redis.Redis.from_url(server.url, decode_responses=True) as client, worker("-P solo") as old:
        job = app.send_task("new", (20,))
        eventually(lambda: old.says("nobody here knows the task 'new'"), timeout=20)
        with worker("-P solo", KNOWS_NEW="1"):
            assert job.get(timeout=30) == 21
        unheard = app.send_task("unheard.of")
        eventually(lambda: old.says("nobody here knows the task 'unheard.of'"))
        for key in client.scan_iter("backburner:unknown:*"):
            assert client.ttl(key) > 0
            client.set(key, 1)  # for half a century
        (member,) = eventually(lambda: client.zrange("backburner:failed", 0, -1), timeout=20)
        record = client.hgetall(f"backburner:failed:{member}")
        assert (record["reason"], record["detail"]) == ("unknown task", "unheard.of")
        with pytest.raises(celery.exceptions.NotRegistered):
            unheard.get(timeout=10)
