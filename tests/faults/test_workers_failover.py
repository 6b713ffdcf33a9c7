"""A worker whose broker is found by way of Sentinels, while the master changes and while it is killed."""

import json
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from backburner.errors import PublishError
from backburner.queue import Celery
from backburner.settings import Settings
from tests.faults.ledger import Ledger
from tests.faults.test_sentinel import PASSWORD, RECOVERY, Watched, watched
from tests.processes import running
from tests.queue.conftest import close

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

PROGRAMS = Path(__file__).parent / "programs"

__all__ = ["watched"]  # a fixture


def test_a_worker_follows_the_master_and_runs_nothing_twice(
    watched: Watched, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    app = Celery("tests", settings=Settings(redis_url=watched.url, celery_publish_timeout=10), set_as_current=False)
    ledger = Ledger(tmp_path / "ledger")
    jobs = [ledger.entry() for _ in range(3)]

    def done(job: str) -> bool:
        return job not in ledger.unfinished()

    def enqueued(job: str) -> bool:
        try:
            app.send_task("work", (job, 0.2))
        except OSError:
            return False
        return True

    command = "celery -A ledger worker -P threads -c 2 --loglevel=info --without-mingle --without-gossip"
    variables = {"REDIS_URL": watched.url, "PYTHONPATH": "", "LEDGER": str(ledger.file), "LEASE": "10"}
    with running(command, PROGRAMS, variables) as worker:
        eventually(lambda: worker.says("ready."), timeout=30)
        eventually(lambda: enqueued(jobs[0]), timeout=RECOVERY)
        eventually(lambda: done(jobs[0]), timeout=10)
        before = watched.master
        eventually(watched.fail_over, timeout=30)
        eventually(lambda: watched.master != before, timeout=RECOVERY)
        eventually(lambda: enqueued(jobs[1]), timeout=RECOVERY)
        eventually(lambda: done(jobs[1]), timeout=RECOVERY)
        before = watched.master
        watched.servers[before].send_signal(signal.SIGKILL)
        eventually(lambda: watched.master != before, timeout=RECOVERY)
        eventually(lambda: enqueued(jobs[2]), timeout=RECOVERY)
        eventually(lambda: done(jobs[2]), timeout=RECOVERY)
    assert [ledger.starts(job) for job in jobs] == [1, 1, 1]
    ledger.close()
    close(app)


def test_a_planned_failover_loses_no_job_that_a_replica_must_have(
    watched: Watched, eventually: Callable[..., Any]
) -> None:
    settings = Settings(redis_url=watched.url, celery_publish_timeout=2, celery_publish_replicas=1)
    app = Celery("tests", settings=settings, set_as_current=False)
    servers = {port: redis.Redis(port=port, password=PASSWORD) for port in watched.ports}
    old, enqueued = servers.pop(watched.master), []
    [new] = servers.values()

    def moved() -> bool:
        try:
            enqueued.append(app.send_task("work").id)
        except PublishError:
            return False
        return bool(old.info("replication")["role"] == "slave")

    eventually(watched.fail_over, timeout=30)
    eventually(moved, timeout=2 * RECOVERY)  # for some seconds, the Sentinel leaves two masters
    waiting = Counter(json.loads(message)["headers"]["id"] for message in new.lrange("celery", 0, -1))
    assert Counter(enqueued) <= waiting
    assert set(waiting.values()) == {1}
    close(app)
    old.close()
    new.close()
