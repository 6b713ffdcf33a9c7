"""Identifying a process so that another process can find it again later: by its id and the time it started.

The id alone is not enough, since the system reuses it once the process is gone. Needs psutil, which comes with the
``dev`` extra. Nothing here starts a process.
"""

import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from backburner.extras import extra

with extra("dev", needed_by="backburner.process"):
    import psutil

_TOLERANCE = 2.0  # seconds; the kernel gives the time of the boot in whole seconds, and rounds it anew each time

_DYING = 3.0  # seconds; SIGKILL works at once, unless the process hangs in the kernel


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity of one process; `find` returns the process, or ``None`` if it has ended."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> Self:
        """Name a running process.

        Raises:
            ProcessLookupError: there is none with this id.
        """
        try:
            return cls(pid, _start_of(psutil.Process(pid)))
        except psutil.NoSuchProcess:
            raise ProcessLookupError(f"no process has the id {pid}") from None

    def find(self) -> psutil.Process | None:
        """The process, if it still runs: not ended, not a zombie, not another one that was given its id."""
        try:
            process = psutil.Process(self.pid)
            same = abs(_start_of(process) - self.started) < _TOLERANCE
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


def _start_of(process: psutil.Process) -> float:
    """When it started; on Linux in seconds since the boot, which setting the clock does not change."""
    started: float = process.create_time()
    return started - psutil.boot_time() if sys.platform == "linux" else started


def end(process: psutil.Process, patience: float) -> None:
    """Ask a process to end; after `patience` seconds, kill it. Returns when it is gone."""
    try:
        if patience > 0:
            process.terminate()
            process.wait(patience)
    except psutil.TimeoutExpired:
        pass  # asked in vain
    except psutil.NoSuchProcess:
        return
    with suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):  # a zombie whose parent does not care stays
        process.kill()
        process.wait(_DYING)
