"""A thread that calls what programs want called when their jobs have ended (Celery's ``then``).

It is not the listener's, so that what is called may take its time and wait for other jobs, while others hear of theirs.
"""

import logging
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread

log = logging.getLogger("backburner.queue")

Call = Callable[[], object]


class Callbacks:
    """Calls functions one after the other, in the order in which they come. For one thread at a time."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._calls: SimpleQueue[Call | None] | None = None

    def add(self, call: Call) -> None:
        """Have it called. Returns at once."""
        if self._calls is None:
            self._calls = SimpleQueue()
            Thread(target=_run, args=(self._calls,), name=f"backburner-callbacks {self._server}", daemon=True).start()
        self._calls.put(call)

    def stop(self) -> None:
        """End the thread, once all that came before is done, without waiting. The next call starts another one."""
        if self._calls is not None:
            self._calls.put(None)
            self._calls = None


def _run(calls: SimpleQueue[Call | None]) -> None:
    while (call := calls.get()) is not None:
        try:
            call()
        except Exception:
            log.exception("what was to be called when a job had ended has failed")
        del call  # which holds a result
