"""``python -m backburner.cli.celery_command COMMAND APP …``: ``celery -A APP COMMAND …``, started in half the time.

``celery`` imports all its commands and plugins, an interactive shell among them, before it runs one. For the three
programs that `backburner dev` starts, and the worker's reloads, that would be two seconds of computing for nothing.
"""

import sys

import click
from celery.app.utils import find_app
from celery.bin.base import CLIContext
from kombu.utils.imports import symbol_by_name

_COMMANDS = {
    "worker": "celery.bin.worker:worker",
    "beat": "celery.bin.beat:beat",
    "flower": "flower.command:flower",
}


def main(command: str, app_name: str, *arguments: str) -> None:
    """Run one of Celery's commands; does not return."""
    app = find_app(app_name)
    run = symbol_by_name(_COMMANDS[command])
    run.params.extend(app.user_options.get(command, []))
    context = CLIContext(app=app, no_color=True, workdir=None, quiet=True)
    # Flower expects to be the command of a group.
    click.Group("celery", commands={command: run}).main([command, *arguments], prog_name="celery", obj=context)


if __name__ == "__main__":
    main(*sys.argv[1:])
