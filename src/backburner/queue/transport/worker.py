"""What the transport knows about the Celery worker in this process, if there is one: Celery tells it by signals.

A program that consumes with kombu alone works too; then nothing here is known, and little is lost by it.
"""

from collections.abc import Iterable
from typing import Any

from celery import current_app, signals
from celery.concurrency import solo
from celery.worker import state
from kombu.utils import symbol_by_name

_consumer: Any = None
"""Celery's consumer, once it is ready."""

stopping = False
"""Whether the worker was told to stop."""


@signals.worker_ready.connect(weak=False)
def _ready(sender: Any, **_: Any) -> None:
    global _consumer, stopping  # there is one worker in a process
    _consumer, stopping = sender, False


@signals.worker_shutting_down.connect(weak=False)
def _shutting_down(**_: Any) -> None:
    global stopping  # noqa: PLW0603  # as above
    stopping = True


def count_crashes() -> None:
    """Have the app that a worker would run here tell which messages kill processes of its pool."""
    # Imported here, for only workers need billiard.
    from backburner.queue.transport.request import counting

    task: Any = current_app.Task
    task.Request = counting(symbol_by_name(task.Request))


def is_here() -> bool:
    """Whether a worker runs in this process."""
    return _consumer is not None


def slots() -> int:
    """How many tasks run at a time."""
    return max(1, getattr(getattr(_consumer, "pool", None), "num_processes", None) or 1)


def knows(task: str) -> bool:
    """Whether a task of that name is registered. Without a worker every name is good."""
    return _consumer is None or task in _consumer.strategies


def is_busy_in_the_loop() -> bool:
    """Whether the thread that also serves the connection runs a task, for as long as that takes."""
    return isinstance(getattr(_consumer, "pool", None), solo.TaskPool) and bool(running())


def running() -> Iterable[Any]:
    """The requests that the pool has started."""
    return tuple(state.active_requests)
