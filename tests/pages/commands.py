"""Whether what a page tells people to type can be typed: programs, targets, options, modules and files that exist.

Nothing is run: most of these commands would start servers. An unknown program is refused, so that nobody
forgets to teach it here.
"""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from itertools import dropwhile, groupby
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from alembic import command as alembic_commands
from celery.bin.celery import celery as celery_command
from typer.main import get_command

from backburner import Celery
from backburner.cli.commands import app as backburner_app
from tests.processes import ROOT

SERVICES = {8000, 5555, 8025}
"""Ports of what `make run` starts and people open in a browser."""


def commands(code: str) -> Iterator[list[str]]:
    """The commands of a shell block, as words; prompts, comments, variables and outputs are left out."""
    lines = code.replace("\\\n", " ").splitlines()
    if any(line.startswith("$ ") for line in lines):
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    for line in lines:
        words = shlex.shlex(line, posix=True, punctuation_chars="|&;")
        words.whitespace_split = True
        for operator, command in groupby(words, lambda word: not word.strip("|&;")):
            named = list(dropwhile(re.compile(r"[A-Z_]+=").match, command))
            if named and not operator:
                yield named


def check(words: list[str], folder: Path) -> None:
    """Fail unless the command could be typed in `folder`."""
    program, *arguments = words
    assert program in _CHECKS, f"the tests do not know {program}; teach them, or mark the block as not run"
    try:
        _CHECKS[program](arguments, folder)
    except (AssertionError, AttributeError, KeyError, ValueError) as error:
        raise AssertionError(f"this cannot be typed: {shlex.join(words)} ({error!r})") from error


def _make(arguments: list[str], _folder: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for argument in arguments:
        assert argument in targets or "=" in argument


def _celery(arguments: list[str], folder: Path) -> None:
    assert arguments[0] == "-A"
    _module(arguments[1], folder)
    _options_of_celery(arguments[2], arguments[3:])


def _options_of_celery(command: str, arguments: list[str]) -> None:
    ours = Celery("pages", set_as_current=False).user_options[command]
    known = {name for parameter in (*celery_command.commands[command].params, *ours) for name in parameter.opts}
    for word in arguments:
        assert command == "flower" or not word.startswith("-") or word.partition("=")[0] in known, word


def _uvicorn(arguments: list[str], folder: Path) -> None:
    module, _, name = arguments[0].partition(":")
    assert re.search(rf"^{name}\b.*=|^def {name}\b", _module(module, folder).read_text(), re.MULTILINE)


def _module(dotted: str, folder: Path) -> Path:
    """The file of a module, or of the module that has this attribute."""
    path = folder.joinpath(*dotted.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py", path.parent.with_suffix(".py")):
        if candidate.exists():
            return candidate
    raise AssertionError(f"there is no module {dotted} in {folder}")


def _python(arguments: list[str], folder: Path) -> None:
    if "-c" in arguments:
        compile(arguments[arguments.index("-c") + 1], "<command>", "exec")
    elif "-m" not in arguments:
        (script,) = [argument for argument in arguments if argument.endswith(".py")]
        assert (folder / script).exists()


def _backburner(arguments: list[str], _folder: Path) -> None:
    if arguments[0] == "worker":
        _options_of_celery("worker", [word for word in arguments[1:] if word not in {"-A", "--app"}])
        return
    command: Any = get_command(backburner_app)
    while hasattr(command, "commands"):  # of a group
        command, arguments = command.commands[arguments[0]], arguments[1:]
    known = {name for parameter in command.params for name in parameter.opts}
    assert {word.partition("=")[0] for word in arguments if word.startswith("-")} <= known


def _pip(arguments: list[str], _folder: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for argument in arguments[1:]:
        if extras := re.fullmatch(r"backburner\[(.+)\]", argument):
            assert set(extras[1].split(",")) <= set(project["optional-dependencies"])


def _curl(arguments: list[str], folder: Path) -> None:
    (url,) = [urlsplit(word) for word in arguments if word.startswith("http")]
    assert url.hostname in {"localhost", "127.0.0.1"}
    assert url.port in SERVICES or f"--port {url.port}" in (folder / "README.md").read_text()
    if folder == ROOT and url.port == 8000:
        assert any(path.fullmatch(url.path) for path in _paths_of_the_bookstore()), url.path


@cache
def _paths_of_the_bookstore() -> list[re.Pattern[str]]:
    # In a process of its own: here, its tasks would become those of every Celery app in the other tests.
    program = "import json; from app.main import app; print(json.dumps(list(app.openapi()['paths'])))"
    asked = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return [re.compile(re.sub(r"\{\w+\}", "[^/]+", path)) for path in ["/docs", *json.loads(asked.stdout)]]


def _cp(arguments: list[str], folder: Path) -> None:
    assert (folder / arguments[0]).exists()


def _alembic(arguments: list[str], folder: Path) -> None:
    assert callable(getattr(alembic_commands, arguments[0]))
    assert (folder / "alembic.ini").exists()


def _docker(arguments: list[str], _folder: Path) -> None:
    assert arguments[0] in {"compose", "build", "run"}
    assert (ROOT / ("compose.yaml" if arguments[0] == "compose" else "Dockerfile")).exists()


def _anything(_arguments: list[str], _folder: Path) -> None:
    pass


_CHECKS: dict[str, Callable[[list[str], Path], None]] = {
    "alembic": _alembic,
    "backburner": _backburner,
    "cd": _anything,
    "celery": _celery,
    "cp": _cp,
    "curl": _curl,
    "docker": _docker,
    "git": _anything,
    "make": _make,
    "pip": _pip,
    "python": _python,
    "uvicorn": _uvicorn,
}
