"""A small project of a user's, and `backburner dev` to run it."""

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.processes import Dev, processes_of
from tests.processes import free_port

PLAIN = """
    async def app(scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"hello"})
"""

WITH_CELERY = """
    from fastapi import FastAPI
    from backburner import Celery

    app = FastAPI()
    celery = Celery("tiny")

    @celery.task(name="brew")
    def brew(kind: str) -> str:
        return f"{kind} tea"

    @app.get("/")
    def root() -> str:
        return "hello"
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """A web application that starts quickly. Whatever runs in its directory afterwards is ended."""
    directory = tmp_path / "project"
    directory.mkdir()
    (directory / "main.py").write_text(textwrap.dedent(PLAIN))
    (directory / "pyproject.toml").write_text('[tool.backburner]\napp = "main:app"\n')
    yield directory
    for process in processes_of(directory):
        process.kill()


@pytest.fixture
def with_celery(project: Path) -> Path:
    """The project has a Celery application too, found without being pinned."""
    (project / "pyproject.toml").unlink()
    (project / "main.py").write_text(textwrap.dedent(WITH_CELERY))
    return project


@pytest.fixture
def dev(project: Path) -> Iterator[Callable[..., Dev]]:
    """Start `backburner dev` in the project, on ports nobody else uses."""
    started: list[Dev] = []

    def start(*arguments: str, **environment: str) -> Dev:
        ports = {"REDIS_PORT": str(free_port())}
        started.append(Dev(project, "--port", str(free_port()), *arguments, **(ports | environment)))
        return started[-1]

    yield start
    for each in started:
        each.stop()
