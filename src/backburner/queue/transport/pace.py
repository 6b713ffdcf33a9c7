"""How many messages a worker takes at a time: as many as it begins within a moment.

A worker that takes no more than it has room for asks the server for each job, which takes longer than a small job does.
While jobs are short, nothing is kept waiting by taking some ahead: at first one, then twice as many each time, like TCP
does. Jobs may turn out to be longer than those before. So what has not begun `LATEST` seconds after it was taken goes
back, and all begins anew.
"""

from typing import Final

_SOON: Final = 0.01
"""Seconds within which all that is taken at a time is to have begun."""
LATEST: Final = 5 * _SOON


class Pace:
    """That of one consumer. All times are monotonic, in seconds."""

    def __init__(self) -> None:
        self._ahead = self._taken = 0
        self._since = 0.0

    def ask(self, now: float) -> int:
        """How many to ask for, if there is room for one: all that was taken has begun."""
        if self._taken:
            in_time = int(self._taken * _SOON / max(now - self._since, 1e-6))
            self._ahead = min(in_time, 2 * self._taken)
        return self._ahead

    def took(self, count: int, now: float) -> None:
        """So many were taken."""
        self._taken, self._since = count, now

    def stop(self) -> None:
        """There is nothing more to be had, or it takes too long: begin anew."""
        self._ahead = self._taken = 0

    def overdue_in(self, now: float) -> float:
        """Seconds until what has not begun is to go back."""
        return self._since + LATEST - now
