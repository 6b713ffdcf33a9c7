"""A server of the queue's own, workers as users start them, and apps that produce for them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import kombu.pools
import pytest
import redis

from backburner.queue import Celery
from backburner.redis.embedded import EmbeddedServer
from backburner.settings import Settings
from tests.processes import Program, running
from tests.queue.programs.jobs import define

PROGRAMS = Path(__file__).parent / "programs"
ALONE = "--without-mingle --without-gossip"

MakeApp = Callable[..., Celery]
StartWorker = Callable[..., AbstractContextManager[Program]]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """For the queue alone, so that its worker may live from test to test."""
    with EmbeddedServer(tmp_path_factory.mktemp("queue")) as server:
        yield server


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """For one test alone."""
    with EmbeddedServer(tmp_path / "own server") as server:
        yield server


@pytest.fixture
def url(server: EmbeddedServer) -> str:
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
    return server.url


@pytest.fixture(scope="session")
def start_worker(eventually: Callable[..., Any]) -> StartWorker:
    """Start a worker for the tasks in ``programs/jobs.py``, or elsewhere, and wait until it is ready."""

    @contextmanager
    def start(
        url: str, options: str = "--pool=threads -c 4", app: str = "jobs", cwd: Path = PROGRAMS, **env: str
    ) -> Iterator[Program]:
        command = f"celery -A {app} worker --loglevel=info {ALONE} {options}"
        variables = {"REDIS_URL": url, "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1", **env}
        with running(command, cwd, variables) as worker:
            eventually(lambda: worker.says("ready."), timeout=30)
            yield worker

    return start


@pytest.fixture(scope="session")
def worker(server: EmbeddedServer, start_worker: StartWorker) -> Iterator[Program]:
    """A worker that all tests share."""
    with start_worker(server.url) as program:
        yield program


@pytest.fixture
def make_app() -> Iterator[MakeApp]:
    """Build an app with the tasks of ``programs/jobs.py``; closed after the test."""
    with ExitStack() as stack:

        def make(
            url: str, backend: str | None = None, *, broker: str | None = None, timeout: float = 5.0, **conf: Any
        ) -> Celery:
            settings = Settings(
                redis_url=url,
                celery_broker_url=broker or url,
                celery_result_backend=backend or url,
                celery_publish_timeout=timeout,
            )
            app = define(Celery("tests", settings=settings, set_as_current=False, **conf))
            stack.callback(close, app)
            return app

        yield make


def close(app: Celery) -> None:
    kombu.pools.reset()
    app.close()


@pytest.fixture
def app(make_app: MakeApp, url: str) -> Celery:
    return make_app(url)


@pytest.fixture
def released(tmp_path: Path) -> Iterator[Path]:
    """The file that the task ``wait_for`` waits for; at the latest it is there after the test, lest jobs occupy the
    shared worker."""
    file = tmp_path / "released"
    yield file
    file.touch()


def runs(path: Path) -> int:
    """How often the task ``wait_for`` was started for this file."""
    counted = Path(f"{path}.runs")
    return counted.stat().st_size if counted.exists() else 0
