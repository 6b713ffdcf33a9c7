"""Programs that tests start as a user would: by their command line, in their folder, with their output kept.

Stopping takes everything along that the program started. Nothing here knows what the programs do.
"""

import os
import random
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

ROOT = Path(__file__).parent.parent

_PATIENCE = 10

# Below those that systems give to outgoing connections: one of these could take a port before its server does.
_PORTS = cycle(random.sample(range(20_000, 32_000), 12_000))


@dataclass(frozen=True)
class Program:
    """A program that was started; `running` makes and stops it."""

    command: str
    process: subprocess.Popen[bytes]
    log: IO[bytes]

    @property
    def output(self) -> str:
        """What the program has written so far, standard error included."""
        size = os.fstat(self.log.fileno()).st_size
        return os.pread(self.log.fileno(), size, 0).decode("utf-8", "replace")

    def says(self, text: str) -> bool:
        """Whether `text` has been written. Fails at once if the program ended without writing it."""
        if text in self.output:
            return True
        assert self.process.poll() is None, f"{self.command} ended with status {self.process.returncode}"
        return False

    def type(self, text: str) -> None:
        """Write to the program's standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def stop(self) -> int:
        """Ask the program to end; after ten seconds, end it. Nothing that it started stays."""
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_PATIENCE)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait(_PATIENCE)


@contextmanager
def running(command: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> Iterator[Program]:
    """Run a command of the environment that runs the tests, with `env` added to its variables."""
    # The output goes to a file, for a pipe that nobody reads would stop the program when it is full.
    with TemporaryFile() as log:
        process = subprocess.Popen(
            shlex.split(command),
            cwd=cwd,
            env=environment(env or {}),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with process:
            program = Program(command, process, log)
            try:
                yield program
            except BaseException as error:
                error.add_note(f"$ {command}\n{program.output[-6000:]}")
                raise
            finally:
                program.stop()


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Ours and `variables`, with the commands of the environment that runs the tests found first."""
    return {**os.environ, "PATH": search_path(), "PYTHONUNBUFFERED": "1", **variables}


def search_path() -> str:
    """PATH, with the commands of the environment that runs the tests found first."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, and that no other caller of this process gets."""
    while True:
        port = next(_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
