"""An application served in a process of its own, and load on it by wrk.

The server is uvicorn (uvloop, httptools) or granian, with one worker; the load comes from one thread of wrk over many
connections, as long as a burst lasts. Beside what clients see, a burst has the processor time of the serving process,
which other work on the machine disturbs less.
"""

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil
from served import HOST

from backburner.ports import free_ports

HERE = Path(__file__).parent
CONNECTIONS = 64
BURST = 1
"""Seconds of load at a time."""
_START = 300.0
"""Seconds that a start may take; filling 100,000 URLs takes half a minute where nothing else runs."""
_SERVERS = {
    "uvicorn": "uvicorn --factory served:application --port {port} --loop uvloop --http httptools --no-access-log "
    "--log-level warning --lifespan on",
    "granian": "granian --factory served:application --port {port} --interface asgi --workers 1 --loop uvloop "
    "--no-access-log --log-level warning",
}
SERVERS = tuple(_SERVERS)


@dataclass(frozen=True)
class Burst:
    """Seconds for each request: from one to the next, of the slowest in a hundred, and of the server's processor."""

    each: float
    p99: float
    processor: float


class Served:
    """A contender of `served` on one of `SERVERS`, until `stop`."""

    def __init__(self, contender: str, server: str, url: str, **environment: str) -> None:
        self.contender = contender
        self.port = next(free_ports(None))
        environment = {**os.environ, "BENCH_CONTENDER": contender, "BENCH_URL": url, **environment}
        command = [sys.executable, "-m", *_SERVERS[server].format(port=self.port).split()]
        self._process = subprocess.Popen(command, env=environment, cwd=HERE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait(self, path: str = "/calls") -> Self:
        """Return when it answers."""
        until = time.monotonic() + _START
        while time.monotonic() < until and self._process.poll() is None:
            try:
                self.get(path)
            except OSError:
                time.sleep(0.05)
            else:
                return self
        self.stop()
        raise SystemExit(f"{self.contender} did not start; what it printed is above")

    def get(self, path: str, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
        """One response, and its body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", path, headers={"Host": HOST, **headers})
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response, content

    @property
    def calls(self) -> int:
        """How often the route was called."""
        return int(self.get("/calls")[1])

    def burst(self, path: str, headers: dict[str, str] | None = None, *, urls: int = 1) -> Burst:
        """Load with one path, or with so many: the path and a number."""
        command = [_wrk(), "--threads=1", f"--connections={CONNECTIONS}", f"--duration={BURST}s", "--latency"]
        for name, value in {"Host": HOST, **(headers or {})}.items():
            command += ["--header", f"{name}: {value}"]
        command += ["--script", str(HERE / "wrk.lua"), f"http://127.0.0.1:{self.port}{path}", "--", str(urls)]
        before = self._processor()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        spent = self._processor() - before
        told = json.loads(done.stdout.splitlines()[-1])
        requests = told["requests"]
        if told["failed"] or not requests:
            raise SystemExit(f"{self.contender}: {told['failed']} of {requests} requests failed")
        return Burst(told["duration"] / requests / 1e6, told["p99"] / 1e6, spent / requests)

    def stop(self) -> None:
        """End it; to call this twice does no harm."""
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _processor(self) -> float:
        serving = psutil.Process(self._process.pid)
        times = [process.cpu_times() for process in (serving, *serving.children(recursive=True))]
        return sum(time.user + time.system for time in times)


def _wrk() -> str:
    found = shutil.which("wrk")
    if found is None:
        raise SystemExit("These benchmarks need wrk. Debian, Ubuntu: apt-get install wrk. macOS: brew install wrk")
    return found
