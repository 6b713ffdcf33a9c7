"""What can be typed after ``backburner``. Each command imports what it needs only when it runs."""

from typing import Annotated

import typer

# Without rich, whose import would triple the time of --help.
app = typer.Typer(
    help="Caching and background jobs for FastAPI: keep it warm, cook it later.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


App = Annotated[str | None, typer.Option("--app", "-A", help="The Celery application, if it is not found.")]


@app.command()
def dev(
    check: Annotated[
        bool, typer.Option("--check", help="Start everything beside, send one job and one request through, stop.")
    ] = False,
    migrate: Annotated[
        bool, typer.Option("--migrate", help="With --check: migrate also a database that is not SQLite.")
    ] = False,
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of the API; if it is busy, the next free one.")
    ] = 8000,
    host: Annotated[str, typer.Option(help="Address the API listens on.")] = "127.0.0.1",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin with nothing: forget all that is kept under .backburner/.")
    ] = False,
) -> None:
    """Run the project in this directory: server, migrations, API, worker, beat, Flower and a mail catcher.

    Nothing needs to be installed as a service. Ctrl-C stops everything in order; a second Ctrl-C stops it at once.
    """
    from importlib.util import find_spec

    wanted = ("uvicorn", "celery", "flower", "aiosmtpd", "watchfiles", "psutil", "rich", "starlette")
    if missing := [name for name in wanted if find_spec(name) is None]:
        typer.echo(f'`backburner dev` needs {", ".join(missing)}: pip install "backburner[dev]"', err=True)
        raise typer.Exit(1)
    from backburner.cli import check as checking
    from backburner.cli import dev as running

    raise typer.Exit(checking.check(migrate=migrate) if check else running.dev(host, port, fresh=fresh))


@app.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    options_metavar="[OPTIONS OF celery worker]",
)
def worker(
    context: typer.Context,
    celery_app: App = None,
) -> None:
    """Run a Celery worker for the project in this directory: --queues, --pool, --concurrency, --health-port, --reload …

    All options of `celery worker` are understood; `backburner worker --help` lists them.
    """
    _need_celery("worker")
    from backburner.cli import worker as working

    working.worker(celery_app, context.args)


failed = typer.Typer(
    help="Jobs that workers could not do, and kept with the reason: look at them, try them again, let them go.",
    no_args_is_help=True,
)
app.add_typer(failed, name="failed")

Names = Annotated[list[str] | None, typer.Argument(help="Jobs, as `list` names them.", show_default=False)]
Every = Annotated[bool, typer.Option("--all", help="All of them.")]


@failed.callback()
def _failed() -> None:
    _need_celery("failed")


@failed.command("list")
def list_failed(
    celery_app: App = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="All that is known of each, a line of JSON; arguments of jobs are in it.")
    ] = False,
) -> None:
    """Show them: name, when, task, queue, and why."""
    from backburner.cli import failed as commands

    commands.show(celery_app, as_json=as_json)


@failed.command()
def retry(names: Names = None, celery_app: App = None, every: Every = False) -> None:
    """Put them back, each to the end of its queue, as it was."""
    from backburner.cli import failed as commands

    commands.retry(celery_app, names or (), every=every)


@failed.command()
def forget(names: Names = None, celery_app: App = None, every: Every = False) -> None:
    """Let them go, for good."""
    from backburner.cli import failed as commands

    commands.forget(celery_app, names or (), every=every)


def _need_celery(command: str) -> None:
    from importlib.util import find_spec

    if find_spec("celery") is None:
        typer.echo(f'`backburner {command}` needs celery: pip install "backburner[celery]"', err=True)
        raise typer.Exit(1)


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as version_of

    typer.echo(f"backburner {version_of('backburner')}")
