"""Eviction policies of the memory store.

A policy keeps the order of the entries; limits, expiry and sizes are up to the store. `hit` takes no lock: it performs
single operations on a C dict with text keys, which other threads cannot interrupt half-way, and counts a use in the
entry itself, where a lost update only costs accuracy. Everything else is called under the store's lock, and takes a
bounded number of steps, however many entries there are.
"""

from array import array
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final, Protocol, cast

from backburner.cache.entry import Entry
from backburner.cache.stores.ends import Ends
from backburner.errors import ConfigError

_STEPS: Final = 64
"""How many entries are examined, at most, to find one to evict. If all of them are in use, the next one goes."""
_SAMPLE: Final = 5
"""How many entries are compared; the least frequently used one goes."""
_AGE_AFTER: Final = 40
"""How often each entry is examined, on average, between two halvings of its use count."""
_MOST_USES: Final = 255
_SPARE: Final = 64
"""How many vacant places are tolerated."""


class Policy(Protocol):
    """Holds the entries, and chooses which one to evict."""

    overhead: int
    """Approximate bytes that the look-up and the order take per entry."""

    @property
    def entries(self) -> dict[str, Entry]:
        """The entries. The store itself puts them, and removes those that are not evicted."""
        ...

    def hit(self, key: str) -> Entry | None:
        """Look up an entry, and count that as a use."""
        ...

    def add(self, key: str) -> None:
        """Note a new key that is about to be put."""
        ...

    def discard(self, key: str) -> None:
        """Note that a key was removed, but not evicted."""
        ...

    def evict(self) -> tuple[str, Entry]:
        """Remove an entry and return it with its key. There must be at least one."""
        ...

    def clear(self) -> None:
        """Remove everything."""
        ...


def policy_of(name: str, ends: Ends) -> Policy:
    """A policy by its name; `ends` is the expiry queue of its entries.

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
    """Evicts the least recently used entry. An `OrderedDict` keeps the order of use."""

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

        self.hit = hit  # a closure: a method would look up both attributes each time

    def add(self, key: str) -> None:
        pass

    def discard(self, key: str) -> None:
        pass

    def evict(self) -> tuple[str, Entry]:
        # In a single operation: between two, a hit in another thread could change the order.
        return self.entries.popitem(last=False)

    def clear(self) -> None:
        self.entries.clear()


class FirstToExpire:
    """Evicts the entry that expires first."""

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
    """A policy with keys in queues, in order of arrival, and use counts in their entries.

    A key that is removed leaves a vacant place behind, since finding its place would take long. It takes that place
    again if it returns, as most do: keys that are invalidated are usually in demand.
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
            self._trim(queue, 2)  # faster than they can arise, or a long run of them would slow an eviction down

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
    """Evicts the least used of the next few entries in the queue; the others queue up again.

    This is exact only in a small cache, but gives a new entry time to be used. All counts are halved now and then, or
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
    """New entries pass through a small queue, and only those used there enter the main one. So a scan, whose keys are
    read once, evicts nothing of value. Keys evicted from the small queue are remembered for a while as ghosts: one that
    returns goes straight to the main queue, where each use is good for one more round.

    Ghosts are hashes in a table, in which a new one overwrites an older one: 8 bytes each, instead of a third queue.

    Source: Yang, Zhang, Qiu, Yue, Rashmi, "FIFO Queues are All You Need for Cache Eviction", SOSP 2023.
    """

    _SMALL = 10
    """The small queue holds a tenth of the entries."""
    _ROUNDS = 3
    """How many rounds uses are good for, at most."""

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
            self._ghosts *= 2  # a copy of the table behind itself: each ghost is still found at its hash
        mark = hash(newcomer)
        return self._main if self._ghosts[mark % len(self._ghosts)] == mark else self._small

    def _longest(self) -> deque[str]:
        return max(self._small, self._main, key=len)
