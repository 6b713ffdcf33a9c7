"""What a directory holds: found without importing it."""

from pathlib import Path

import pytest

from backburner.cli.project import Project
from backburner.errors import ConfigError


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("file", "source", "name"),
    [
        ("main.py", "from fastapi import FastAPI\napp = FastAPI()", "main:app"),
        ("main.py", "import fastapi\nweb: fastapi.FastAPI = fastapi.FastAPI(title='x')", "main:web"),
        ("app/main.py", "def create_app(): ...\napp = create_app()", "app.main:app"),
        ("app.py", "syntax error here", "app:app"),
    ],
)
def test_a_web_application_is_found(tmp_path: Path, file: str, source: str, name: str) -> None:
    write(tmp_path / file, source)
    project = Project.read(tmp_path)
    assert project.app is not None
    assert (project.app.name, project.app.where, project.app.pinned) == (name, file, False)


@pytest.mark.parametrize(
    ("file", "source", "name", "reloads"),
    [
        ("main.py", "from celery import Celery\ncelery = Celery('x')", "main:celery", False),
        ("task.py", "from backburner import Celery\napp = Celery('x')", "task:app", True),
        ("app/core/celery_app.py", "import backburner\nc = backburner.Celery('x')", "app.core.celery_app:c", True),
    ],
)
def test_a_celery_application_is_found(tmp_path: Path, file: str, source: str, name: str, reloads: bool) -> None:
    write(tmp_path / file, source)
    project = Project.read(tmp_path)
    assert project.celery is not None
    assert (project.celery.name, project.celery.reloads) == (name, reloads)


def test_what_is_pinned_wins(tmp_path: Path) -> None:
    write(tmp_path / "main.py", "from fastapi import FastAPI\napp = FastAPI()")
    pins = 'app = "shop.web:site"\ncelery = "shop.jobs:queue"\ncheck = "/books"\n'
    write(tmp_path / "pyproject.toml", f'[tool.backburner]\n{pins}[tool.fastapi]\nentrypoint = "other:app"\n')
    project = Project.read(tmp_path)
    assert project.app is not None
    assert project.celery is not None
    assert (project.app.name, project.celery.name, project.check_path) == ("shop.web:site", "shop.jobs:queue", "/books")
    assert project.app.pinned


def test_the_entrypoint_of_fastapis_own_command_is_understood(tmp_path: Path) -> None:
    write(tmp_path / "pyproject.toml", '[tool.fastapi]\nentrypoint = "shop.web:site"\n')
    project = Project.read(tmp_path)
    assert project.app is not None
    assert project.app.name == "shop.web:site"


@pytest.mark.parametrize(
    ("pyproject", "message"),
    [
        ("[tool.backburner]\napp = 5\n", r"\[tool.backburner\] app .* is 5"),
        ('[tool.backburner]\napp = "main"\n', "package.module:variable"),
        ('[tool.backburner]\napp = "main:app"\ncheck = "books"\n', "a path of the API"),
        ("not toml", "cannot be read"),
        ('tool = "x"', "nothing to run"),
        ('[tool]\nbackburner = "x"', "nothing to run"),
    ],
)
def test_a_pin_that_cannot_be_used_is_explained(tmp_path: Path, pyproject: str, message: str) -> None:
    write(tmp_path / "pyproject.toml", pyproject)
    with pytest.raises(ConfigError, match=message):
        Project.read(tmp_path)
