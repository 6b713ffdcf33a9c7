"""Who must make room in memory.

A policy keeps the order of the entries; bounds, ends and what entries weigh are the store's business. `hit` takes no
lock: it makes single operations of a C dict with text keys, which other threads cannot interrupt half-way, and notes
a use in the entry itself, where a lost one costs nothing but accuracy. All else is called under the store's lock, and
takes a bounded number of steps, however many entries there are.
"""

from array import array
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final, Protocol, cast

from backburner.cache.entry import Entry
from backburner.cache.stores.ends import Ends
from backburner.errors import ConfigError

_STEPS: Final = 64
"""Entries looked at for one that must go, at most. Where all of them are favourites, the next one goes."""
_SAMPLE: Final = 5
"""Entries of which the least frequently used one goes."""
_AGE_AFTER: Final = 40
"""Times that each entry is looked at between two halvings of its uses."""
_MOST_USES: Final = 255
_SPARE: Final = 64
"""Vacant places that are not worth the tidying."""


class Policy(Protocol):
    """Holds the entries, and knows which of them is missed least."""

    overhead: int
    """Bytes that the look-up and the order take for each entry, about."""

    @property
    def entries(self) -> dict[str, Entry]:
        """What is there. The store puts, and removes what is not evicted."""
        ...

    def hit(self, key: str) -> Entry | None:
        """Look up an entry, and note that it is of use."""
        ...

    def add(self, key: str) -> None:
        """Note a key that is about to be put and was not there."""
        ...

    def discard(self, key: str) -> None:
        """Note that a key was removed, though not evicted."""
        ...

    def evict(self) -> tuple[str, Entry]:
        """Remove one of the entries, of which there is at least one."""
        ...

    def clear(self) -> None:
        """Remove everything."""
        ...


def policy_of(name: str, ends: Ends) -> Policy:
    """A policy by its name; `ends` are those of the entries that it will hold.

    Raises:
        ConfigError: none has this name.
    """
    match name:
        case "lru":
            return LeastRecentlyUsed()
        case "s3fifo":
            return S3Fifo()
        case "lfu":
            return LeastFrequentlyUsed()
        case "ttl":
            return FirstToExpire(ends)
    raise ConfigError(f"policy={name!r}: memory has the policies lru, s3fifo, lfu and ttl")


class LeastRecentlyUsed:
    """The order of an `OrderedDict` is the order of use."""

    overhead = 120

    def __init__(self) -> None:
        self.entries: OrderedDict[str, Entry] = OrderedDict()
        find, move_to_end = self.entries.get, self.entries.move_to_end

        def hit(key: str) -> Entry | None:
            entry = find(key)
            if entry is not None:
                try:  # noqa: SIM105  # contextlib.suppress costs more than all the rest
                    move_to_end(key)
                except KeyError:
                    pass  # another thread removed it since
            return entry

        self.hit = hit  # no method, since it would look for both each time

    def add(self, key: str) -> None:
        pass

    def discard(self, key: str) -> None:
        pass

    def evict(self) -> tuple[str, Entry]:
        # In one step: between two, a hit of another thread could change the order.
        return self.entries.popitem(last=False)

    def clear(self) -> None:
        self.entries.clear()


class FirstToExpire:
    """What ends first goes first."""

    overhead = 60

    def __init__(self, ends: Ends) -> None:
        self.entries: dict[str, Entry] = {}
        self._ends = ends
        self.hit: Callable[[str], Entry | None] = self.entries.get

    def add(self, key: str) -> None:
        pass

    def discard(self, key: str) -> None:
        pass

    def evict(self) -> tuple[str, Entry]:
        key = cast("str", self._ends.pop())  # there is at least one
        return key, self.entries.pop(key)

    def clear(self) -> None:
        self.entries.clear()


class _Queued:
    """Keys in the order in which they came, with the uses of their entries.

    A key that is removed leaves its place behind, since finding it would take long, and takes it again when it comes
    back, as most do: what is invalidated is wanted.
    """

    overhead = 75

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self._vacant: set[str] = set()

    def hit(self, key: str) -> Entry | None:
        entry = self.entries.get(key)
        if entry is not None and entry.uses < _MOST_USES:
            entry.uses += 1
        return entry

    def add(self, key: str) -> None:
        if self._vacant and key in self._vacant:
            self._vacant.remove(key)
            return
        queue = self._queue_of(key)
        queue.append(key)
        if self._vacant:
            self._trim(queue, 2)  # twice as fast as they can come, or a row of them would wait for an eviction

    def discard(self, key: str) -> None:
        self._vacant.add(key)
        if len(self._vacant) > len(self.entries) + _SPARE:
            queue = self._longest()
            for _ in range(4):
                key = queue.popleft()
                if key in self._vacant:
                    self._vacant.remove(key)
                else:
                    queue.append(key)

    def clear(self) -> None:
        self.entries.clear()
        self._vacant.clear()

    def _queue_of(self, newcomer: str) -> deque[str]:
        raise NotImplementedError

    def _longest(self) -> deque[str]:
        raise NotImplementedError

    def _trim(self, queue: deque[str], most: int) -> None:
        """Remove vacant places from the head of a queue."""
        while most and queue and queue[0] in self._vacant:
            self._vacant.remove(queue.popleft())
            most -= 1


class LeastFrequentlyUsed(_Queued):
    """Of the next few in the queue, the least used one goes, and the others queue up again.

    So exact it is in a small cache only, and a newcomer has time to be used. All uses are halved now and then, or
    yesterday's favourites would stay for ever.
    """

    def __init__(self) -> None:
        super().__init__()
        self._queue: deque[str] = deque()
        self._looks = 0

    def evict(self) -> tuple[str, Entry]:
        entries, queue = self.entries, self._queue
        others = min(_SAMPLE, len(entries)) - 1
        self._looks += others
        if self._looks > _AGE_AFTER * len(entries):
            self._looks = 0
        halving = self._looks < len(entries)
        least = self._next()
        for _ in range(others):
            key = self._next()
            if entries[key].uses < entries[least].uses:
                key, least = least, key
            if halving:
                entries[key].uses //= 2
            queue.append(key)
        return least, entries.pop(least)

    def clear(self) -> None:
        super().clear()
        self._queue.clear()

    def _next(self) -> str:
        if self._vacant:
            self._trim(self._queue, len(self._vacant))
        return self._queue.popleft()

    def _queue_of(self, newcomer: str) -> deque[str]:  # noqa: ARG002
        return self._queue

    def _longest(self) -> deque[str]:
        return self._queue


class S3Fifo(_Queued):
    """Newcomers pass through a small queue, and only those used there come into the main one. So a scan, whose keys are
    asked for once, washes nothing out. What left the small queue is remembered for a while as a ghost: a key that comes
    back goes straight to the main queue, where each use is good for one more round.

    Ghosts are hashes in a table, where a new one takes the place of an older one: 8 bytes for each, instead of a third
    queue.

    Source: Yang, Zhang, Qiu, Yue, Rashmi, "FIFO Queues are All You Need for Cache Eviction", SOSP 2023.
    """

    _SMALL = 10
    """The small queue is one part of so many."""
    _ROUNDS = 3
    """That uses are good for, at most."""

    def __init__(self) -> None:
        super().__init__()
        self._small: deque[str] = deque()
        self._main: deque[str] = deque()
        self._ghosts = array("q", bytes(8 * 64))

    def evict(self) -> tuple[str, Entry]:
        entries, small, main = self.entries, self._small, self._main
        for steps_left in range(_STEPS, -1, -1):
            if self._vacant:
                self._trim(small, len(small))
                self._trim(main, len(main))
            if small and (len(small) * self._SMALL >= len(entries) or not main):
                key = small.popleft()
                entry = entries[key]
                if entry.uses < 2 or not steps_left:
                    mark = hash(key)
                    self._ghosts[mark % len(self._ghosts)] = mark
                    break
                entry.uses = 0
            else:
                key = main.popleft()
                entry = entries[key]
                if not entry.uses or not steps_left:
                    break
                entry.uses = min(entry.uses, self._ROUNDS) - 1
            main.append(key)
        return key, entries.pop(key)

    def clear(self) -> None:
        super().clear()
        self._small.clear()
        self._main.clear()

    def _queue_of(self, newcomer: str) -> deque[str]:
        if len(self._ghosts) < len(self.entries):
            self._ghosts *= 2  # where each ghost is found again, since the length is a power of two
        mark = hash(newcomer)
        return self._main if self._ghosts[mark % len(self._ghosts)] == mark else self._small

    def _longest(self) -> deque[str]:
        return max(self._small, self._main, key=len)
