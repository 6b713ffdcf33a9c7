"""A fleet moves from stock Celery to ours and back, as docs/migrating.md says: every job is counted, none is lost."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from itertools import cycle
from pathlib import Path
from typing import Any

import celery
import pytest
import redis

from backburner.queue import Celery
from backburner.redis.embedded import EmbeddedServer
from backburner.settings import Settings
from tests.conftest import Eventually
from tests.faults.ledger import Ledger
from tests.pages.page import blocks
from tests.processes import ROOT, Program, running
from tests.queue.conftest import close

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

PROGRAMS = ROOT / "tests" / "faults" / "programs"
PAGE = ROOT / "docs" / "migrating.md"

Start = Callable[..., AbstractContextManager[Program]]


@pytest.fixture
def server(own_server: EmbeddedServer) -> EmbeddedServer:
    """On the one that tests share there may be a worker that they share, which would take these jobs too."""
    return own_server


@pytest.fixture
def page(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the page defines."""
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    names: dict[str, Any] = {}
    for block in blocks(PAGE):
        if "def " in block.code:
            exec(block.code, names)
    return names


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "ledger")
    yield ledger
    ledger.close()


@pytest.fixture
def start(url: str, ledger: Ledger) -> Start:
    """Start a worker, stock Celery's or ours."""

    def start(name: str, *, stock: bool) -> AbstractContextManager[Program]:
        command = (
            f"celery -A ledger worker --loglevel=info --without-mingle --without-gossip -P threads -c 2 -n {name}@tests"
        )
        variables = {"REDIS_URL": url, "PYTHONPATH": "", "LEDGER": str(ledger.file), "WORKER": name}
        # An hour is stock Celery's own: what a killed worker had comes back by the page's procedure, or not at all.
        variables |= {"STOCK": "1", "LEASE": "3600"} if stock else {"LEASE": "2"}
        return running(command, PROGRAMS, variables)

    return start


@pytest.fixture
def enqueue(url: str, ledger: Ledger) -> Iterator[Callable[..., None]]:
    """Enqueue jobs with a stock producer and with ours, by turns."""
    ours = Celery("ours", settings=Settings(redis_url=url, celery_publish_timeout=5), set_as_current=False)
    stock = celery.Celery("stock", broker=url, set_as_current=False, task_ignore_result=True)
    turns = cycle([ours, stock])

    def enqueue(count: int, **options: Any) -> None:
        for _ in range(count):
            next(turns).send_task("work", (ledger.entry(), 0.01), **options)

    yield enqueue
    stock.close()
    close(ours)


def test_a_fleet_moves_to_backburner_and_back_and_no_job_is_lost_nor_done_twice(
    url: str, start: Start, enqueue: Any, ledger: Ledger, page: dict[str, Any], tmp_path: Path, eventually: Eventually
) -> None:
    released = tmp_path / "released"
    held = ledger.entry()
    done = lambda: not ledger.unfinished()  # noqa: E731  # to be short
    with ExitStack() as stack, redis.Redis.from_url(url) as client:
        enter = stack.enter_context
        old, killed = enter(start("old", stock=True)), enter(start("killed", stock=True))
        enqueue(20)
        eventually(lambda: ledger.unfinished() == [held], timeout=30)

        # To Backburner. One of the old workers dies over a job, and only the page's procedure gives that back.
        with celery.Celery("once", broker=url, set_as_current=False) as once:
            once.send_task("hold", (held, str(released)), ignore_result=True)
        eventually(lambda: ledger.starts(held) == 1)
        unlucky, other = (old, killed) if ledger.runs[held][0].worker == "old" else (killed, old)
        os.killpg(unlucky.process.pid, signal.SIGKILL)
        unlucky.process.wait()
        enqueue(4, countdown=8)  # in the memory of the other one, where ours do not run yet
        eventually(lambda: client.zcard("unacked_index") == 5)
        new = enter(start("new", stock=False))
        eventually(lambda: new.says("ready."), timeout=30)
        enqueue(40)
        enqueue(4, countdown=1)
        assert other.stop() == 0
        enqueue(20)
        eventually(lambda: client.zcard("unacked_index") == 1)
        assert page["restore_unacked"](url) == 1
        released.touch()
        eventually(done, timeout=30)
        assert not client.exists("unacked", "unacked_index")

        # And back. What waits for its time on the server is handed over.
        enqueue(4, countdown=6)
        eventually(lambda: client.zcard("backburner:delayed") == 4)
        last = enter(start("last", stock=True))
        eventually(lambda: last.says("ready."), timeout=30)
        enqueue(40)
        assert new.stop() == 0
        assert not list(client.scan_iter("backburner:leased:*"))
        page["hand_over_delayed"](url)
        enqueue(20)
        eventually(done, timeout=30)
        assert not client.exists("backburner:delayed", "backburner:failed")
    assert {job: ledger.starts(job) for job in ledger.jobs} == {job: 1 + (job == held) for job in ledger.jobs}
