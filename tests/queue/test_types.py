"""What type checkers make of tasks and jobs, and of those who use the library."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import npm
from tests.processes import ROOT


def complaints(*command: str | Path) -> str:
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    return checked.stdout + checked.stderr


WITHOUT_STUBS = """
[mypy]
[mypy-celery.*]
follow_imports = skip
follow_imports_for_stubs = true
"""
"""All of Celery is `Any`, as for those who installed no stubs of it."""


@pytest.mark.slow
@pytest.mark.parametrize("configuration", ["", WITHOUT_STUBS], ids=["stubs", "no-stubs"])
def test_mypy_sees_what_a_task_takes_and_what_its_jobs_give(configuration: str, tmp_path: Path) -> None:
    (tmp_path / "mypy.ini").write_text(configuration or "[mypy]")
    mypy = (sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--config-file", tmp_path / "mypy.ini")
    assert complaints(*mypy, "tests/typing/enqueued.py") == ""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_pyright_sees_the_same_and_has_nothing_to_say_about_the_bookstore(tmp_path: Path) -> None:
    pyright = npm.install(ROOT / "tests" / "typing", tmp_path) / ".bin" / "pyright"
    told = complaints(pyright, "--pythonpath", sys.executable, "tests/typing", "app", "examples/quickstart")
    assert told == "0 errors, 0 warnings, 0 informations\n"
