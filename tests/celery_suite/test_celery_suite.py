"""A part of Celery's own integration suite passes on our app, and on our transport and result backend alone;
``__main__.py`` runs more."""

import subprocess
from pathlib import Path

import pytest

from backburner.redis.embedded import EmbeddedServer
from tests.celery_suite.suite import Kind, Suite

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

PART = (
    "test_connection_recovery.py",
    "test_group_chains.py",
    "test_inspect.py",
    "test_tasks.py::test_class_based_tasks",
    "test_canvas.py::test_link_error",
    "test_canvas.py::test_chord::test_group_or_task_countdown_delays_header",
)


@pytest.mark.parametrize("kind", ["whole", "parts"])
def test_celerys_own_suite_passes_on_ours(tmp_path: Path, kind: Kind) -> None:
    try:
        suite = Suite.fetch(tmp_path)
    except subprocess.CalledProcessError as error:
        pytest.fail(f"pip could not fetch Celery's sources: {error.stderr}")
    with EmbeddedServer(tmp_path / "server") as server:
        outcomes = suite.run(server.url, PART, kind=kind, seconds=300)
    assert sum(outcome == "passed" for outcome in outcomes.values()) > 30
    assert not {test for test, outcome in outcomes.items() if outcome == "failed"}
