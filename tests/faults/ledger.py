"""What jobs wrote down when they started and when they ended, so that nothing can be lost or doubled unseen.

The other end is ``programs/ledger.py``. One file is enough: each line is one write to its end, which neither a kill nor
another process can tear. Times are monotonic, which all processes of a machine share.
"""

from dataclasses import dataclass
from itertools import count
from pathlib import Path


@dataclass
class Run:
    """One time that a job was started."""

    worker: str
    """The name in the variable WORKER of who ran it."""
    pid: int
    start: float
    end: float | None = None


class Ledger:
    """Jobs by their ids, and their runs."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.jobs: list[str] = []
        """All that shall be done."""
        self.runs: dict[str, list[Run]] = {}
        """By job, in the order in which they started."""
        self.workers: set[str] = set()
        """Who has started any."""
        self._done: set[str] = set()
        self._ids = count()
        file.touch()
        self._book = file.open()

    def entry(self) -> str:
        """The id of a new job."""
        self.jobs.append(str(next(self._ids)))
        return self.jobs[-1]

    def forget(self, job: str) -> None:
        """Whether this one is done does not matter."""
        self.jobs.remove(job)

    def read(self) -> None:
        """Read what was written since the last time."""
        while (line := self._book.readline()).endswith("\n"):
            what, job, worker, pid, moment = line.split()
            self.workers.add(worker)
            runs = self.runs.setdefault(job, [])
            if what == "start":
                runs.append(Run(worker, int(pid), float(moment)))
            else:
                self._done.add(job)
                mine = next(run for run in reversed(runs) if run.pid == int(pid) and run.end is None)
                mine.end = float(moment)
        self._book.seek(self._book.tell() - len(line))  # half of one: its other half is on its way

    def unfinished(self) -> list[str]:
        """Jobs that nobody has done yet."""
        self.read()
        return [job for job in self.jobs if job not in self._done]

    def starts(self, job: str) -> int:
        """How often a job was started."""
        self.read()
        return len(self.runs.get(job, []))

    def close(self) -> None:
        self._book.close()
