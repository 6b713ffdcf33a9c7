"""A thread that runs whatever the others do, and a way to wake it from anywhere.

Where gevent has replaced the standard library's parts, its threads are greenlets that stand still while one of them
computes; here the original parts are taken. Python's own Event holds a lock while it is set, so a signal handler or the
garbage collector, which may interrupt that very thread, must not set it; a `Bell` may be rung by both.
"""

import importlib
import sys
import threading
from collections.abc import Callable
from queue import Empty
from typing import Any


def original(module: str, name: str) -> Any:
    """Something of the standard library's, as it was before gevent replaced it."""
    monkey: Any = sys.modules.get("gevent.monkey")
    return monkey.get_original(module, name) if monkey else getattr(importlib.import_module(module), name)


def gevent_is_here() -> bool:
    """Whether gevent may have replaced something."""
    return "gevent.monkey" in sys.modules


class Bell:
    """Wakes one thread. To ring it takes no lock of Python's."""

    def __init__(self) -> None:
        self._rung = False
        self._queue = original("_queue", "SimpleQueue")()

    def ring(self) -> None:
        """Wake the thread, or keep it from falling asleep. From any thread, signal handler or finalizer."""
        if not self._rung:
            self._rung = True
            self._queue.put(None)

    def wait(self, seconds: float) -> bool:
        """Whether it was rung since it was last waited for, before so much time has passed."""
        try:
            self._queue.get(timeout=max(0.0, seconds))
        except Empty:
            return False
        self._rung = False
        return True


class Thread:
    """A thread that does not keep the process from ending."""

    def __init__(self, run: Callable[[], None], name: str) -> None:
        self._run = run
        self._name = name
        self._ended = original("_thread", "allocate_lock")()
        self._ident: int | None = None

    @property
    def is_current(self) -> bool:
        """Whether the caller runs in it."""
        ident: int = original("_thread", "get_ident")()
        return ident == self._ident

    def start(self) -> None:
        """Start it. Once."""
        self._ended.acquire()
        try:
            if gevent_is_here():
                original("_thread", "start_new_thread")(self._main, ())
            else:
                # As this one, with a name for those who look at processes.
                threading.Thread(target=self._main, name=self._name, daemon=True).start()
        except BaseException:
            self._ended.release()  # there are too many threads, and none waits for this one
            raise

    def join(self, seconds: float) -> bool:
        """Wait until it has ended. ``False`` if it has not, after so much time."""
        if not self._ended.acquire(timeout=seconds):
            return False
        self._ended.release()
        return True

    def _main(self) -> None:
        self._ident = original("_thread", "get_ident")()
        try:
            self._run()
        finally:
            self._ended.release()
