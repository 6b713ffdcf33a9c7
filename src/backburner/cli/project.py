"""Finds a directory's web application and Celery application without importing anything.

A name given in ``pyproject.toml`` wins. Otherwise the usual files are searched for ``app = FastAPI(…)`` and the like.
"""

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backburner.errors import ConfigError

_APP_FILES = ("main.py", "app.py", "api.py", "app/main.py", "app/app.py", "app/api.py")
_CELERY_FILES = (
    "app/core/celery_app.py",
    "app/celery_app.py",
    "celery_app.py",
    "app/worker.py",
    "worker.py",
    "tasks.py",
    "task.py",
    *_APP_FILES,
)


@dataclass(frozen=True, slots=True)
class Found:
    """A variable of a module, as uvicorn and Celery write it (``package.module:variable``), and where it was found."""

    name: str
    where: str
    pinned: bool
    reloads: bool = True
    """Of a Celery application: whether its worker knows ``--reload``, as that of `backburner.Celery` does."""


@dataclass(frozen=True, slots=True)
class Project:
    """The applications that `backburner dev` runs."""

    directory: Path
    app: Found | None
    celery: Found | None
    check_path: str | None
    """A path of the API whose answer is cached, for ``backburner dev --check``."""

    @classmethod
    def read(cls, directory: Path) -> "Project":
        """Find the applications of a directory.

        Raises:
            ConfigError: there is nothing to run, or ``pyproject.toml`` cannot be read.
        """
        tools = _tools(directory / "pyproject.toml")
        project = cls(
            directory=directory,
            app=_pinned("backburner", "app", tools)
            or _pinned("fastapi", "entrypoint", tools)
            or _search(directory, _APP_FILES, {"FastAPI", "Starlette"}, "app"),
            celery=_celery(directory, tools),
            check_path=_check_path(tools),
        )
        if project.app is None and project.celery is None:
            raise ConfigError(
                f"nothing to run in {directory}: no FastAPI application in {', '.join(_APP_FILES)}, and no Celery "
                "application. If yours are elsewhere, say so in pyproject.toml, under [tool.backburner]: "
                'app = "package.module:app", celery = "package.module:celery_app"'
            )
        return project

    @property
    def has_migrations(self) -> bool:
        return (self.directory / "alembic.ini").is_file()


def _tools(pyproject: Path) -> dict[str, dict[str, Any]]:
    try:
        tools = tomllib.loads(pyproject.read_text("utf-8")).get("tool")
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{pyproject} cannot be read: {error}") from None
    tables = tools if isinstance(tools, dict) else {}
    return {name: table for name, table in tables.items() if isinstance(table, dict)}


def _check_path(tools: dict[str, dict[str, Any]]) -> str | None:
    path = tools.get("backburner", {}).get("check")
    if path is not None and not str(path).startswith("/"):
        raise ConfigError(f'[tool.backburner] check in pyproject.toml is {path!r}; write a path of the API, "/books"')
    return path


def _pinned(tool: str, key: str, tools: dict[str, dict[str, Any]]) -> Found | None:
    name = tools.get(tool, {}).get(key)
    if name is None:
        return None
    if not isinstance(name, str) or ":" not in name:
        raise ConfigError(f'[tool.{tool}] {key} in pyproject.toml is {name!r}; write it as "package.module:variable"')
    return Found(name, f"[tool.{tool}] in pyproject.toml", pinned=True)


def _celery(directory: Path, tools: dict[str, dict[str, Any]]) -> Found | None:
    pinned = _pinned("backburner", "celery", tools)
    found = pinned or _search(directory, _CELERY_FILES, {"Celery"}, None)
    if found is None:
        return None
    return Found(found.name, found.where, found.pinned, reloads=_is_ours(directory, found.name.partition(":")[0]))


def _is_ours(directory: Path, module: str) -> bool:
    """Whether a module's `Celery` is likely Backburner's. If that is unknown, yes: the worker itself can still
    refuse."""
    path = directory / module.replace(".", "/")
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return "backburner" in file.read_text("utf-8", "replace")
    return True


def _search(directory: Path, files: tuple[str, ...], classes: set[str], usual: str | None) -> Found | None:
    for name in files:
        file = directory / name
        if file.is_file() and (variable := _variable(file, classes, usual)):
            module = name.removesuffix(".py").replace("/", ".")
            return Found(f"{module}:{variable}", name, pinned=False)
    return None


def _variable(file: Path, classes: set[str], usual: str | None) -> str | None:
    """The module's variable that holds an instance of one of `classes`, or else the one with the `usual` name."""
    try:
        assigned = list(_assignments(ast.parse(file.read_text("utf-8"))))
    except (SyntaxError, UnicodeDecodeError):
        return usual  # running it will show the syntax error
    for name, value in assigned:
        if isinstance(value, ast.Call) and _last_name(value.func) in classes:
            return name
    return usual if usual in dict(assigned) else None


def _assignments(module: ast.Module) -> Iterator[tuple[str, ast.expr | None]]:
    for statement in module.body:
        if isinstance(statement, ast.Assign):
            yield from ((t.id, statement.value) for t in statement.targets if isinstance(t, ast.Name))
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            yield statement.target.id, statement.value


def _last_name(function: ast.expr) -> str | None:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else None
