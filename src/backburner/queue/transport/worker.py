"""What the transport knows about the Celery worker in this process, if there is one: Celery tells it by signals.

A program that consumes with kombu alone works, too; then nothing is known here, which matters little.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from celery import signals
from celery.concurrency import solo
from celery.worker import state

from backburner.queue.keys import Keys

DRIVER: Final = "backburner"
"""What our transports call themselves."""
_LOOK: Final = 0.05
"""Seconds between checks, in a soft shutdown, whether all jobs have ended."""

_SILENT: Final = 5.0
"""Seconds without an answer after which a server counts as silent: leases are renewed more often."""

_consumer: Any = None
"""Celery's consumer, once it is ready."""

_teller: Any = None

stopping = False
"""Whether the worker has been told to stop."""

on_stop: set[Callable[[], object]] = set()
"""Callbacks for when the worker is told to stop; called in a signal handler."""


@dataclass(slots=True)
class Signs:
    """When these last happened, in monotonic seconds; ``None`` for what need not happen now."""

    contact: float | None = None
    """The server answered."""
    tick: float | None = None
    """The event loop ran."""
    claim: float | None = None
    """Jobs were asked for, and the server answered; or there was no room for any."""


signs = Signs()


@signals.worker_ready.connect(weak=False)
def _ready(sender: Any, **_: Any) -> None:
    global _consumer, _teller, stopping  # there is one worker in a process
    # Imported here, for only workers need billiard.
    from celery.concurrency import prefork, thread

    from backburner.queue import shutdown
    from backburner.queue.transport.failures import Teller

    _consumer, _teller, stopping = sender, Teller(sender.app), False
    pause: Callable[[float], None] = time.sleep
    is_ours = getattr(sender.connection.transport, "driver_name", "") == DRIVER
    if sender.hub is not None and isinstance(sender.pool, prefork.TaskPool | thread.TaskPool):
        loop = shutdown.OnHub(sender.hub)
        loop.install()
        if is_ours:  # another transport would deliver more
            pause = loop.pause
    sender.controller.wait_for_soft_shutdown = lambda: _soft_shutdown(sender.app.conf, pause)
    if is_ours:
        # When a connection is lost, Celery has the pool forget what no process has reported to have begun: the broker
        # would deliver it again. It may have been begun nevertheless, and our leases outlive the connection. So there
        # is no reason either to end what runs, as if it could not be acknowledged any more.
        sender.pool.flush = None
        sender.app.conf.worker_cancel_long_running_tasks_on_connection_loss = False
        _watch_again(getattr(sender.pool, "_pool", None))


def _watch_again(processes: Any) -> None:
    """After a reconnect, have Celery also watch those processes of its pool that have ended unnoticed.

    The system reports that a process has ended a moment before it reports how. If Celery asks in between, it stops
    watching the process, and checks again some seconds later. If it has to reconnect meanwhile, the worker would end,
    because the process has no file descriptor any more.
    """
    track = getattr(processes, "_track_child_process", None)
    if track is None:
        return

    def tracked(process: Any, hub: Any) -> None:
        if process.__dict__.get("_sentinel_poll", ...) is None:
            del process._sentinel_poll  # noqa: SLF001  # so that it is made anew
        track(process, hub)

    processes._track_child_process = tracked  # noqa: SLF001  # nothing public does


@signals.worker_shutting_down.connect(weak=False)
def _shutting_down(**_: Any) -> None:
    global stopping  # noqa: PLW0603  # as above
    stopping = True
    for call in tuple(on_stop):
        call()


def _soft_shutdown(conf: Any, pause: Callable[[float], None]) -> None:
    """Give running jobs some time to end. Celery does so without announcing it, and goes on taking messages."""
    _shutting_down()
    if isinstance(_consumer.pool, solo.TaskPool):
        return  # the job needs this thread, which is waiting here
    seconds = conf.worker_soft_shutdown_timeout or 0
    wait = getattr(_consumer.pool, "wait", None)
    if wait is not None and wait(seconds):
        return  # in the asyncio pool, whose jobs need this thread
    until = time.monotonic() + seconds
    while time.monotonic() < until and (state.active_requests or conf.worker_enable_soft_shutdown_on_idle):
        # The hub would wait for the answer of a silent server, each time that it turns.
        is_silent = signs.contact is None or time.monotonic() - signs.contact > _SILENT
        (time.sleep if is_silent else pause)(_LOOK)


def is_here() -> bool:
    """Whether a worker runs in this process."""
    return _consumer is not None


def queues() -> list[str]:
    """Names of the queues that jobs are taken from."""
    taking = getattr(_consumer, "task_consumer", None)
    return sorted(queue.name for queue in taking.queues) if taking is not None else []


def is_connected() -> bool:
    """Whether Celery has a connection to the broker, as far as it knows."""
    connection = getattr(_consumer, "connection", None)
    return connection is not None and bool(connection.connected)


def slots() -> int:
    """How many tasks run at a time."""
    return max(1, getattr(getattr(_consumer, "pool", None), "num_processes", None) or 1)


def knows(task: str) -> bool:
    """Whether a task of this name is registered. Without a worker, every name counts as known."""
    return _consumer is None or task in _consumer.strategies


def is_busy_in_the_loop() -> bool:
    """Whether the thread that also serves the connection runs a task, for as long as that takes."""
    pool = getattr(_consumer, "pool", None)
    return (isinstance(pool, solo.TaskPool) or getattr(pool, "is_green", False)) and bool(state.active_requests)


def _in_the_loop() -> bool:
    """Whether the event loop's thread keeps Celery's books, and requests more messages when a job has ended."""
    pool = getattr(_consumer, "pool", None)
    return isinstance(pool, solo.TaskPool) or hasattr(pool, "serve")


def starts_elsewhere() -> bool:
    """Whether tasks run in separate processes, which get a job just before they run it."""
    return bool(getattr(getattr(_consumer, "pool", None), "uses_semaphore", False))


def needs_no_acknowledgement() -> bool:
    """Whether Celery's own acknowledgement can be skipped for a message that the transport has already acknowledged.

    Otherwise it wakes the event loop, or makes room again in a worker that had to reconnect.
    """
    return _in_the_loop() and _consumer._maximum_prefetch_restored is True  # noqa: SLF001  # nobody else tells


def reserved() -> Sequence[Any]:
    """The requests that have not ended, in the order in which they came."""
    return tuple(state.requests.values())


def tell_failures(connect: Callable[..., Any], keys: Keys) -> None:
    """Have the failures of jobs that failed without having run recorded as their results."""
    if _teller is not None and not stopping:
        _teller.tell(connect, keys)
