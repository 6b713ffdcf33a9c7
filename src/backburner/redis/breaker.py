"""A circuit breaker: leaves a server alone while it is ill, so that calls cost microseconds instead of a time budget.

Closed: calls go through. The first failure opens the breaker for a tenth of a second, in which calls fail at once. Then
a single call is let through as a probe: success closes the breaker, failure opens it again for twice as long, up to a
second. So a server that is back is in use again within a second and a time budget. Thread-safe; knows nothing of Redis.
"""

import time
from collections.abc import Callable
from threading import Lock

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 1.0


class Breaker:
    """The state of one server, shared by all connections to it in this process."""

    def __init__(
        self,
        *,
        on_open: Callable[[float, Exception], None] = lambda *_: None,
        on_close: Callable[[float], None] = lambda *_: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_open` is given the seconds until the first probe, and the cause; `on_close` the seconds it was open."""
        self.open = False
        self.cause: Exception | None = None
        """Why it is open."""
        self._trying = False
        self._pause = FIRST_PAUSE
        self._opened_at = 0.0
        self._retry_at = 0.0
        self._lock = Lock()
        self._clock = clock
        self._on_open = on_open
        self._on_close = on_close

    def allows(self) -> bool:
        """Whether to call the server now. While the breaker is open, true for one caller after each pause."""
        if not self.open:
            return True
        now = self._clock()
        with self._lock:
            if now < self._retry_at:
                return False
            self._trying = True
            # Should this caller never report back (cancelled, killed), another may try after a while.
            self._retry_at = now + LONGEST_PAUSE
            return True

    def failed(self, cause: Exception) -> None:
        """Report that a call has failed."""
        now = self._clock()
        with self._lock:
            newly = not self.open
            if newly:
                self._pause = FIRST_PAUSE
                self._opened_at = now
            elif self._trying:
                self._pause = min(self._pause * 2, LONGEST_PAUSE)
            else:
                return  # a call that began before the breaker opened tells nothing new
            self.open = True
            self.cause = cause
            self._trying = False
            self._retry_at = now + self._pause
        if newly:
            self._on_open(self._pause, cause)

    def succeeded(self) -> None:
        """Report that a call has succeeded."""
        if not self.open:
            return
        with self._lock:
            if not self.open:
                return
            self.open = self._trying = False
            self.cause = None
            seconds = self._clock() - self._opened_at
        self._on_close(seconds)
