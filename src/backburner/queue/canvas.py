"""The jobs that a canvas enqueues later: those behind the first of a chain, and the body of a chord.

Their ids are known from the start, and Celery's `PENDING` means them, too. So each gets its record when the canvas is
applied, and whoever knows no more than its id can wait for it.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import celery
from celery._state import get_current_worker_task

from backburner.queue.job_record import line_of


def record_later(app: celery.Celery, options: Mapping[str, Any]) -> None:
    """Record the jobs that will follow one that is enqueued with these options, unless they have a record."""
    running = get_current_worker_task()
    following: Any = running.request.chain if running else None
    # What follows the running job was recorded with it. Otherwise each job of a chain would record all behind it.
    recorded = {each["options"].get("task_id") for each in following or ()} - {None}
    signatures = [each for each in options.get("chain") or () if each["options"].get("task_id") not in recorded]
    if (body := options.get("chord")) and not options.get("group_index"):  # the first of its header, or one added to it
        signatures.append(body)
    if not signatures:
        return
    lines = {job_id: _line(app, task) for job_id, task in _jobs(signatures)}
    with app.producer_or_acquire(options.get("producer")) as producer:
        if lines and (record := getattr(producer.channel, "record_later", None)):
            record(lines)


def _jobs(signatures: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Their ids, with the signature of the task."""
    for signature in signatures:
        options, task = signature["options"], signature
        kind, inner = signature.get("subtask_type"), signature["kwargs"]
        if kind == "chord":
            header = inner["header"]
            yield from _jobs([*(header if isinstance(header, list | tuple) else [header]), inner["body"]])
        elif kind in {"chain", "group"}:
            yield from _jobs(inner["tasks"])
        if kind == "chain" and inner["tasks"]:
            task = inner["tasks"][-1]  # its id is the chain's
        if kind not in {"chord", "group"} and (job_id := options.get("task_id")):
            yield job_id, task
        if body := options.get("chord"):
            yield from _jobs([body])


def _line(app: celery.Celery, signature: Mapping[str, Any]) -> str:
    name, ignored = signature["task"], signature["options"].get("ignore_result")
    return line_of(name, ignored=getattr(app.tasks.get(name), "ignore_result", False) if ignored is None else ignored)
