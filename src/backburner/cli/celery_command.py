"""``python -m backburner.cli.celery_command COMMAND APP …``: ``celery -A APP COMMAND …``, started in half the time.

``celery`` imports all its commands and plugins, including an interactive shell, before it runs one. For the three
programs that `backburner dev` starts, and for the worker's reloads, that would waste two seconds of computing.
"""

import sys
from pathlib import Path
from typing import Any

import click
from celery import Celery
from celery.app.utils import find_app
from celery.bin.base import CLIContext
from kombu.utils.imports import symbol_by_name

from backburner.cli.project import Project
from backburner.errors import ConfigError
from backburner.refusal import wrong_setting

_COMMANDS = {
    "worker": "celery.bin.worker:worker",
    "beat": "celery.bin.beat:beat",
    "flower": "flower.command:flower",
}


def main(command: str, app_name: str, *arguments: str) -> None:
    """Run one of Celery's commands. Does not return."""
    app = application(app_name)
    run = symbol_by_name(_COMMANDS[command])
    run.params.extend(app.user_options.get(command, []))
    context = CLIContext(app=app, no_color=True, workdir=None, quiet=True)
    # Flower expects to be the command of a group.
    click.Group("celery", commands={command: run}).main([command, *arguments], prog_name="celery", obj=context)


def found(name: str | None) -> str:
    """The name of the Celery application: the given one, or that of the project in the current directory, from which
    modules can be imported afterwards. If there is none, the program ends with one sentence."""
    here = str(Path.cwd())
    if here not in sys.path:  # as with `celery`; our commands are installed elsewhere
        sys.path.insert(0, here)
    if name is not None:
        return name
    try:
        project = Project.read(Path.cwd())
    except ConfigError as error:
        raise SystemExit(str(error)) from None
    if project.celery is None:
        raise SystemExit(
            f"no Celery application was found in {Path.cwd()}. Name it, as in --app package.module:variable, or in "
            'pyproject.toml: [tool.backburner] celery = "package.module:variable"'
        )
    return project.celery.name


def application(name: str) -> Any:
    """The application of this name; if there is none, or settings are invalid, the program ends with one sentence."""
    try:
        app = find_app(name)
    except ModuleNotFoundError as missing:
        if missing.name == name and ":" in name:
            raise SystemExit("there is no {1!r} in the module {0}".format(*name.split(":", 1))) from None
        if f"{name.replace(':', '.')}.".startswith(f"{missing.name}."):
            raise SystemExit(f"there is no module {missing.name!r}, where --app={name} should be") from None
        raise
    except ValueError as error:
        wrong = wrong_setting(error)
        if wrong is None:
            raise
        raise SystemExit(str(wrong)) from None
    if not isinstance(app, Celery):  # in a module Celery takes a variable `app` for its application, whatever it is
        raise SystemExit(
            f"--app={name} is a {type(app).__name__}, not a Celery application. Name its variable, as in "
            f"--app={name.partition(':')[0]}:celery_app"
        )
    return app


if __name__ == "__main__":
    main(*sys.argv[1:])
