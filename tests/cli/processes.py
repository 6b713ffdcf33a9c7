"""A `backburner dev` in a process of its own, and ways to look at what it started."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import psutil
import pytest


def processes_of(project: Path) -> list[psutil.Process]:
    """Everything that was started for the project, known by where it works or by its data."""
    home = str(project)
    found = []
    for process in psutil.process_iter():
        try:
            known = process.cwd().startswith(home) or home in process.environ().get("BACKBURNER_DEV", "")
            alive = process.status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, OSError):
            continue  # gone, or somebody else's
        if known and alive and process.pid != os.getpid():
            found.append(process)
    return found


class Dev:
    """A running `backburner dev`, its output read as it comes."""

    def __init__(self, project: Path, *arguments: str, **environment: str) -> None:
        self.project = project
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from backburner.cli import main; main()", "dev", *arguments],
            cwd=project,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout:
            self.lines.extend(line.rstrip() for line in iter(self._take, ""))

    def _take(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, pattern: str, timeout: float = 30) -> re.Match[str]:
        """Wait until the pattern has appeared in the output."""
        deadline = time.monotonic() + timeout
        while not (match := re.search(pattern, self.output)):
            if time.monotonic() > deadline or not self.running:
                pytest.fail(f"{pattern!r} did not appear; the output is:\n{self.output}")
            time.sleep(0.02)
        return match

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def where(self, name: str) -> str:
        """What the screen says about where something is."""
        return self.wait_for(rf"(?m)^  {name} +(\S+)")[1]

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self, timeout: float = 10) -> int:
        """Wait for the end; gives the exit code."""
        code = self._process.wait(timeout)
        self._reader.join(timeout)
        return code

    def stop(self) -> None:
        """Clean up, whatever has happened."""
        if self.running:
            self.signal(signal.SIGTERM)
            self.end()


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as answer:
        content: bytes = answer.read()
        return content
