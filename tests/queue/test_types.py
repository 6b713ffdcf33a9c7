"""What type checkers make of tasks and jobs."""

import subprocess
import sys

import pytest

from tests.processes import ROOT


@pytest.mark.slow
def test_a_type_checker_sees_what_a_task_takes_and_what_its_jobs_give() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "tests/typing/enqueued.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert checked.stdout + checked.stderr == ""
