"""The expiry queue of a memory store: which entries expire, soonest first.

Entries that expire at about the same time, to within a sixty-fourth of their lifetime, form a group. So there are a few
thousand groups at most, and no step takes longer with a million entries. A group stays until its time has come, even if
its entries are gone.
"""

import heapq
from math import frexp, inf, ldexp

from backburner.cache.entry import Entry


class Ends:
    """Keys of entries, grouped by when they expire."""

    def __init__(self) -> None:
        self._groups: dict[float, set[str]] = {}
        self._order: list[float] = []
        self.soonest = inf
        """No entry expires before this time."""

    def add(self, key: str, entry: Entry, end: float) -> None:
        """Note when an entry expires, or stops being of use."""
        if end != inf:
            width = ldexp(1.0, frexp(end - entry.created)[1] - 7)
            end += width - end % width
        group = self._groups.get(end)
        if group is None:
            group = self._groups[end] = set()
            heapq.heappush(self._order, end)
            self.soonest = self._order[0]
        group.add(key)
        entry.group = group

    def pop(self, before: float = inf) -> str | None:
        """Remove and return the key of an entry that expires first; ``None`` if none expires before the given time."""
        order = self._order
        while order and order[0] <= before:
            group = self._groups[order[0]]
            if group:
                return group.pop()
            del self._groups[heapq.heappop(order)]
            self.soonest = order[0] if order else inf
        return None

    def clear(self) -> None:
        """Forget all."""
        self._groups.clear()
        self._order.clear()
        self.soonest = inf
