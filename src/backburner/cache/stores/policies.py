"""Who must make room in memory.

A policy keeps the order of the keys of a dict that is not its own; bounds, ends and what entries weigh are the store's
business. `hit` takes no lock: it makes single operations of a C dict with text keys, which other threads cannot
interrupt half-way, and notes a use in the entry itself, where a lost update costs nothing but accuracy. All else is
called under the store's lock, and takes a bounded number of steps, however many entries there are.
"""

from array import array
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final, Protocol

from backburner.cache.entry import Entry

_STEPS: Final = 64
"""Entries looked at for one that must go, at most: in a cache full of favourites, the next one goes."""
_SAMPLE: Final = 8
"""Entries of which the least frequently used goes."""
_SPARE: Final = 64
"""Vacant places that are not worth the clearing."""


class Policy(Protocol):
    """Knows which entry is missed least."""

    entries: dict[str, Entry]
    overhead: int
    """Bytes that the dict and the policy take for each entry, about."""

    @property
    def hit(self) -> Callable[[str], Entry | None]:
        """Look up an entry, and note that it is of use."""
        ...

    def add(self, key: str) -> None:
        """A key is about to be put that was not there."""
        ...

    def discard(self, key: str) -> None:
        """A key was removed, not by `evict`."""
        ...

    def evict(self) -> str:
        """Choose a key, which the store then removes. There is at least one."""
        ...

    def clear(self) -> None:
        """Everything was removed."""
        ...


class LeastRecentlyUsed:
    """The order of an `OrderedDict` is the order of use."""

    overhead = 175

    def __init__(self) -> None:
        self.entries: OrderedDict[str, Entry] = OrderedDict()

    def hit(self, key: str) -> Entry | None:
        entry = self.entries.get(key)
        if entry is not None:
            try:  # noqa: SIM105 - contextlib.suppress costs more than all the rest
                self.entries.move_to_end(key)
            except KeyError:
                pass  # another thread removed it since
        return entry

    def add(self, key: str) -> None:
        pass

    def discard(self, key: str) -> None:
        pass

    def evict(self) -> str:
        return next(iter(self.entries))

    def clear(self) -> None:
        pass


class _Queue:
    """Keys in the order in which they came.

    A key that is removed leaves its place behind, which costs less than to find it, and takes it again when it comes
    back, as most do: what is invalidated is wanted.
    """

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self._vacant: set[str] = set()

    def discard(self, key: str) -> None:
        self._vacant.add(key)
        if len(self._vacant) > len(self.entries) + _SPARE:
            self._tidy(self._longest(), 4)

    def clear(self) -> None:
        self._vacant.clear()

    def _longest(self) -> deque[str]:
        raise NotImplementedError

    def _came(self, key: str) -> bool:
        """Whether the key has a place from before."""
        if key in self._vacant:
            self._vacant.remove(key)
            return True
        return False

    def _tidy(self, queue: deque[str], steps: int) -> None:
        for _ in range(steps):
            key = queue.popleft()
            if key in self._vacant:
                self._vacant.remove(key)
            else:
                queue.append(key)
