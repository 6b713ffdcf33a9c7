"""Which programs a project needs during development, and how each is started. Pure: nothing is started here."""

import os
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backburner.cli.project import Found
from backburner.cli.service import Program

PROBE_PATH = "/.well-known/backburner-dev"
"""The path requested from the API until it answers, with any status; log lines that contain it are not shown."""

_GRACE = 2  # seconds that uvicorn gives open connections
_ROOT_WARNING = "You're running the worker with superuser privileges"


def api(app: Found, host: str, port: int, *, reload: bool) -> Program:
    """The web application."""
    return Program(
        "api",
        python(
            *("uvicorn", app.name, "--host", host, "--port", str(port)),
            *("--timeout-graceful-shutdown", str(_GRACE)),
            *(("--reload",) if reload else ()),
        ),
        ready_url=local_url(host, port) + PROBE_PATH,
    )


def local_url(host: str, port: int) -> str:
    """The URL, on this machine, of a server that listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # compared, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def worker(celery: Found, options: Sequence[str] = (), *, reload: bool) -> Program:
    """A Celery worker, with ``--reload`` if its application supports that."""
    reload = reload and celery.reloads
    # Looking for other workers takes a second, and there are none here.
    alone = ("--without-mingle", "--without-gossip")
    return Program(
        "worker",
        _celery("worker", celery, "--loglevel=info", *alone, *(("--reload",) if reload else ()), *options),
        ready_line=re.compile(r"\S+@\S+ ready\."),
        hurry=signal.SIGTERM if reload else signal.SIGQUIT,
    )


def beat(celery: Found, schedule: Path, *, reload: bool) -> Program:
    """Celery's clock for periodic jobs."""
    command = _celery("beat", celery, "--loglevel=info", f"--schedule={schedule}")
    return Program(
        "beat",
        python("watchfiles", "--filter=python", "--verbosity=warning", shlex.join(command)) if reload else command,
        ready_line=re.compile(r"beat: Starting"),
    )


def flower(celery: Found, port: int) -> Program:
    """Flower, which shows workers and jobs."""
    return Program(
        "flower",
        # Its warnings are about workers that it does not see while they restart.
        _celery("flower", celery, "--address=127.0.0.1", f"--port={port}", "--logging=error"),
        ready_url=f"http://127.0.0.1:{port}/healthcheck",
    )


def migrations() -> Program:
    """Migrate the database to the newest version."""
    return Program("alembic", python("alembic", "upgrade", "head"))


def ping(celery: Found, queue: str | None) -> Program:
    """Have the worker do one job."""
    return Program("job", python("backburner.cli.ping", celery.name, *([queue] if queue else [])))


def _celery(command: str, app: Found, *options: str) -> list[str]:
    return python("backburner.cli.celery_command", command, app.name, *options)


def python(*arguments: str) -> list[str]:
    """The command line that runs a module with this interpreter."""
    return [sys.executable, "-m", *arguments]


def environment(variables: dict[str, str]) -> dict[str, str]:
    """The environment of the programs: ours and `variables`."""
    ours = dict(os.environ)
    if os.geteuid() == 0:  # as in a container, where Celery's warning against it does not help
        warnings = ours.get("PYTHONWARNINGS")
        ours["PYTHONWARNINGS"] = f"{warnings},ignore:{_ROOT_WARNING}" if warnings else f"ignore:{_ROOT_WARNING}"
    return {**ours, "PYTHONUNBUFFERED": "1", **variables}


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports to prefer; None means any free one."""

    host: str = "127.0.0.1"
    server: bool = True
    """Whether the embedded server is to have the port of the settings."""
    api: int | None = 8000
    flower: int | None = 5555
    smtp: int | None = 1025
    mail: int | None = 8025

    @classmethod
    def any_free(cls) -> "Ports":
        return cls(server=False, api=None, flower=None, smtp=None, mail=None)
