"""`backburner worker`: the project's worker, found, shown and run."""

import shutil
from pathlib import Path

import httpx2
import pytest

from backburner import Celery, Settings
from tests.conftest import Eventually
from tests.processes import free_port, running
from tests.queue.conftest import close


@pytest.mark.slow
@pytest.mark.parametrize("named", [False, True])
def test_it_says_what_it_does_and_does_it(
    with_celery: Path, redis_url: str, named: bool, eventually: Eventually
) -> None:
    if named:
        shutil.move(with_celery / "main.py", with_celery / "elsewhere.py")
    port = free_port()
    command = (
        f"backburner worker {'-A elsewhere:celery' if named else ''} --pool=threads -c 3 --queues tea,coffee "
        f"--health-port {port} --without-mingle"
    )
    with running(command, with_celery, {"REDIS_URL": redis_url, "PYTHONPATH": ""}) as worker:
        eventually(lambda: worker.says("ready."), timeout=30)
        shown = dict(line.split(maxsplit=1) for line in worker.output.splitlines() if line.startswith("  "))
        assert shown["queues"] == "coffee, tea"
        assert shown["tasks"] == "1: brew"
        assert shown["pool"] == "threads, 3 threads"
        assert shown["broker"] == redis_url
        assert shown["health"] == f"http://127.0.0.1:{port}/health"
        with Celery(
            "producer", settings=Settings(redis_url=redis_url, celery_publish_timeout=5), set_as_current=False
        ) as app:
            assert app.send_task("brew", ("green",), queue="tea").get(timeout=10) == "green tea"
            close(app)
        assert httpx2.get(shown["health"]).json()["queues"] == ["coffee", "tea"]
        assert worker.stop() == 0


@pytest.mark.slow
def test_it_reloads(with_celery: Path, redis_url: str, eventually: Eventually) -> None:
    program = with_celery / "main.py"
    with running("backburner worker --pool=solo --reload", with_celery, {"REDIS_URL": redis_url}) as worker:
        eventually(lambda: worker.says("takes over"), timeout=30)
        program.write_text(program.read_text().replace('name="brew"', 'name="steep"'))
        eventually(lambda: worker.says("1: steep"), timeout=30)


@pytest.mark.slow
def test_passwords_are_not_shown(with_celery: Path, eventually: Eventually) -> None:
    with running("backburner worker -c 1", with_celery, {"REDIS_URL": "redis://:secret@127.0.0.1:1/0"}) as worker:
        eventually(lambda: worker.says("Cannot connect"), timeout=30)
        assert "prefork, one job at a time" in worker.output
        assert "redis://:***@127.0.0.1:1/0" in worker.output
        assert "secret" not in worker.output


def test_where_there_is_nothing_it_says_how_to_name_what_it_looks_for(tmp_path: Path) -> None:
    with running("backburner worker", tmp_path) as worker:
        assert worker.process.wait(20) == 1
        assert worker.output.startswith("nothing to run in ")
        assert 'celery = "package.module:celery_app"' in worker.output


def test_where_there_is_no_celery_application_that_is_said(project: Path) -> None:
    with running("backburner worker", project) as worker:
        assert worker.process.wait(30) == 1
        assert worker.output.startswith("no Celery application was found in ")
        assert "Traceback" not in worker.output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "environment", "says"),
    [
        ("", {"REDIS_PORT": "abc"}, "REDIS_PORT='abc': "),
        ("", {"CELERY_BROKER_URL": "foo://x"}, "'foo://x': there is no broker 'foo'; "),
        ("-A wrong:name", {}, "there is no module 'wrong', "),
        ("-A main:wrong", {}, "there is no 'wrong' in the module main"),
        (
            "-A os:name",
            {},
            "--app=os:name is a str, not a Celery application. Name its variable, as in --app=os:celery_app",
        ),
    ],
)
def test_what_keeps_it_from_starting_is_one_sentence(
    with_celery: Path, options: str, environment: dict[str, str], says: str
) -> None:
    with running(f"backburner worker {options}", with_celery, environment) as worker:
        assert worker.process.wait(30) == 1
        assert worker.output.startswith(says)
        assert "Traceback" not in worker.output


@pytest.mark.slow
def test_an_error_of_the_applications_own_keeps_its_traceback(with_celery: Path) -> None:
    (with_celery / "main.py").write_text("from backburner import Celery\nimport nonsense\napp = Celery()\n")
    with running("backburner worker", with_celery) as worker:
        assert worker.process.wait(30) == 1
        assert 'main.py", line 2' in worker.output
