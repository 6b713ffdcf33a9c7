"""Celery's shutdowns by signals: warm, soft and cold, where jobs need the thread that gets the signal.

Celery does a cold shutdown in the handler of the signal, and waits there for what still runs. Coroutines on a loop that
was interrupted would not run meanwhile, threads would wait for what the interrupted one holds just then, the lock of a
log for example, for ever, and nobody would hear what processes have to tell. So its handlers are called by the loop.
Where that does not answer, because a task blocks it, further signals end the worker as they would have.
"""

import logging
import signal
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from traceback import walk_stack
from types import FrameType
from typing import Any

from celery import signals
from celery.worker import state
from kombu.asynchronous.hub import Hub

log = logging.getLogger("backburner.queue")

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


class OnHub:
    """The same for a worker whose jobs run in threads or processes, beside Celery's own loop."""

    def __init__(self, hub: Any) -> None:
        self._hub = hub
        self._waiting: deque[Callable[[], Any]] = deque()
        self._loop: Any = None

    def install(self) -> None:
        """Have the loop call the handlers from now on."""
        self._hub.on_tick.add(self._turn)
        # Of a loop that has lost its connection; it may not come round for long.
        self._hub.on_close.add(lambda _: self._handle(None))
        _wrap_all(self._in_turn)

    def pause(self, seconds: float) -> None:
        """For a handler that waits: let the loop hear of jobs that end, if it is that which has called."""
        if self._loop is None:
            time.sleep(seconds)
            return
        self._hub.call_later(seconds, _nothing)
        try:
            next(self._loop, None)
        except Exception as error:  # noqa: BLE001  # a connection was lost, and the worker ends anyway
            log.warning("while the worker waits for its jobs: %r", error)
            self._loop = None

    def _in_turn(self, handle: Callable[[], Any], interrupted: FrameType | None) -> bool:
        # Where it connects, or waits for its pool, it may not come round for long, and hands out no jobs.
        is_running = any(frame.f_code is Hub.create_loop.__code__ for frame, _ in walk_stack(interrupted))
        if is_running:
            self._waiting.append(handle)
        return is_running

    def _turn(self) -> None:
        if self._waiting:
            self._handle(self._hub.create_loop())

    def _handle(self, loop: Any) -> None:
        while self._waiting:
            handle, self._loop = self._waiting.popleft(), loop
            try:
                handle()
            finally:
                self._loop = None
            state.maybe_shutdown()  # before the loop finds out that a connection was lost meanwhile


def _nothing() -> None:
    """Wake the loop."""


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
