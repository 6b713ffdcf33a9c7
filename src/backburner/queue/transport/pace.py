"""How many messages a worker takes at a time: as many as it begins within a moment.

A worker that takes only what it has room for makes a request for each job, which takes longer than a small job does.
While jobs are short, taking some ahead keeps nothing waiting: at first one, then twice as many each time, like TCP's
slow start. But later jobs may be longer. So messages that have not begun `LATEST` seconds after they were taken go
back, and it starts again at one.
"""

from typing import Final

_SOON: Final = 0.01
"""Seconds within which all messages taken at a time should have begun."""
LATEST: Final = 5 * _SOON


class Pace:
    """The pace of one consumer. All times are monotonic, in seconds."""

    def __init__(self) -> None:
        self._ahead = self._taken = 0
        self._since = 0.0

    def ask(self, now: float) -> int:
        """How many to request when there is room for one, so that all that were taken have begun."""
        if self._taken:
            in_time = int(self._taken * _SOON / max(now - self._since, 1e-6))
            self._ahead = min(in_time, 2 * self._taken)
        return self._ahead

    def took(self, count: int, now: float) -> None:
        """Note that so many were taken."""
        self._taken, self._since = count, now

    def stop(self) -> None:
        """Start again at one: there are no more messages, or they take too long."""
        self._ahead = self._taken = 0

    def overdue_in(self, now: float) -> float:
        """Seconds until what has not begun is to go back."""
        return self._since + LATEST - now
