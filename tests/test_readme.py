"""What the README and the other pages show is true: Python runs, commands exist, links lead somewhere.

Python runs on a real server, in the root of the repository, block after block as a reader would type it; pages
with tasks have a worker. ``<!-- not run: reason -->`` before a block leaves it out.
"""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from app.core.config import AppSettings
from tests.conftest import Eventually
from tests.pages.commands import check, commands
from tests.pages.page import Block, anchors, blocks, links
from tests.processes import ROOT, environment, running

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("examples/*/README.md"))]
PYTHON = {"python", "py", "pycon"}
SHELL = {"bash", "sh", "shell", "console"}


def label(page: Path) -> str:
    return str(page.relative_to(ROOT))


def having(languages: set[str]) -> list[Path]:
    return [page for page in PAGES if any(run(page, languages))]


def run(page: Path, languages: set[str]) -> Iterator[Block]:
    return (block for block in blocks(page) if block.language in languages and not block.skipped)


def runs_jobs(page: Path) -> bool:
    """Whether a worker has to be there."""
    return any(re.search(r"app\.(workers|core\.celery_app)", block.code) for block in run(page, PYTHON))


@pytest.mark.parametrize(
    "page",
    # The job that the pages run takes its two seconds each time.
    [pytest.param(page, marks=pytest.mark.slow) if runs_jobs(page) else page for page in having(PYTHON)],
    ids=label,
)
def test_the_python_of_a_page_runs(page: Path, redis_url: str, tmp_path: Path, eventually: Eventually) -> None:
    env = {"REDIS_URL": redis_url, "DATABASE_URL": f"sqlite:///{tmp_path}/app.db", "PYTHONPATH": str(ROOT)}
    shown = list(run(page, PYTHON))
    if runs_jobs(page):
        with running("celery -A app.core.celery_app worker --pool=threads --loglevel=info", env=env) as worker:
            eventually(lambda: worker.says("ready."), timeout=20)
            run_python(page, shown, env)
    else:
        run_python(page, shown, env)


def run_python(page: Path, shown: list[Block], env: dict[str, str]) -> None:
    given = {"name": label(page), "text": page.read_text(), "blocks": [vars(block) for block in shown]}
    ran = subprocess.run(
        [sys.executable, "-m", "tests.pages.run_python"],
        input=json.dumps(given),
        cwd=ROOT,
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("page", having(SHELL), ids=label)
def test_the_commands_of_a_page_can_be_typed(page: Path) -> None:
    folder = page.parent if page.is_relative_to(ROOT / "examples") else ROOT
    for block in run(page, SHELL):
        for words in commands(block.code):
            check(words, folder)


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_the_data_of_a_page_is_well_formed(page: Path) -> None:
    settings = {name.upper() for name in AppSettings.model_fields}
    for block in run(page, {"json", "toml", "env", "dotenv"}):
        if block.language == "json":
            json.loads(block.code)
        elif block.language == "toml":
            tomllib.loads(block.code)
        else:
            assert set(re.findall(r"^#? *([A-Z_]+)=", block.code, re.MULTILINE)) <= settings


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", path):
            continue  # other people's sites
        target = (page.parent / path) if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize(
    "module",
    [
        *("backburner", "backburner.cache", "backburner.errors", "backburner.events", "backburner.http"),
        *("backburner.otel", "backburner.prometheus", "backburner.queue", "backburner.queue.http"),
        *("backburner.redis.embedded", "backburner.testing"),
    ],
)
def test_every_public_name_is_written_about(module: str) -> None:
    words = {word for page in PAGES for word in re.findall(r"\w+", page.read_text())}
    assert not set(import_module(module).__all__) - words


def test_every_kind_of_key_on_the_server_is_written_about() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    sources = [path.read_text() for path in (ROOT / "src" / "backburner").rglob("*.py")]
    kinds = {kind for source in sources for kind in re.findall(r'"(?:{[\w.]+})?(\\x01\w+|backburner:\w+)', source)}
    assert {r"\x01lease", "backburner:delayed"} <= kinds
    assert not {kind for kind in kinds if kind not in page}


def test_there_are_pages_and_blocks_to_check() -> None:
    assert ROOT / "README.md" in PAGES
    assert having(PYTHON)
    assert having(SHELL)


def test_a_block_can_be_left_out_with_a_reason(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- not run: it never ends -->\n```python\nloop()\n```\n\nText\n\n```python\nx = 1\n```\n")
    first, second = blocks(page)
    assert first.skipped
    assert (second.skipped, second.line, second.code) == (False, 9, "x = 1\n")


def test_a_failing_block_is_reported_with_its_page_and_line(tmp_path: Path) -> None:
    page = ROOT / "README.md"
    bad = Block("python", 7, "ok = 1\nawait missing()\n", skipped=False)
    with pytest.raises(AssertionError, match=r'(?s)File "README.md", line 8.*NameError'):
        run_python(page, [bad], {})
