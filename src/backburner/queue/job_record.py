"""The record that enqueueing leaves of each job on the broker's server, and that tells a job that waits from one that
nobody ever enqueued. ``enqueue.lua`` describes its lines."""

import re
from typing import Any, Final, NamedTuple, Self


class JobRecord(NamedTuple):
    """What is known of a job that was enqueued."""

    name: str | None = None
    """Of its task."""
    queue: str | None = None
    """The one that it went to last."""
    enqueued: int | None = None
    """When it first was, in milliseconds since 1970."""
    ignored: bool = False
    """Whether its result is."""

    @classmethod
    def read(cls, text: str, expires: int) -> Self:
        """Read a record that expires at this time, in milliseconds since 1970."""
        since, task, _, *queues = text.split("\n")
        name, _, ignored = task.partition("\t")
        enqueued = int(since)
        return cls(name, queues[-1], enqueued if enqueued >= 0 else expires + 1000 * enqueued, bool(ignored))


NOTHING_KNOWN: Final = JobRecord()
"""Where no records are kept, so that any job may have been enqueued."""


def line_of(task: str, *, ignored: Any = False) -> str:
    """What a record says of the task: its name and, behind a tab, whether the result is ignored."""
    return re.sub(r"[\n\t]", " ", task) + ("\tignored" if ignored else "")


def lines_of(line: str, token: str, queue: str) -> str:
    """A record, but for its first line, which says when the job was enqueued."""
    return f"{line}\n{token}\n{queue}"
