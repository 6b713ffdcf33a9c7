"""The suite `http-cache-tests` (https://cache-tests.fyi): installed by npm, run against one URL, its results counted.

The version is pinned by package.json, and its content by the hashes in package-lock.json. HTTP_CACHE_TESTS names a
checkout of the suite to take in its place, of any version. Nothing of the suite is kept in this repository.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from tests import npm
from tests.processes import Program, environment, free_port, running

HERE = Path(__file__).parent
OURS = "tests.http.conformance.proxy.backburner"
CHECKOUT = "HTTP_CACHE_TESTS"

_DESCRIBE = """
const tests = (await import(`${process.cwd()}/tests/index.mjs`)).default
// Version 0.4.5 adds this one in its command line only.
try { tests.push((await import(`${process.cwd()}/tests/surrogate-control.mjs`)).default) } catch {}
const caches = (await import(`${process.cwd()}/results/index.mjs`)).default
console.log(JSON.stringify({ tests: tests.flatMap(suite => suite.tests), caches }))
"""


class Suite:
    """The suite, installed in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # It moved its programs after 0.4.5.
        newer = folder / "test-engine"
        self.engine = newer if newer.exists() else folder

    @classmethod
    def install(cls, workspace: Path) -> "Suite":
        """Install into the empty folder `workspace`."""
        installed = npm.install(HERE, workspace)
        if checkout := os.environ.get(CHECKOUT):
            # A copy, for a module looks for its packages in the folders above its own.
            ignored = shutil.ignore_patterns(".git", "node_modules", "spec")
            return cls(shutil.copytree(checkout, workspace / "checkout", ignore=ignored))
        return cls(installed / "http-cache-tests")

    @cached_property
    def _description(self) -> dict[str, Any]:
        described: dict[str, Any] = json.loads(self._node("--input-type=module", "--eval", _DESCRIBE))
        return described

    @cached_property
    def tests(self) -> dict[str, dict[str, Any]]:
        """Each test by its id, as the suite describes it; without those that are for browsers."""
        return {test["id"]: test for test in self._description["tests"] if not test.get("browser_only")}

    @cached_property
    def published(self) -> list[tuple[dict[str, str], dict[str, Any]]]:
        """The caches whose results come with the suite (name, version, type), and these."""
        results = self.folder / "results"
        return [(cache, json.loads((results / cache["file"]).read_text())) for cache in self._description["caches"]]

    @contextmanager
    def gateway(self, cache: str, **variables: str) -> Iterator[str]:
        """Run the suite's server, and before it a proxy with a cache (see proxy.py); give the proxy's URL."""
        origin, port = free_port(), free_port()
        config = _npm_config(protocol="http", port=str(origin), pidfile=os.devnull)
        server = f"node {self.engine / 'server' / 'server.mjs'}"
        proxy = f"python -m tests.http.conformance.proxy --cache {cache}"
        with (
            running(server, self.folder, config) as node,
            running(f"{proxy} --origin http://127.0.0.1:{origin} --port {port}", env=variables) as gateway,
        ):
            _ready(node, "Listening")
            _ready(gateway, "Uvicorn running")
            yield f"http://127.0.0.1:{port}"

    def run(self, url: str) -> dict[str, Any]:
        """Each test's id, and ``True`` or ``[error, message]``, of the cache at `url`. Takes a minute or two."""
        results: dict[str, Any] = json.loads(self._client(url))
        return results

    def show(self, url: str, test: str) -> str:
        """What one test sends and gets, for people; the last line has its result."""
        return self._client(url, test)

    def passes_alone(self, url: str, test: str) -> bool:
        """Whether a test passes with nothing beside it: one that comes late on a busy machine fails without fault."""
        return "✅" in self.show(url, test).strip().splitlines()[-1]

    def _client(self, url: str, test: str = "") -> str:
        return self._node("--no-warnings", str(self.engine / "cli.mjs"), **_npm_config(base=url, id=test))

    def _node(self, *arguments: str, **variables: str) -> str:
        done = subprocess.run(
            ["node", *arguments],
            cwd=self.folder,
            env=environment(variables),
            check=True,
            capture_output=True,
            text=True,
            timeout=600,
        )
        return done.stdout


def _npm_config(**values: str) -> dict[str, str]:
    # What `npm run` would set. Empty values count in the second form only.
    return {f"npm_package_config_{name}": value for name, value in values.items()}


def _ready(program: Program, text: str) -> None:
    deadline = time.monotonic() + 20
    while not program.says(text):
        assert time.monotonic() < deadline, f"{program.command} did not start:\n{program.output}"
        time.sleep(0.02)
