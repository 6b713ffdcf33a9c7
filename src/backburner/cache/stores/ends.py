"""When entries end, soonest first.

An entry is in a group with those that end at about the same time: to a sixty-fourth of how long it lives. So there are
some thousands of groups at most, whatever there is to keep, and no step takes longer with a million entries. A group
stays until its time has come, though its entries may be gone.
"""

import heapq
from math import frexp, inf, ldexp

from backburner.cache.entry import Entry


class Ends:
    """The keys of entries in groups by their end."""

    def __init__(self) -> None:
        self._groups: dict[float, set[str]] = {}
        self._order: list[float] = []
        self.soonest = inf
        """No entry ends before."""

    def add(self, key: str, entry: Entry, end: float) -> None:
        """Note when an entry ends, or is of no more use."""
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
        """The key of one of the entries that end first, which is forgotten; ``None``: none ends before a time."""
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
