"""Celery's shutdowns by signals (warm, soft and cold) where running jobs need the thread that gets the signal.

Celery does a cold shutdown in the signal handler, and waits there for running jobs. Meanwhile coroutines on an
interrupted loop would not run, threads could wait for ever for a lock that the interrupted code holds (that of a log,
for example), and nobody would read what the processes of a pool report. So the loop calls Celery's handlers. If a task
blocks the loop, so that it does not get to that, further signals end the worker as they would have without this.
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
"""Have the loop call a function; returns ``False`` if the loop does not run. Also takes the interrupted frame."""

_COLD = "worker_Cold"
"""The names of Celery's handlers of signals that end jobs."""


def install(pool: Any) -> None:
    """Wrap the signal handlers of a worker whose consumer is about to run on the loop of the asyncio pool."""

    def on_loop(handle: Callable[[], Any], _: FrameType | None) -> bool:
        if is_running := pool.loop.is_running():
            pool.loop.call_soon_threadsafe(pool.aside, handle)
        return bool(is_running)

    signals.worker_shutting_down.connect(pool.wake, weak=False)
    _wrap_all(on_loop)


class OnHub:
    """Does the same for a worker whose jobs run in threads or processes, next to Celery's own event loop, the hub."""

    def __init__(self, hub: Any) -> None:
        self._hub = hub
        self._waiting: deque[Callable[[], Any]] = deque()
        self._loop: Any = None

    def install(self) -> None:
        """Have the hub call the handlers from now on."""
        self._hub.on_tick.add(self._turn)
        # A hub that has lost its connection may not turn for a long time.
        self._hub.on_close.add(lambda _: self._call_all(None))
        _wrap_all(self._in_turn)

    def pause(self, seconds: float) -> None:
        """Wait in a handler. If the hub has called it, the hub turns meanwhile, and so hears of jobs that end."""
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
        # While it connects, or waits for its pool, it may not turn for a long time, and hands out no jobs.
        is_running = any(frame.f_code is Hub.create_loop.__code__ for frame, _ in walk_stack(interrupted))
        if is_running:
            self._waiting.append(handle)
        return is_running

    def _turn(self) -> None:
        if self._waiting:
            self._call_all(self._hub.create_loop())

    def _call_all(self, loop: Any) -> None:
        while self._waiting:
            handle, self._loop = self._waiting.popleft(), loop
            try:
                handle()
            finally:
                self._loop = None
            state.maybe_shutdown()  # before the hub finds out that a connection was lost meanwhile


def _nothing() -> None:
    """Wake the loop."""


def _wrap_all(later: Later) -> None:
    for number in (signal.SIGTERM, signal.SIGQUIT):
        _wrap(later, number)
    interrupted = signal.getsignal(signal.SIGINT)
    if callable(interrupted) and getattr(interrupted, "__name__", "").startswith("worker_"):

        def on_first(number: int, frame: FrameType | None) -> None:
            interrupted(number, frame)
            _wrap(later, signal.SIGINT)  # from now on, it means a cold shutdown

        signal.signal(signal.SIGINT, on_first)


def _wrap(later: Later, number: int) -> None:
    stock = signal.getsignal(number)
    if callable(stock) and getattr(stock, "__name__", "") == _COLD:
        signal.signal(number, partial(_handle, later, stock))


def _handle(later: Later, stock: Handler, number: int, frame: FrameType | None) -> None:
    signal.signal(number, stock)
    if not later(partial(stock, number, None), frame):
        stock(number, frame)
