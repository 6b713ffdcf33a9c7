"""Real servers besides the embedded one, for slow tests: Redis 7 and PostgreSQL, as the machine has them.

Each is started on a free port, in a folder of its own, and is gone after the tests. One that is not installed
skips the test on a developer's machine; in CI (the variable CI is set) it fails it, for there it must be.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import psycopg
import pytest
import redis
from psycopg import sql

from tests.processes import free_port

_DATABASE_NUMBERS = count(1)


def missing(server: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"{server} is not installed, and in CI it must be")
    pytest.skip(f"{server} is not installed")


@contextmanager
def _server(command: Sequence[str], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, **options) as process,
    ):
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)  # PostgreSQL: do not wait for clients; Redis: as SIGTERM
            process.wait(20)


@contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Redis server with these options of its command line, and its files in that folder."""
    program = shutil.which("redis-server") or missing("Redis")
    folder.mkdir(parents=True, exist_ok=True)
    common = ["--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    with _server([program, *options, *common], folder / "log") as process:
        yield process


@pytest.fixture(scope="session")
def redis7(tmp_path_factory: pytest.TempPathFactory, eventually: Any) -> Iterator[str]:
    """The URL of one Redis server for all tests. Take `redis7_url` instead."""
    port = free_port()
    with redis_server(tmp_path_factory.mktemp("redis7"), "--port", str(port)), redis.Redis(port=port) as client:
        eventually(lambda: answers(client), timeout=20)
        if (version := client.info("server")["redis_version"]) < "7":
            pytest.skip(f"Redis {version} is older than 7.0")
        yield f"redis://127.0.0.1:{port}/0"


@pytest.fixture
def redis7_url(redis7: str) -> str:
    """The URL of a Redis server, version 7 or newer, that holds nothing."""
    with redis.Redis.from_url(redis7) as client:
        client.flushall()
    return redis7


def answers(client: Any) -> bool:
    """Whether a server is there and lets us in."""
    try:
        return bool(client.ping())
    except (redis.ConnectionError, redis.TimeoutError):
        return False


@pytest.fixture(scope="session")
def postgres(eventually: Any) -> Iterator[str]:
    """The URL of one PostgreSQL server for all tests. Take `postgres_url` instead."""
    programs = _postgres_programs() or missing("PostgreSQL")
    # It refuses to run as root, and its user may not enter pytest's own directories.
    account: dict[str, Any] = {}
    if os.geteuid() == 0:
        account = {"user": "postgres", "group": "postgres", "extra_groups": []}
    with tempfile.TemporaryDirectory(prefix="backburner-postgres-") as name:
        folder, port = Path(name), free_port()
        if account:
            owner = pwd.getpwnam("postgres")
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        subprocess.run(
            [programs / "initdb", "--pgdata", folder / "data", "--username", "tests", "--auth", "trust"],
            cwd=folder,
            capture_output=True,
            check=True,
            **account,
        )
        options = ["-D", str(folder / "data"), "-h", "127.0.0.1", "-p", str(port), "-k", name, "-F"]
        url = f"postgresql://tests@127.0.0.1:{port}"
        with _server([str(programs / "postgres"), *options], folder / "log", cwd=folder, **account):
            eventually(lambda: _accepts(f"{url}/postgres"), timeout=30)
            yield url


@pytest.fixture
def postgres_url(postgres: str) -> Iterator[str]:
    """The URL of a PostgreSQL database of its own that holds nothing."""
    name = f"test_{next(_DATABASE_NUMBERS)}"
    with psycopg.connect(f"{postgres}/postgres", autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield f"{postgres}/{name}"
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _postgres_programs() -> Path | None:
    # Debian keeps several versions side by side, and none of them on the PATH.
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda home: int(home.parent.name))
    on_path = [Path(found).resolve().parent for found in [shutil.which("initdb")] if found]
    return next((home for home in [*on_path, *reversed(debian)] if (home / "postgres").exists()), None)


def _accepts(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True
