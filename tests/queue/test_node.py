"""Another language: what we enqueue is run by a worker in Node, and our worker runs what a client in Node enqueues.

By the package ``celery-node``, which npm installs for the test. What it reads, any program reads that
speaks Celery's protocol.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Eventually
from tests.npm import install
from tests.processes import Program, environment, running
from tests.queue.conftest import MakeApp

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

NODE = Path(__file__).parent / "node"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the programs and what they need."""
    folder = tmp_path_factory.mktemp("node")
    install(NODE, folder)
    for program in NODE.glob("*.js"):
        shutil.copy(program, folder)
    return folder


def test_a_worker_in_node_runs_what_is_enqueued_here(
    node: Path, make_app: MakeApp, url: str, eventually: Eventually
) -> None:
    url = url.removesuffix("0") + "4"  # where no other worker takes it
    app = make_app(url)
    with running(f"node work.js {url}", node) as worker:
        eventually(lambda: worker.says("ready"), timeout=20)
        assert app.tasks["add"].delay(20, 22).get(timeout=20) == 42
        assert [job.get(timeout=20) for job in app.tasks["add"].delay_many([(1, 2), (3, 4)])] == [3, 7]
        assert app.send_task("add", (5, 6)).get(timeout=20) == 11


@pytest.mark.parametrize(
    ("task", "args", "result"), [("add", "[20, 22]", "42"), ("add", '["ö", "\\u2028"]', '"ö\u2028"')]
)
def test_our_worker_runs_what_is_enqueued_in_node(
    node: Path, worker: Program, url: str, task: str, args: str, result: str
) -> None:
    done = subprocess.run(
        ["node", "ask.js", url, task, args],
        cwd=node,
        env=environment({}),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == result
