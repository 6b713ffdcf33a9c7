"""A whole bookstore: its own Valkey, a database, a mail server, the API and a worker, each a real process or server.

They live as long as the tests of this folder do; a test that breaks one of them starts its own.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from itertools import count
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from aiosmtpd.controller import Controller

from backburner.redis.embedded import EmbeddedServer

ROOT = Path(__file__).parents[2]
PASSWORD = "correct horse battery staple"

_numbers = count(1)


@dataclass
class Mailbox:
    """What arrived, and whether anything is taken."""

    mails: list[EmailMessage] = field(default_factory=list)
    refuse: str = ""

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        if self.refuse:
            return self.refuse
        self.mails.append(message_from_bytes(envelope.content, policy=policy.default))
        return "250 OK"

    def to(self, address: str) -> list[EmailMessage]:
        return [mail for mail in self.mails if mail["To"] == address]


@dataclass
class Store:
    """A running bookstore, as one of its clients sees it."""

    url: str
    directory: Path
    mailbox: Mailbox

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=10, **options)

    def register(self, client: httpx.Client) -> dict[str, Any]:
        """A new user, not logged in."""
        email = f"reader{next(_numbers)}@example.org"
        answer = client.post("/users", json={"email": email, "name": "Rea Der", "password": PASSWORD})
        assert answer.status_code == 201, answer.text
        return answer.json()

    def log_in(self, client: httpx.Client) -> dict[str, Any]:
        """A new user, logged in by cookie."""
        user = self.register(client)
        answer = client.post("/sessions", json={"email": user["email"], "password": PASSWORD})
        assert answer.status_code == 201, answer.text
        return user


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def environment(directory: Path, redis_url: str, smtp_port: int = 9, **more: str) -> dict[str, str]:
    own = {
        "PYTHONPATH": str(ROOT),
        "REDIS_URL": redis_url,
        "DATABASE_URL": f"sqlite:///{directory}/app.db",
        "UPLOAD_DIR": str(directory / "uploads"),
        "SMTP_URL": f"smtp://127.0.0.1:{smtp_port}",
    }
    return {**os.environ, **own, **more}


def run(directory: Path, env: dict[str, str], *command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=directory, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextlib.contextmanager
def process(directory: Path, env: dict[str, str], name: str, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Something that runs until the end of the block. What it says is in ``{name}.log``."""
    with (directory / f"{name}.log").open("ab") as log:
        running = subprocess.Popen([sys.executable, "-m", *command], cwd=directory, env=env, stdout=log, stderr=log)
        try:
            yield running
        finally:
            running.terminate()
            try:
                running.wait(15)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


@contextlib.contextmanager
def api(directory: Path, env: dict[str, str]) -> Iterator[str]:
    """The API, ready; gives its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with process(directory, env, "api", "uvicorn", "app.main:app", "--port", str(port)) as running:
        _wait_for(lambda: _answers(url), running, directory / "api.log")
        yield url


@contextlib.contextmanager
def worker(directory: Path, env: dict[str, str], *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker, ready."""
    command = ("celery", "-A", "app.core.celery_app", "worker", "--loglevel=info", "--pool=threads", "-c2", *options)
    log = directory / "worker.log"
    with process(directory, env, "worker", *command) as running:
        _wait_for(lambda: b" ready." in log.read_bytes(), running, log)
        yield running


@pytest.fixture(scope="package")
def mailbox() -> Iterator[tuple[Mailbox, int]]:
    box = Mailbox()
    # Its `port=0` would be listened on, but never told.
    controller = Controller(box, hostname="127.0.0.1", port=free_port())
    controller.start()
    yield box, controller.port
    controller.stop()


@pytest.fixture(scope="package")
def store(tmp_path_factory: pytest.TempPathFactory, mailbox: tuple[Mailbox, int]) -> Iterator[Store]:
    """The bookstore that the tests of this folder share: they use users and books of their own."""
    directory = tmp_path_factory.mktemp("bookstore")
    box, smtp_port = mailbox
    with EmbeddedServer(tmp_path_factory.mktemp("bookstore-valkey")) as valkey:
        env = environment(directory, valkey.url, smtp_port)
        run(directory, env, "alembic", "-c", str(ROOT / "alembic.ini"), "upgrade", "head")
        with worker(directory, env), api(directory, env) as url:
            yield Store(url, directory, box)


@pytest.fixture
def client(store: Store) -> Iterator[httpx.Client]:
    """Somebody who is not logged in."""
    with store.client() as client:
        yield client


@pytest.fixture
def reader(store: Store) -> Iterator[httpx.Client]:
    """Somebody who is logged in."""
    with store.client() as client:
        store.log_in(client)
        yield client


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/").status_code == 200
    return False


def _wait_for(ready: Callable[[], bool], running: subprocess.Popen[bytes], log: Path, timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout
    while not ready():
        if running.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"not ready; it said:\n{log.read_text()}")
        time.sleep(0.05)
