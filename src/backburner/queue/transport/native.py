"""A native thread, also where gevent has patched the standard library, and a `Bell` that wakes it from anywhere.

Under gevent, "threads" are greenlets that all stand still while one of them computes; leases must be renewed all the
same, so the unpatched originals are used here. `threading.Event` takes a lock while it is set, so a signal handler or
finalizer that interrupts the waiting thread could deadlock on it; ringing a `Bell` takes none.
"""

import importlib
import sys
import threading
from collections.abc import Callable
from queue import Empty
from typing import Any


def original(module: str, name: str) -> Any:
    """An object of the standard library, as it was before gevent patched it."""
    monkey: Any = sys.modules.get("gevent.monkey")
    return monkey.get_original(module, name) if monkey else getattr(importlib.import_module(module), name)


def gevent_is_here() -> bool:
    """Whether gevent may have patched the standard library."""
    return "gevent.monkey" in sys.modules


class Bell:
    """Wakes one thread. Ringing it takes no Python lock."""

    def __init__(self) -> None:
        self._rung = False
        self._queue = original("_queue", "SimpleQueue")()

    def ring(self) -> None:
        """Wake the thread, or make its next `wait` return at once. Safe in any thread, signal handler or finalizer."""
        if not self._rung:
            self._rung = True
            self._queue.put(None)

    def wait(self, seconds: float) -> bool:
        """Wait up to so many seconds. Whether the bell was rung since the last `wait`."""
        try:
            self._queue.get(timeout=max(0.0, seconds))
        except Empty:
            return False
        self._rung = False
        return True


class Thread:
    """A daemon thread: it does not keep the process from ending."""

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
        """Start the thread; may be called once."""
        self._ended.acquire()
        try:
            if gevent_is_here():
                original("_thread", "start_new_thread")(self._main, ())
            else:
                # The same, with a name that debuggers and `ps` show.
                threading.Thread(target=self._main, name=self._name, daemon=True).start()
        except BaseException:
            self._ended.release()  # the system refused another thread; nobody must wait for this one
            raise

    def join(self, seconds: float) -> bool:
        """Wait up to so many seconds for the thread to end. Whether it has."""
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
