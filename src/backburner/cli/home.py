"""The directory ``.backburner/`` of a project: data of the embedded server, mails, beat's schedule, and the lock of the
run.

It is for one machine and one person, so it tells git to ignore it.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backburner.cli.family import Family
from backburner.errors import ConfigError
from backburner.redis.embedded import EmbeddedServer

_KEPT = {".gitignore", "dev.lock", "check.lock", "check"}


class Home:
    """The directory of one `backburner dev`; only one at a time may use it."""

    def __init__(self, directory: Path, lock: Path) -> None:
        self.directory = directory
        self.family = Family.of_directory(directory)
        self._lock = lock

    @classmethod
    def of_project(cls, project: Path) -> "Home":
        """The home of ``backburner dev``."""
        home = project / ".backburner"
        return cls(home, home / "dev.lock")

    @classmethod
    def of_check(cls, project: Path) -> "Home":
        """The home of ``backburner dev --check``, which may run beside a ``backburner dev``."""
        home = project / ".backburner"
        return cls(home / "check", home / "check.lock")

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep others out. The system releases the lock when this process ends, however that happens.

        Raises:
            ConfigError: another process uses it, or the directory cannot be written to.
        """
        import fcntl  # does not exist on Windows

        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock.with_name(".gitignore").write_text("*\n")
            lock = self._lock.open("a+")
        except OSError as error:
            raise ConfigError(f"{self.directory} cannot be used: {error.strerror}") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                pid = lock.read().strip()
                raise ConfigError(
                    f"`backburner dev` runs in this project already, as process {pid}: "
                    f"stop it with Ctrl-C in its terminal, or with: kill {pid}"
                ) from None
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield

    def server(self, port: int | None) -> EmbeddedServer:
        """The embedded server that keeps its data here."""
        return EmbeddedServer(self.directory / "valkey", port)

    def empty(self) -> None:
        """Remove everything. A server that was left running is stopped first."""
        if (self.directory / "valkey" / "server.json").exists():
            self.server(None).start().stop()
        for entry in self.directory.iterdir():
            if entry.name in _KEPT:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
