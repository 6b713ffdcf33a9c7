"""`make` explains itself, and says clearly what it lacks."""

import os
import re
import subprocess

from tests.processes import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    # The tests may have been started by make, which tells its children so.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=30, check=False)


def test_without_a_target_it_lists_every_one_of_them() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    listed = re.findall(r"^ +make (\S+) +\S", make().stdout, re.MULTILINE)
    assert listed == phony.split()


def test_an_interpreter_that_is_too_old_or_missing_is_refused_by_name() -> None:
    for python in ("/bin/false", "/nonexistent/python"):
        refused = make("lint", f"PYTHON={python}")
        assert refused.returncode != 0
        assert f"No Python 3.11 or newer found as PYTHON={python}" in refused.stderr


def test_pinning_without_its_tool_says_what_is_missing() -> None:
    refused = make("pins", "UV=no-such-uv")
    assert refused.returncode != 0
    assert "Pinning needs uv" in refused.stderr
