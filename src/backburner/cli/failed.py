"""`backburner failed …`: the jobs that workers could not do and kept, for whoever was paged by them."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from backburner.cli import celery_command
from backburner.errors import BackburnerError

if TYPE_CHECKING:
    from backburner.queue import FailedJobs

_LONGEST = 200
"""Characters of a reason that are shown in a line."""


def show(app: str | None, *, as_json: bool) -> None:
    """Print them, one in a line; as JSON with all that is known of each, its arguments among it."""
    shown = 0
    with _errors_in_a_sentence():
        for job in _of(app):
            shown += 1
            if as_json:
                typer.echo(json.dumps(asdict(job) | {"failed_at": job.failed_at.isoformat()}))
            else:
                detail = " ".join(job.detail.split())
                when = job.failed_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
                typer.echo(f"{job.name}  {when}  {job.task or '?'}  in {job.queue}  {job.reason}: {detail[:_LONGEST]}")
    if not (shown or as_json):
        typer.echo("No jobs are kept that could not be done.", err=True)


def retry(app: str | None, names: Iterable[str], *, every: bool) -> None:
    """Put them back into their queues. Exits with 1 if one of them was not there."""
    jobs = _of(app)
    _each(jobs.retry, _chosen(jobs, names, every=every), "back in its queue")


def forget(app: str | None, names: Iterable[str], *, every: bool) -> None:
    """Let them go. Exits with 1 if one of them was not there."""
    jobs = _of(app)
    _each(jobs.forget, _chosen(jobs, names, every=every), "forgotten")


def _of(app: str | None) -> "FailedJobs":
    found = celery_command.application(celery_command.found(app))
    jobs: FailedJobs | None = getattr(found, "failed_jobs", None)
    if jobs is None:
        raise SystemExit(
            "the application is one of stock Celery, which keeps no failed jobs: make it a backburner.Celery"
        )
    return jobs


@contextmanager
def _errors_in_a_sentence() -> Iterator[None]:
    try:
        yield
    except BackburnerError as error:
        raise SystemExit(str(error)) from None


def _chosen(jobs: "FailedJobs", names: Iterable[str], *, every: bool) -> list[str]:
    chosen = list(names)
    if every == bool(chosen):
        raise SystemExit("Name jobs, as `backburner failed list` does, or say --all.")
    with _errors_in_a_sentence():
        return [job.name for job in jobs] if every else chosen


def _each(do: Callable[[str], bool], names: Iterable[str], done: str) -> None:
    missing = False
    for name in names:
        with _errors_in_a_sentence():
            was_there = do(name)
        missing |= not was_there
        typer.echo(f"{name}  {done if was_there else 'is not among the failed ones'}")
    if missing:
        raise SystemExit(1)
