"""Celery's shutdowns by signals: warm, soft and cold, where jobs run in the process that gets the signal.

Celery does a cold shutdown in the handler of the signal, and waits there for what still runs. Coroutines on a loop that
was interrupted would not run meanwhile, and threads would wait for what the interrupted one holds just then, the lock
of a log for example, for ever. So its handlers are called by the loop. Where that does not answer, because a task
blocks it, further signals end the worker as they would have.
"""

import signal
from collections import deque
from collections.abc import Callable
from functools import partial
from traceback import walk_stack
from types import FrameType
from typing import Any

from celery import signals
from kombu.asynchronous.hub import Hub

Handler = Callable[[int, FrameType | None], Any]
Later = Callable[[Callable[[], Any], FrameType | None], bool]
"""Has something called by the loop; ``False`` if that does not run. Is told which frame was interrupted."""

_COLD = "worker_Cold"
"""What Celery calls its handlers of signals that end jobs."""


def install(pool: Any) -> None:
    """For a worker whose consumer is about to run on the loop of the asyncio pool."""

    def on_loop(handle: Callable[[], Any], _: FrameType | None) -> bool:
        if is_running := pool.loop.is_running():
            pool.loop.call_soon_threadsafe(pool.aside, handle)
        return bool(is_running)

    signals.worker_shutting_down.connect(pool.wake, weak=False)
    _wrap_all(on_loop)


def install_on_hub(hub: Any) -> None:
    """For a worker whose jobs run in threads, beside Celery's own loop."""
    waiting: deque[Callable[[], Any]] = deque()

    def turn() -> None:
        while waiting:
            waiting.popleft()()

    def in_turn(handle: Callable[[], Any], interrupted: FrameType | None) -> bool:
        # Where it connects, or waits for its pool, it may not come round for long, and hands out no jobs.
        is_running = any(frame.f_code is Hub.create_loop.__code__ for frame, _ in walk_stack(interrupted))
        if is_running:
            waiting.append(handle)
        return is_running

    hub.on_tick.add(turn)
    _wrap_all(in_turn)


def _wrap_all(later: Later) -> None:
    for number in (signal.SIGTERM, signal.SIGQUIT):
        _wrap(later, number)
    interrupted = signal.getsignal(signal.SIGINT)
    if callable(interrupted) and getattr(interrupted, "__name__", "").startswith("worker_"):

        def on_first(number: int, frame: FrameType | None) -> None:
            interrupted(number, frame)
            _wrap(later, signal.SIGINT)  # which is a cold shutdown from now on

        signal.signal(signal.SIGINT, on_first)


def _wrap(later: Later, number: int) -> None:
    stock = signal.getsignal(number)
    if callable(stock) and getattr(stock, "__name__", "") == _COLD:
        signal.signal(number, partial(_handle, later, stock))


def _handle(later: Later, stock: Handler, number: int, frame: FrameType | None) -> None:
    signal.signal(number, stock)
    if not later(partial(stock, number, None), frame):
        stock(number, frame)
