"""Workers that stand still: with long jobs, stopped by a signal, hung, or told to end; or whose clocks are wrong."""

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu.asynchronous.hub import Hub

from backburner.queue import Celery
from backburner.queue.shutdown import OnHub
from backburner.redis.embedded import EmbeddedServer
from tests.conftest import Eventually
from tests.faults.ledger import Ledger
from tests.faults.test_workers import LEASE, app, kill, ledger, server, worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

__all__ = ["app", "ledger", "server", "worker"]  # fixtures

POOLS = pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])


def ended(ledger: Ledger, *jobs: str) -> bool:
    return not {*jobs} & {*ledger.unfinished()}


@POOLS
def test_a_job_that_runs_for_many_leases_is_delivered_once(
    app: Celery, ledger: Ledger, worker: Any, pool: str, eventually: Eventually
) -> None:
    with worker(f"-P {pool} -c 1 -n one@tests") as one, worker(f"-P {pool} -c 1 -n two@tests") as two:
        eventually(lambda: one.says("ready.") and two.says("ready."), timeout=30)
        jobs = [ledger.entry() for _ in range(3)]
        for job in jobs:
            app.send_task("work", (job, 3.5 * LEASE))
        eventually(lambda: ended(ledger, *jobs), timeout=40)
    assert [ledger.starts(job) for job in jobs] == [1, 1, 1]


def test_a_greenlet_that_computes_for_many_leases_keeps_them(
    app: Celery, ledger: Ledger, worker: Any, eventually: Eventually
) -> None:
    with worker("-P gevent -c 4 -n one@tests") as one, worker("-P gevent -c 4 -n two@tests") as two:
        eventually(lambda: one.says("ready.") and two.says("ready."), timeout=30)
        burning, job = ledger.entry(), ledger.entry()
        app.send_task("burn", (burning, 3 * LEASE))
        app.send_task("work", (job, 3 * LEASE))
        eventually(lambda: ended(ledger, burning, job), timeout=40)
    assert [ledger.starts(each) for each in (burning, job)] == [1, 1]


@POOLS
def test_a_worker_that_was_stopped_too_long_runs_nothing_that_others_have_and_goes_on(
    app: Celery, server: EmbeddedServer, ledger: Ledger, worker: Any, pool: str, tmp_path: Path, eventually: Eventually
) -> None:
    released = tmp_path / "released"
    with worker(f"-P {pool} -c 1 -n one@tests") as one, redis.Redis.from_url(server.url) as client:
        eventually(lambda: one.says("ready."), timeout=30)
        jobs = [ledger.entry() for _ in range(4)]
        app.send_task("hold", (jobs[0], str(released)))
        for job in jobs[1:]:
            app.send_task("work", (job, 0))
        eventually(lambda: ledger.starts(jobs[0]))
        if pool != "solo":
            eventually(lambda: client.llen("celery") == 0)
        with worker(f"-P {pool} -c 1 -n two@tests") as two:
            eventually(lambda: two.says("ready."), timeout=30)
            os.killpg(one.process.pid, signal.SIGSTOP)
            eventually(lambda: ledger.starts(jobs[0]) == 2, timeout=LEASE + 15)
            os.killpg(one.process.pid, signal.SIGCONT)
            released.touch()
            eventually(lambda: ended(ledger, *jobs))
            eventually(lambda: one.says("lost its lease"))
            eventually(lambda: client.zcard("backburner:consumers") == 2)
            eventually(lambda: not list(client.scan_iter("backburner:leased:*")))
            kill(two)
        last = ledger.entry()
        app.send_task("work", (last, 0))
        eventually(lambda: ended(ledger, last), timeout=LEASE + 10)
    assert [ledger.starts(job) for job in [*jobs, last]] == [2, 1, 1, 1, 1]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_whose_main_thread_hangs_counts_as_dead_until_it_moves_again(
    app: Celery, server: EmbeddedServer, ledger: Ledger, worker: Any, pool: str, tmp_path: Path, eventually: Eventually
) -> None:
    hangs = tmp_path / "hangs"
    hangs.touch()
    with worker(f"-P {pool} -c 1 -n one@tests", WATCHDOG="1", HANGS=str(hangs)) as one:
        eventually(lambda: one.says("ready."), timeout=30)
        jobs = [ledger.entry() for _ in range(4)]
        for job in jobs:
            app.send_task("work", (job, 1))
        eventually(lambda: ledger.starts(jobs[0]))
        # In the midst of a line of the log it would keep that from the thread that is to say that it hangs.
        eventually(lambda: one.output.count(" received\n") == len(jobs))
        one.process.send_signal(signal.SIGUSR2)
        eventually(hangs.read_text)
        with worker(f"-P {pool} -c 1 -n two@tests") as two:
            eventually(lambda: one.says("the event loop has not run"))
            eventually(lambda: ended(ledger, *jobs), timeout=LEASE + 30)
            hangs.unlink()
            eventually(lambda: one.says("lost its lease"))
            kill(two)
        last = ledger.entry()
        app.send_task("work", (last, 0))
        eventually(lambda: ended(ledger, last), timeout=LEASE + 10)
    # The pool of threads does not hang with the main thread, and may well end what it has.
    assert [ledger.starts(job) for job in [jobs[-1], last]] == [1, 1]


@POOLS
def test_a_worker_told_to_stop_gives_back_what_it_has_not_begun_while_it_finishes_the_rest(
    app: Celery, ledger: Ledger, worker: Any, pool: str, tmp_path: Path, eventually: Eventually
) -> None:
    released = tmp_path / "released"
    with worker(f"-P {pool} -c 1 -n one@tests", PREFETCH="8") as one:
        eventually(lambda: one.says("ready."), timeout=30)
        jobs = [ledger.entry() for _ in range(8)]
        held = ledger.entry()
        with app.producer_pool.acquire(block=True) as producer:
            # In one batch, so that all are claimed at once, whatever the pool does meanwhile.
            app.send_task("hold", (held, str(released)), producer=producer)
            for job in jobs:
                app.send_task("work", (job, 0), producer=producer)
        eventually(lambda: ledger.starts(held))
        with worker(f"-P {pool} -c 1 -n two@tests") as two:
            eventually(lambda: two.says("ready."), timeout=30)
            told = time.monotonic()
            one.process.terminate()
            eventually(lambda: ended(ledger, *jobs))
            last = max(run.end or told for job in jobs for run in ledger.runs[job])
            assert last - told < 2, "within a second, were the machine our own"
            assert not ended(ledger, held)
            released.touch()
            eventually(lambda: ended(ledger, held))
            assert one.process.wait(10) == 0
    assert [ledger.starts(job) for job in [held, *jobs]] == [1] * 9


@POOLS
def test_a_soft_shutdown_lets_jobs_end_and_returns_those_that_do_not(
    app: Celery, ledger: Ledger, worker: Any, pool: str, tmp_path: Path, eventually: Eventually
) -> None:
    released = tmp_path / "released"
    with worker(f"-P {pool} -c 2 -n one@tests", SOFT="2", LEASE="30") as one:
        eventually(lambda: one.says("ready."), timeout=30)
        short, long = ledger.entry(), ledger.entry()
        app.send_task("work", (short, 0.5))
        if pool != "solo":
            app.send_task("hold", (long, str(released)))
        eventually(lambda: ledger.starts(short) and (pool == "solo" or ledger.starts(long)))
        one.process.send_signal(signal.SIGQUIT)
        eventually(lambda: ended(ledger, short))
        with worker(f"-P {pool} -c 2 -n two@tests", LEASE="30") as two:
            eventually(lambda: two.says("ready."), timeout=30)
            if pool == "prefork":  # others cannot end a job
                eventually(lambda: ledger.starts(long) == 2)
            elif pool == "threads":
                eventually(lambda: one.says("nobody can end"))
            released.touch()
            one.process.wait(15)
            last = ledger.entry()
            app.send_task("work", (last, 0))
            eventually(lambda: ended(ledger, short, last, *([] if pool == "solo" else [long])))
    runs = [ledger.starts(job) for job in (short, long, last)]
    assert runs == {"prefork": [1, 2, 1], "threads": [1, 1, 1], "solo": [1, 0, 1]}[pool]


@POOLS
def test_what_ends_in_a_soft_shutdown_is_done_with_at_once(
    app: Celery, server: EmbeddedServer, ledger: Ledger, worker: Any, pool: str, eventually: Eventually
) -> None:
    job, waiting = ledger.entry(), ledger.entry()
    with worker(f"-P {pool} -c 1", LEASE="30", SOFT="60") as one, redis.Redis.from_url(server.url) as client:
        eventually(lambda: one.says("ready."), timeout=30)
        app.send_task("work", (job, 1))
        app.send_task("work", (waiting, 0))
        eventually(lambda: ledger.starts(job))
        one.process.send_signal(signal.SIGQUIT)
        eventually(lambda: ended(ledger, job) and not list(client.scan_iter("backburner:leased:*")))
        one.process.wait(20)
    assert [ledger.starts(each) for each in (job, waiting)] == [1, 0]


def test_a_shutdown_that_waits_for_its_turn_goes_on_if_the_loop_loses_its_connection() -> None:
    hub, handled = Hub(), []

    def worker_Cold(*_: Any) -> None:  # Celery names it so
        handled.append(hub.poller)

    def interrupted() -> None:
        signal.raise_signal(signal.SIGQUIT)
        assert not handled
        raise ConnectionError

    before = signal.signal(signal.SIGQUIT, worker_Cold)
    try:
        OnHub(hub).install()
        hub.propagate_errors = (ConnectionError,)
        hub.call_soon(interrupted)
        with pytest.raises(ConnectionError):
            next(hub.create_loop())
        hub.reset()  # as Celery does then
    finally:
        signal.signal(signal.SIGQUIT, before)
        hub.close()
    assert len(handled) == 1


def test_threads_end_their_jobs_whatever_the_signal_that_ends_the_worker_has_interrupted(
    app: Celery, ledger: Ledger, worker: Any, eventually: Eventually
) -> None:
    first, second = ledger.entry(), ledger.entry()
    with worker("-P threads -c 2", "interrupted", LEASE="30", SOFT="5") as one:
        app.send_task("work", (first, 1))
        eventually(lambda: ledger.starts(first), timeout=30)
        app.send_task("work", (second, 0))
        one.process.wait(20)
        assert ended(ledger, first)
    with worker("-P threads -c 2", LEASE="30"):
        last = ledger.entry()
        app.send_task("work", (last, 0))
        eventually(lambda: ended(ledger, second, last), timeout=30)
    assert [ledger.starts(job) for job in (first, second, last)] == [1, 1, 1]


def test_workers_whose_clocks_are_an_hour_off_keep_leases_and_times(
    app: Celery, ledger: Ledger, worker: Any, tmp_path: Path, eventually: Eventually
) -> None:
    def moments(job: str) -> list[float]:
        return [run.start for run in ledger.runs[job]]

    with ExitStack() as stack:
        ahead, behind = (
            stack.enter_context(worker(f"-P threads -c 3 -n {hours}@tests", "clock_off", HOURS=hours))
            for hours in ("1", "-1")
        )
        eventually(lambda: ahead.says("ready.") and behind.says("ready."), timeout=30)
        live, later, retried, held = (ledger.entry() for _ in range(4))
        sent = time.monotonic()
        app.send_task("work", (live, 3 * LEASE))
        app.send_task("work", (later, 0), countdown=1)
        app.send_task("again", (retried, 1))
        eventually(lambda: ended(ledger, live, later, retried), timeout=20)
        assert 0.9 < moments(later)[0] - sent < 5
        first, second = moments(retried)
        assert 0.9 < second - first < 5
        app.send_task("hold", (held, str(tmp_path / "released")))
        eventually(lambda: ledger.starts(held))
        kill(next(each for each in (ahead, behind) if each.process.pid == ledger.runs[held][0].pid))
        eventually(lambda: ledger.starts(held) == 2, timeout=LEASE + 10)
        (tmp_path / "released").touch()
        eventually(lambda: ended(ledger, held))
    assert [ledger.starts(job) for job in (live, later, retried)] == [1, 1, 2]
