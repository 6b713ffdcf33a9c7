"""The command line, ``backburner …``.

Only its entry point is here, which says in one sentence what is missing if typer is not installed. `commands` has the
options of each command; the other modules have what they do:

    dev, check              ``backburner dev``: its start, its screen, its signals; ``dev --check``
    run, plan, service      one run of a project: what is started, how, and one program that is kept running
    project, home           what is found in the user's directory, and ``.backburner/``
    family, guard           all processes of a run, however they descend; what ends them if the parent was killed
    screen                  the output
    probe, ping             asking an HTTP server, and a worker, whether it is there
    mailserver              the mail catcher: `mailbox` keeps mails, `mailpage` shows them
    worker, failed          ``backburner worker``; ``backburner failed``, for jobs that could not be done
    celery_command          Celery's own commands, started faster
"""

__all__ = ["main"]


def main() -> None:
    """Run the command given on the command line."""
    try:
        from backburner.cli.commands import app
    except ModuleNotFoundError as missing:
        if missing.name != "typer":
            raise
        raise SystemExit('the command line needs one more package: pip install "backburner[cli]"') from None
    app()
