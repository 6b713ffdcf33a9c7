"""`backburner worker`: Celery's worker, with the application found by itself and a banner of a few lines.

All options are those of ``celery worker`` and are passed on unchanged. It is Celery's own command that runs.
"""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import typer
from celery import concurrency, signals

from backburner.cli import celery_command
from backburner.queue import supervised
from backburner.redis.url import mask_password

_INTERNAL = ("celery.", "backburner.")
_ONE = "one job at a time"
_UNITS = {"prefork": "{} processes", "threads": "{} threads", "solo": _ONE}
_NUMBER = supervised.number()  # among several; read early, because a worker drops it when it starts
_LONGEST = 100
"""About how many characters a line has."""


def worker(app: str | None, options: Sequence[str]) -> None:
    """Run a worker until it is told to stop. Does not return.

    Args:
        app: the Celery application, as ``package.module:variable``; ``None`` for the one of the project in this
            directory.
        options: of ``celery worker``.
    """
    name = celery_command.found(app)
    signals.celeryd_after_setup.connect(_show, weak=False)
    if not any(option.partition("=")[0] in {"--loglevel", "-l"} for option in options):
        options = ("--loglevel=info", *options)
    celery_command.main("worker", name, *options)


def _show(instance: Any, **_: Any) -> None:
    if _NUMBER > 1:
        return  # the first one has printed the banner
    rows = list(_rows(instance))
    width = max(len(name) for name, _ in rows)
    typer.echo(f"\n  {typer.style('backburner worker', bold=True)}   {instance.hostname}\n")
    for name, what in rows:
        first, *more = _wrapped(what)
        typer.echo(f"  {typer.style(f'{name:<{width}}', fg='green')}   {first}")
        for line in more:
            typer.echo(f"  {'':<{width}}   {line}")
    typer.echo("\n  Ctrl-C finishes what runs and stops.\n")
    sys.stdout.flush()


def _rows(instance: Any) -> Iterable[tuple[str, str]]:
    """What is worth knowing about a worker, by name."""
    app = instance.app
    conf = app.conf
    tasks = sorted(name for name in app.tasks if not name.startswith(_INTERNAL))
    yield "queues", ", ".join(sorted(app.amqp.queues.consume_from))
    yield "tasks", f"{len(tasks)}: {', '.join(tasks)}" if tasks else "none: are their modules named in include=[…]?"
    processes = instance.options.get("processes") or 1
    yield "pool", f"{_pool(instance)}, in each of {processes} processes" if processes > 1 else _pool(instance)
    yield "broker", mask_password(str(conf.broker_read_url or conf.broker_url))
    yield "results", mask_password(str(conf.result_backend or "none are kept"))
    if port := instance.options.get("health_port"):
        others = f", … :{port + processes - 1}/health" if processes > 1 else ""
        yield "health", f"http://{instance.options.get('health_host')}:{port}/health{others}"


def _pool(instance: Any) -> str:
    aliases: Any = vars(concurrency)["ALIASES"]  # the stubs leave it out
    names = {where.replace(":", "."): name for name, where in aliases.items() if where and name != "processes"}
    kind = instance.pool_cls
    name = names.get(f"{kind.__module__}.{kind.__qualname__}", kind.__qualname__)
    unit = _ONE if instance.concurrency == 1 else _UNITS.get(name, "{} jobs at a time")
    return f"{name}, {unit.format(f'{instance.concurrency:,}')}"


def _wrapped(text: str) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        if len(lines[-1]) + len(word) > _LONGEST:
            lines.append("")
        lines[-1] += f"{word} "
    return [line.rstrip() for line in lines]
