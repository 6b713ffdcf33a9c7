"""Workers by the dozen: a process that has imported all that a worker needs forks one whenever it is told.

A worker started by its command line takes two seconds of a processor to import things, and most of them would be killed
before they had done anything. What a fork of this becomes is the same worker. When its parent is gone, it ends and
takes all workers along.
"""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tests.processes import ROOT, environment

PROGRAMS = Path(__file__).parent.parent / "programs"


class Nursery:
    """Where workers come from. `variables` are their environment's."""

    def __init__(self, pool: str, log: Path, variables: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", "tests.faults.chaos.nursery", "celery", "worker", f"--pool={pool}"]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment({**variables, "PYTHONPATH": str(PROGRAMS)}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                bufsize=1,
                start_new_session=True,
            )
        assert self._answer() == "ready"

    def fork(self, name: str, log: Path, arguments: str) -> int:
        """A worker with these arguments of its command line, in a process group of its own. Gives its id."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name} {shlex.quote(str(log))} {arguments}\n")
        return int(self._answer())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def main() -> None:
    import celery

    celery.maybe_patch_concurrency()  # before anything else is imported, as the command celery does

    import celery.apps.worker
    import celery.bin.celery  # for the worker's sake, as those below
    import celery.concurrency.prefork
    import celery.worker.consumer
    import celery.worker.strategy
    from ledger import app  # type: ignore[import-not-found]  # in PROGRAMS

    app.finalize()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the dead
    forked = []
    print("ready", flush=True)
    while line := sys.stdin.readline():
        name, log, *arguments = shlex.split(line)
        pid = os.fork()
        if pid == 0:
            _become(name, log, app, arguments)
        forked.append(pid)
        print(pid, flush=True)
    for pid in forked:
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _become(name: str, log: str, app: object, arguments: list[str]) -> None:
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.environ["WORKER"] = name
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        app.worker_main(["worker", *arguments])  # type: ignore[attr-defined]  # a Celery
        status = 0
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
