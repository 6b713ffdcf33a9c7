"""Workers that come and go: one is started for each that dies."""

import os
import random
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import psutil

from tests.faults.chaos.account import History
from tests.faults.chaos.nursery import Nursery
from tests.faults.ledger import Ledger

_TOLD = 60
"""Lines of the log of a worker that ended by itself, which it should not."""


@dataclass(frozen=True)
class Worker:
    name: str
    pid: int


class Fleet:
    """`size` workers, from a nursery."""

    def __init__(
        self, nursery: Nursery, folder: Path, options: str, size: int, ledger: Ledger, history: History, *, stock: bool
    ) -> None:
        self.ledger = ledger
        self.history = history
        self._nursery = nursery
        self._folder = folder
        self._options = options
        self._stock = stock
        self._names = count()
        self._looked = time.monotonic()
        self.workers = [self._start() for _ in range(size)]

    def a_busy_one(self) -> Worker | None:
        """Any worker that has begun to work, if there are others who can go on."""
        self.ledger.read()
        busy = [worker for worker in self.workers if worker.name in self.ledger.workers]
        return random.choice(busy) if len(busy) > 1 else None

    def kill(self, worker: Worker) -> None:
        """The whole worker at once, as a machine that is gone."""
        os.killpg(worker.pid, signal.SIGKILL)
        self._died(worker)

    def kill_parent(self, worker: Worker) -> None:
        """What has the connection to the broker, and none of the processes of its pool."""
        os.kill(worker.pid, signal.SIGKILL)
        self._died(worker)

    def kill_child(self, worker: Worker) -> None:
        """A process of its pool, if it has such; else all of it."""
        with suppress(psutil.NoSuchProcess):
            if children := psutil.Process(worker.pid).children():
                child = random.choice(children)
                child.kill()
                self.history.children[child.pid] = time.monotonic()
                self.history.kills += 1
                return
        self.kill(worker)

    def pause(self, worker: Worker) -> None:
        """Stop it for good, as a machine that hangs. It is not replaced before it is killed."""
        self.history.workers[worker.name] = time.monotonic()
        os.killpg(worker.pid, signal.SIGSTOP)
        self.workers.remove(worker)

    def end(self, paused: Worker) -> None:
        """Kill one that was paused."""
        os.killpg(paused.pid, signal.SIGKILL)
        self.history.kills += 1
        self.workers.append(self._start())

    def replace_the_ended(self) -> None:
        """Do what a supervisor does about workers that ended by themselves."""
        for worker in list(self.workers):
            try:
                os.kill(worker.pid, 0)
            except ProcessLookupError:
                self.history.ended += 1
                if not self._stock:
                    self._tell(worker)
                self._replace(worker, self._looked)
        self._looked = time.monotonic()

    def _died(self, worker: Worker) -> None:
        self.history.kills += 1
        self._replace(worker, time.monotonic())

    def _replace(self, worker: Worker, died: float) -> None:
        self.history.workers[worker.name] = died
        self.workers.remove(worker)
        self.workers.append(self._start())

    def _tell(self, ended: Worker) -> None:
        lines = self._log(ended.name).read_text(errors="replace").splitlines()[-_TOLD:]
        print(f"{ended.name} ended by itself. The end of its log:", *lines, sep="\n  ", file=sys.stderr, flush=True)

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _start(self) -> Worker:
        name = f"w{next(self._names)}"
        arguments = f"{self._options} --loglevel=info --without-mingle --without-gossip --hostname={name}@chaos"
        return Worker(name, self._nursery.fork(name, self._log(name), arguments))
