"""Celery's own integration suite (``t/integration``), run on Celery's app with our transport and result backend or its
own, and on ours.

It comes from the source distribution of the Celery that is installed, by pip. Nothing of it is kept in this repository.
"""

import json
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

from tests.processes import ROOT, environment

Kind = Literal["whole", "parts", "stock"]
"""A `backburner.Celery`; a ``celery.Celery`` with our transport and result backend; one with its own."""
KINDS: tuple[Kind, ...] = get_args(Kind)

_PYTEST = """
[pytest]
timeout = 200
python_classes = test_*
pythonpath = .
markers =
    flaky: known to Celery's own runs, which repeat such tests; here nothing is repeated
"""

_CONFIGURATION: dict[Kind, dict[str, object]] = {
    "whole": {"task_acks_late": False},  # of our defaults the only one that its tests look at
    "parts": {"broker_transport": "backburner.queue.transport:Transport"},
    "stock": {},
}


class Suite:
    """The suite, unpacked in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def fetch(cls, folder: Path) -> "Suite":
        """Download it into an empty folder. Raises `CalledProcessError` when pip cannot."""
        celery = f"celery=={version('celery')}"
        command = ["pip", "download", "--quiet", "--no-deps", "--no-binary", "celery", "--dest", str(folder), celery]
        subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True, text=True, timeout=180)
        [archive] = folder.glob("celery-*.tar.gz")
        with tarfile.open(archive) as packed:
            # Its tests only: beside them lies Celery itself, which is not to hide the one that is installed.
            members = [member for member in packed.getmembers() if member.name.split("/")[1:2] == ["t"]]
            packed.extractall(folder, members, filter="data")
        (folder / "pytest.ini").write_text(_PYTEST)
        return cls(next(path.parent for path in folder.glob("celery-*/t")))

    def run(self, url: str, tests: Sequence[str], *, kind: Kind, seconds: float) -> dict[str, str]:
        """Run files or tests of it on the server at `url`; what became of each test: passed, failed, skipped, xfailed.

        Raises:
            TimeoutExpired: it took longer.
        """
        config, report = self.folder / "integration-tests-config.json", self.folder / f"{kind}.xml"
        config.write_text(json.dumps(_CONFIGURATION[kind]))
        server = urlsplit(url)
        variables = {
            "TEST_BROKER": url,
            "TEST_BACKEND": url,
            "REDIS_HOST": str(server.hostname),
            "REDIS_PORT": str(server.port),
            "REDIS_URL": url,
            "PYTHONPATH": str(ROOT),
        }
        plugins = ["no:randomly", "no:cacheprovider", "celery.contrib.pytest"]
        if kind != "stock":
            plugins.append(f"tests.celery_suite.{kind}")
        subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", "-o", "junit_family=xunit1"),
                *(word for plugin in plugins for word in ("-p", plugin)),
                *("-c", str(self.folder.parent / "pytest.ini"), f"--rootdir={self.folder}"),
                *(f"t/integration/{test}" for test in tests),
            ],
            cwd=self.folder,
            env=environment(variables),
            check=False,
            capture_output=True,
            timeout=seconds,
        )
        return dict(map(_outcome, ET.parse(report).iter("testcase")))


def _outcome(case: ET.Element) -> tuple[str, str]:
    name = f"{Path(case.get('file') or case.get('classname', '').replace('.', '/')).name}::{case.get('name')}"
    if case.find("failure") is not None or case.find("error") is not None:
        return name, "failed"
    skipped = case.find("skipped")
    if skipped is None:
        return name, "passed"
    return name, "xfailed" if "xfail" in (skipped.get("type") or "") else "skipped"
