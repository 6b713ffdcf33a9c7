"""The command lines that guides give, typed as they are, from the root of the repository."""

import re
import shutil
from pathlib import Path

import httpx2
import pytest
from flower.options import default_options  # type: ignore[import-untyped]

from backburner import Celery
from tests.conftest import Eventually
from tests.processes import ROOT, free_port, running

WORKER = "celery -A app.core.celery_app worker --loglevel=info"
RELOADING_WORKER = "celery -A app.core.celery_app worker --loglevel=info --reload"
FLOWER = "celery -A app.core.celery_app flower"


@pytest.fixture
def env(redis_url: str, tmp_path: Path) -> dict[str, str]:
    return {"REDIS_URL": redis_url, "DATABASE_URL": f"sqlite:///{tmp_path}/app.db", "UPLOAD_DIR": str(tmp_path)}


@pytest.fixture
def producer(redis_url: str) -> Celery:
    """Any program that knows the tasks' names."""
    return Celery("producer", broker=redis_url, backend=redis_url)


@pytest.mark.slow
def test_the_worker_does_jobs_and_flower_shows_it(
    env: dict[str, str], producer: Celery, eventually: Eventually
) -> None:
    port = free_port()
    with running(WORKER, env=env) as worker, running(FLOWER, env={**env, "FLOWER_PORT": str(port)}):
        eventually(lambda: worker.says("ready."), timeout=20)
        assert producer.send_task("process_data", [7]).get(timeout=10) == {"processed": 7}

        def page() -> str:
            try:
                return httpx2.get(f"http://127.0.0.1:{port}/workers", timeout=5, follow_redirects=True).text
            except httpx2.TransportError:
                return ""

        eventually(lambda: re.search(r"celery@", page()), timeout=20)


def test_flower_is_at_the_port_that_guides_name() -> None:
    assert default_options.port == 5555


@pytest.fixture
def copy_of_app(tmp_path: Path) -> Path:
    copy = tmp_path / "repository"
    shutil.copytree(ROOT / "app", copy / "app", ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.mark.slow
def test_a_reloading_worker_runs_a_changed_task(
    copy_of_app: Path, env: dict[str, str], producer: Celery, eventually: Eventually
) -> None:
    tasks = copy_of_app / "app" / "workers" / "tasks.py"
    with running(RELOADING_WORKER, cwd=copy_of_app, env=env) as worker:
        eventually(lambda: worker.says("ready."), timeout=20)
        assert producer.send_task("process_data", [7]).get(timeout=10) == {"processed": 7}

        tasks.write_text(tasks.read_text().replace('{"processed": data_id}', '{"processed": -data_id}'))
        eventually(lambda: producer.send_task("process_data", [7]).get(timeout=10) == {"processed": -7}, timeout=10)
