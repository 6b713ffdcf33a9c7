"""Celery's shutdowns while the loop runs: warm, soft and cold, by signals.

Celery does a cold shutdown in the handler of the signal, and waits there for what still runs; on this loop nothing
would run meanwhile. So its handlers are called by the loop, in a greenlet. Where the loop does not answer, because a
task blocks it, further signals end the worker as they would have.
"""

import signal
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

from celery import signals

Handler = Callable[[int, FrameType | None], Any]

_COLD = "worker_Cold"
"""What Celery calls its handlers of signals that end jobs."""


def install(pool: Any) -> None:
    """For a worker whose consumer is about to run on the pool's loop."""
    signals.worker_shutting_down.connect(pool.wake, weak=False)
    for number in (signal.SIGTERM, signal.SIGQUIT):
        _wrap(pool, number)
    interrupted = signal.getsignal(signal.SIGINT)
    if callable(interrupted) and getattr(interrupted, "__name__", "").startswith("worker_"):

        def on_first(number: int, frame: FrameType | None) -> None:
            interrupted(number, frame)
            _wrap(pool, signal.SIGINT)  # which is a cold shutdown from now on

        signal.signal(signal.SIGINT, on_first)


def _wrap(pool: Any, number: int) -> None:
    stock = signal.getsignal(number)
    if callable(stock) and getattr(stock, "__name__", "") == _COLD:
        signal.signal(number, partial(_later, pool, stock))


def _later(pool: Any, stock: Handler, number: int, frame: FrameType | None) -> None:
    signal.signal(number, stock)
    if pool.loop.is_running():
        pool.loop.call_soon_threadsafe(pool.aside, stock, number, None)
    else:
        stock(number, frame)
