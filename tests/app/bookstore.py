"""A whole bookstore to test against: its API and worker are real processes, its mail goes to a real SMTP server."""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from itertools import count
from pathlib import Path
from typing import Any

import httpx2

from tests.conftest import Eventually
from tests.processes import ROOT, Program, free_port, running

PASSWORD = "correct horse battery staple"

_numbers = count(1)


@dataclass
class Mailbox:
    """What arrived, and what the server says instead if it takes nothing."""

    mails: list[EmailMessage] = field(default_factory=list)
    refusal: str = ""

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        if self.refusal:
            return self.refusal
        self.mails.append(message_from_bytes(envelope.content, policy=policy.default))
        return "250 OK"

    def to(self, address: str) -> list[EmailMessage]:
        return [mail for mail in self.mails if mail["To"] == address]


@dataclass
class Bookstore:
    """Where a bookstore lives, and how its parts are started."""

    directory: Path
    redis_url: str
    eventually: Eventually
    smtp_port: int = 9
    database_url: str = ""
    url: str = ""
    """Of the API, once it runs."""
    more: dict[str, str] = field(default_factory=dict)

    @property
    def uploads(self) -> Path:
        return self.directory / "uploads"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "REDIS_URL": self.redis_url,
            "DATABASE_URL": self.database_url or f"sqlite:///{self.directory}/data/app.db",
            "UPLOAD_DIR": str(self.uploads),
            "SMTP_URL": f"smtp://127.0.0.1:{self.smtp_port}",
            **self.more,
        }

    @contextmanager
    def run(self, command: str) -> Iterator[Program]:
        with running(command, cwd=self.directory, env=self.environment) as program:
            yield program

    def migrate(self) -> None:
        with self.run(f"alembic -c {shlex.quote(str(ROOT / 'alembic.ini'))} upgrade head") as program:
            assert program.process.wait(30) == 0, program.output

    @contextmanager
    def api(self) -> Iterator[Program]:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        with self.run(f"uvicorn app.main:app --port {port}") as program:
            self.eventually(lambda: program.says("startup complete") and self._answers(), timeout=30)
            yield program

    @contextmanager
    def worker(self) -> Iterator[Program]:
        command = "celery -A app.core.celery_app worker --loglevel=info --pool=threads --concurrency=2"
        with self.run(command) as program:
            self.eventually(lambda: program.says(" ready."), timeout=30)
            yield program

    def client(self, **options: Any) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=20, **options)

    def register(self, client: httpx2.Client) -> dict[str, Any]:
        """A new user, not logged in."""
        email = f"reader{next(_numbers)}@example.org"
        answer = client.post("/users", json={"email": email, "name": "Rea Der", "password": PASSWORD})
        assert answer.status_code == 201, answer.text
        user: dict[str, Any] = answer.json()
        return user

    def log_in(self, client: httpx2.Client) -> dict[str, Any]:
        """A new user, logged in by cookie."""
        user = self.register(client)
        answer = client.post("/sessions", json={"email": user["email"], "password": PASSWORD})
        assert answer.status_code == 201, answer.text
        return user

    def finished(self, client: httpx2.Client, url: str) -> dict[str, Any]:
        """The job at a URL, once it has ended."""

        def ended() -> dict[str, Any] | None:
            job: dict[str, Any] = client.get(url).raise_for_status().json()
            return job if job["state"] in {"SUCCESS", "FAILURE"} else None

        job = self.eventually(ended, 20)
        assert job
        return job

    def _answers(self) -> bool:
        with suppress(httpx2.TransportError):
            return httpx2.get(f"{self.url}/").status_code == 200
        return False
