"""One pool, one server, some workers, a stream of jobs, and something going wrong at any moment.

Workers reach the server by way of a proxy; who enqueues reaches it directly, and only what the server has confirmed is
counted. When the time is over everybody is left in peace, and what is not done then is lost.
"""

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from math import inf
from pathlib import Path
from typing import Any

import celery
import redis
from kombu.exceptions import OperationalError

from backburner.queue import Celery
from backburner.redis.embedded import EmbeddedServer
from backburner.settings import Settings
from backburner.testing import FaultProxy
from tests.faults.chaos.account import Account, History, account
from tests.faults.chaos.fleet import Fleet
from tests.faults.chaos.nursery import Nursery
from tests.faults.ledger import Ledger

LEASE = 2.0
PEACE = 20.0
"""Seconds after the last fault in which everything is to be done."""
_BACKLOG = 40
_LONG = 2
"""Jobs in the backlog that take longer than a lease: as many as leave workers of one job each free for what comes back,
or how long these are busy would be measured, and not the recovery."""
_WORKERS = 4
_TICK = 0.02
_RECONNECTED = 2.5
"""Seconds until whoever has lost the server is back: Celery waits for two before it tries again."""
_OPTIONS = {"asyncio": "-c 20", "gevent": "-c 20", "solo": ""}


class Trial:
    """A pool's trial. Everything it leaves is in `folder`."""

    def __init__(self, pool: str, folder: Path, *, stock: bool = False) -> None:
        self.pool = pool
        self.history = History()
        self._stack = ExitStack()
        enter = self._stack.enter_context
        folder.mkdir(parents=True)
        self.server = enter(EmbeddedServer(folder / "server"))
        self._durable()
        self.proxy = enter(FaultProxy("127.0.0.1", self.server.port))
        self.ledger = Ledger(folder / "ledger")
        self._stack.callback(self.ledger.close)
        variables = {"REDIS_URL": self.proxy.url, "LEDGER": str(self.ledger.file), "LEASE": str(LEASE)}
        # What waits in a worker that is killed waits for a second lease; that would be measured as one long recovery.
        variables["PREFETCH"] = "1"
        nursery = enter(Nursery(pool, folder / "workers.log", variables | ({"STOCK": "1"} if stock else {})))
        options = f"--pool={pool} {_OPTIONS.get(pool, '-c 2')}"
        self.fleet = Fleet(nursery, folder, options, _WORKERS, self.ledger, self.history, stock=stock)
        self._app = _stock(self.server.url) if stock else _ours(self.server.url)
        self._stack.callback(self._app.close)
        self._task = "awork" if pool == "asyncio" else "work"
        self._long: set[str] = set()
        self.away_at = -inf
        """When the server was last away, or silent."""
        self._later: list[tuple[float, Callable[[], None]]] = []

    def run(self, seconds: float, faults: "dict[Callable[[Trial], None], int]", pause: float) -> Account:
        """Let faults happen for that long, one about every `pause` seconds, each as often as its weight says."""
        with self._stack:
            ends = time.monotonic() + seconds
            next_fault = 0.0
            while time.monotonic() < ends:
                self._enqueue()
                self._act()
                if time.monotonic() > next_fault:
                    [fault] = random.choices(list(faults), list(faults.values()))
                    self.history.log.append((time.monotonic(), fault.__name__))
                    fault(self)
                    next_fault = time.monotonic() + random.uniform(0, 2 * pause)
                time.sleep(_TICK)
            ends = time.monotonic() + PEACE
            while (self.ledger.unfinished() or self._later) and time.monotonic() < ends:
                self._act()
                time.sleep(_TICK)
            left, jobs = self.ledger.unfinished(), len(self.ledger.jobs)
            return account(self.pool, self.history, jobs, left, self.ledger.runs)

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something then; the trial goes on meanwhile."""
        self._later.append((time.monotonic() + seconds, action))

    def out_of_reach(self, seconds: float) -> None:
        """From now on some may not be able to tell the server anything, for so long."""
        now = time.monotonic()
        self.history.outages.append((now, now + seconds))

    def client(self) -> "redis.Redis":
        """To the server itself."""
        return redis.Redis.from_url(self.server.url)

    def restart(self, away: float) -> None:
        """Kill the server, and start it again after so many seconds, with all that it has confirmed."""
        began = time.monotonic()
        os.kill(self.server.pid, signal.SIGKILL)
        time.sleep(away)
        self.server.restart()
        self._durable()
        self.history.outages.append((began, time.monotonic() + _RECONNECTED))

    def _durable(self) -> None:
        with self.client() as client:
            client.config_set("appendfsync", "always")

    def _act(self) -> None:
        now = time.monotonic()
        self.fleet.replace_the_ended()
        due = [action for at, action in self._later if at <= now]
        self._later = [(at, action) for at, action in self._later if at > now]
        for action in due:
            action()

    def _enqueue(self) -> None:
        left = self.ledger.unfinished()
        self._long.intersection_update(left)
        for _ in range(_BACKLOG - len(left)):
            job, seconds = self.ledger.entry(), random.choice([0, 0.01, 0.05])
            if len(self._long) < _LONG:
                self._long.add(job)
                seconds = 1.5 * LEASE
            try:
                self._app.send_task(self._task, (job, seconds), retry=False)
            except (OperationalError, redis.RedisError, OSError):
                self.ledger.forget(job)  # nobody has confirmed it


def _ours(url: str) -> Celery:
    return Celery("chaos", settings=Settings(redis_url=url), set_as_current=False)


def _stock(url: str) -> Any:
    return celery.Celery("chaos", broker=url, set_as_current=False, task_ignore_result=True)
