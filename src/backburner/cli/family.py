"""The processes that a `backburner dev` started, and all their descendants.

They are recognised by a mark in their environment, which every descendant inherits, whatever session or process group
it moves to. A process id may be reused, and a parent may die before its child; a mark stays.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_VARIABLE = "BACKBURNER_DEV"
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Family:
    """All processes whose mark begins with `mark`: of a directory, of one run there, or of one program of a run."""

    mark: str

    @classmethod
    def of_directory(cls, directory: Path) -> "Family":
        """Everything ever started for `directory` that is still running."""
        return cls(f"{directory.resolve()}|")

    def of_run(self) -> "Family":
        """The processes that this one starts."""
        return Family(f"{self.mark}{os.getpid()}|")

    def of_program(self, name: str) -> "Family":
        """The processes of one program."""
        return Family(f"{self.mark}{name}|")

    def marked(self, environment: Mapping[str, str]) -> dict[str, str]:
        """The environment for a new member."""
        # setproctitle would write its titles over the environment, and so over the mark.
        return {**environment, _VARIABLE: self.mark, "SPT_NOENV": "1"}

    def members(self) -> list[psutil.Process]:
        """Those that are running now."""
        return [process for process in psutil.process_iter() if _mark_of(process).startswith(self.mark)]

    def end(self, patience: float) -> int:
        """Ask the topmost ones to end, which end their children; after `patience` seconds kill all. Returns how
        many."""
        members = self.members()
        if patience > 0:
            for process in _heads(members):
                with suppress(psutil.NoSuchProcess):
                    process.terminate()
            psutil.wait_procs(members, timeout=patience)
        for _ in range(_ROUNDS):  # one that is being killed may have just started another
            left = self.members()
            if not left:
                break
            _kill(left)
            psutil.wait_procs(left, timeout=1)
        return len(members)

    def kill(self) -> None:
        """Kill all, without waiting: for a caller that waits for its children itself."""
        _kill(self.members())


def _heads(members: list[psutil.Process]) -> Iterator[psutil.Process]:
    ids = {process.pid for process in members}
    for process in members:
        with suppress(psutil.NoSuchProcess):
            if process.ppid() not in ids:
                yield process


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _mark_of(process: psutil.Process) -> str:
    try:
        return process.environ().get(_VARIABLE, "")
    except (psutil.Error, OSError):
        return ""  # gone, or somebody else's
