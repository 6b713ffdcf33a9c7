"""Entries in this process: bounded, with a policy that says who must make room. Nothing here suspends.

Reads take no lock: one dict look-up, and one note for the policy. Both are single operations of a C dict with text
keys, which other threads cannot interrupt half-way. Writes hold a lock, for dict operations only.
"""

import heapq
import secrets
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from threading import Lock
from typing import Final, Protocol

from backburner.cache.entry import VERSION_BYTES, Entry
from backburner.cache.stores.base import Taken, Turn
from backburner.cache.stores.limits import MemoryLimits
from backburner.cache.stores.locks import MemoryLocks
from backburner.errors import ConfigError
from backburner.events import Tier

_INT64: Final = range(-(2**63), 2**63)
_SWEEP: Final = 4
"""Expired entries removed at most with each write: more than one, so that they die out; few, so that no write is
slow."""
_FEWEST_TAGS: Final = 1024
"""Versions of tags kept before those without entries are looked for."""


class _Policy(Protocol):
    """Chooses the entry that must make room."""

    def used(self, key: str) -> None:
        """Note a hit. Called without the lock."""

    def wrote(self, key: str) -> None:
        """Note that an entry was put."""

    def removed(self, key: str) -> None:
        """Note that an entry is gone."""

    def evict(self) -> str:
        """Take one entry out and say which."""
        ...


class _LeastRecentlyUsed:
    """The order of an `OrderedDict` is the order of use."""

    def __init__(self, entries: OrderedDict[str, Entry]) -> None:
        self._entries = entries

    def used(self, key: str) -> None:
        self._entries.move_to_end(key)

    wrote = used

    def removed(self, key: str) -> None:
        pass

    def evict(self) -> str:
        return self._entries.popitem(last=False)[0]


class _LeastFrequentlyUsed:
    """Counts uses. A heap holds counts of once; since counts only grow, a count that is still true at the top is the
    least.

    All counts are halved now and then, so that yesterday's favourites do not stay for ever.
    """

    _HALVE_AFTER = 10

    def __init__(self, entries: OrderedDict[str, Entry]) -> None:
        self._entries = entries
        self._uses: dict[str, int] = {}
        self._heap: list[tuple[int, int, str]] = []
        self._order = 0
        self._evictions = 0

    def used(self, key: str) -> None:
        self._uses[key] = self._uses.get(key, 0) + 1

    def wrote(self, key: str) -> None:
        self._push(key)

    def removed(self, key: str) -> None:
        self._uses.pop(key, None)

    def evict(self) -> str:
        self._evictions += 1
        if self._evictions > self._HALVE_AFTER * len(self._entries):
            self._evictions = 0
            self._rebuild(divisor=2)
        elif len(self._heap) > 2 * len(self._entries) + 64:
            self._rebuild(divisor=1)
        while True:
            uses, _, key = heapq.heappop(self._heap)
            if key not in self._entries:
                continue
            if self._uses.get(key, 0) == uses:
                del self._entries[key]
                return key
            self._push(key)

    def _push(self, key: str) -> None:
        self._order += 1
        heapq.heappush(self._heap, (self._uses.get(key, 0), self._order, key))

    def _rebuild(self, *, divisor: int) -> None:
        self._uses = {key: self._uses.get(key, 0) // divisor for key in self._entries}
        self._heap = [(uses, order, key) for order, (key, uses) in enumerate(self._uses.items())]
        heapq.heapify(self._heap)


class _FirstToExpire:
    """What ends first goes first."""

    def __init__(self, entries: OrderedDict[str, Entry], ends: "_Ends") -> None:
        self._entries = entries
        self._ends = ends

    def used(self, key: str) -> None:
        pass

    def wrote(self, key: str) -> None:
        pass

    def removed(self, key: str) -> None:
        pass

    def evict(self) -> str:
        key = self._ends.first(self._entries)
        del self._entries[key]
        return key


class _Ends:
    """When entries end, soonest first. Entries that were replaced leave their old end behind, to be skipped."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, str]] = []

    def note(self, key: str, expires_at: float, entries: Mapping[str, Entry]) -> None:
        heapq.heappush(self._heap, (expires_at, key))
        if len(self._heap) > 2 * len(entries) + 64:
            self._heap = [(entry.expires_at, key) for key, entry in entries.items()]
            heapq.heapify(self._heap)

    def first(self, entries: Mapping[str, Entry]) -> str:
        while True:
            expires_at, key = self._heap[0]
            entry = entries.get(key)
            if entry is not None and entry.expires_at == expires_at:
                return key
            heapq.heappop(self._heap)

    def passed(self, now: float) -> str | None:
        """A key with an end that has passed; each end is told once."""
        if self._heap and self._heap[0][0] <= now:
            return heapq.heappop(self._heap)[1]
        return None

    def clear(self) -> None:
        self._heap.clear()


class MemoryStore:
    """A bounded dict of entries.

    Args:
        policy: who makes room: ``lru`` the least recently used, ``lfu`` the least frequently used, ``ttl`` the first
            to expire.
        max_items: entries kept at most.

    Raises:
        ConfigError: an argument is wrong.
    """

    shares_values = True

    def __init__(self, policy: str = "lru", max_items: int = 10_000) -> None:
        if max_items < 1:
            raise ConfigError(f"max_items={max_items}: a memory cache needs room for at least one entry")
        self.max_items = max_items
        self.locks = MemoryLocks()
        self.limits = MemoryLimits()
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._tags: dict[str, bytes] = {}
        self.generation = 0
        """Counts the times that any tag was flushed."""
        self._ends = _Ends()
        self._policy = self._make(policy)
        # For LRU straight to the dict: a hit is worth the short cut.
        self._used = {"lru": self._entries.move_to_end, "lfu": self._policy.used}.get(policy)
        self._lock = Lock()
        self._most_tags = _FEWEST_TAGS

    def _make(self, policy: str) -> _Policy:
        match policy:
            case "lru":
                return _LeastRecentlyUsed(self._entries)
            case "lfu":
                return _LeastFrequentlyUsed(self._entries)
            case "ttl":
                return _FirstToExpire(self._entries, self._ends)
        raise ConfigError(f"policy={policy!r}: a memory cache has the policies lru, lfu and ttl")

    def __len__(self) -> int:
        return len(self._entries)

    def peek(self, key: str) -> Entry | None:
        """The entry of a key, without suspending: what makes a hit cheap."""
        entry = self._entries.get(key)
        if entry is not None and self._used is not None:
            try:  # noqa: SIM105 - contextlib.suppress costs more than all the rest
                self._used(key)
            except KeyError:
                pass  # another thread removed it since
        return entry

    def look(self, key: str) -> Entry | None:
        """As `peek`, for who only wants to know: it is no use."""
        return self._entries.get(key)

    def flushed(self, entry: Entry) -> bool:
        """Whether a tag of an entry was flushed since it was made. Looked up once per entry and `generation`."""
        generation = self.generation
        if any(self._tags.get(tag) != version for tag, version in entry.tags):
            return True
        entry.tags_held_at = generation
        return False

    def after_fork(self) -> None:
        """In a forked child: a lock that another thread of the parent held would never be released here."""
        self._lock = Lock()
        self.locks.after_fork()
        self.limits.after_fork()

    def tier_of(self, key: str, entry: Entry) -> Tier:  # noqa: ARG002
        return "memory"

    async def read_one(self, key: str) -> Entry | None:
        return self.peek(key)

    async def read(self, keys: Sequence[str]) -> list[Entry | None]:
        return [self.peek(key) for key in keys]

    async def write(self, entries: Mapping[str, Entry], now: float) -> None:
        with self._lock:
            for key, entry in entries.items():
                self._put(key, entry, now)

    async def add(self, key: str, entry: Entry, now: float) -> Entry | None:
        with self._lock:
            found = self._entries.get(key)
            if found is not None and found.expires_at > now:
                return found
            self._put(key, entry, now)
            return None

    async def replace(self, key: str, found: Entry, entry: Entry, now: float) -> bool:
        with self._lock:
            if self._entries.get(key, found) is not found:
                return False
            self._put(key, entry, now)
            return True

    async def take(self, key: str) -> Entry | None:
        with self._lock:
            return self._remove(key)

    async def forget(self, keys: Sequence[str]) -> int:
        with self._lock:
            return sum(self._remove(key) is not None for key in keys)

    async def increment(self, key: str, amount: int, begin: Entry, now: float, *, tags_checked: bool) -> int | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry.fresh_until <= now:
                self._put(key, begin, now)
                return amount
            if entry.tags and not tags_checked:
                return None
            if type(entry.value) is not int or entry.value not in _INT64:
                raise TypeError("not a whole number of 64 bits")
            total = entry.value + amount
            if total not in _INT64:
                raise OverflowError("the sum does not fit into 64 bits")
            # A new entry, since readers may hold the old one.
            self._entries[key] = replace(entry, value=total)
            return total

    async def touch(self, key: str, fresh_until: float, expires_at: float, now: float) -> bool:
        return self._restamp(key, now, fresh_until, expires_at)

    async def expire(self, key: str, now: float) -> bool:
        return self._restamp(key, now, now, None)

    async def tag_versions(self, tags: Sequence[str]) -> list[bytes | None]:
        return [self._tags.get(tag) for tag in tags]

    async def pin_tags(self, tags: Sequence[str], lifetime: float) -> list[bytes]:  # noqa: ARG002
        with self._lock:
            if len(self._tags) > self._most_tags:
                self._drop_unused_tags()
            return [self._tags.setdefault(tag, secrets.token_bytes(VERSION_BYTES)) for tag in tags]

    async def begin(self, key: str, tags: Sequence[str], lifetime: float, lease: float) -> Turn | Taken:  # noqa: ARG002
        # No lease: nobody outside of this process computes for this store.
        return Turn(tuple(zip(tags, await self.pin_tags(tags, lifetime), strict=True)))

    async def finish(self, key: str, turn: Turn, entry: Entry | None, now: float) -> bool:  # noqa: ARG002
        if entry is not None:
            await self.write({key: entry}, now)
        return entry is not None

    async def wait(self, taken: Taken) -> None:
        raise NotImplementedError("nobody else computes for a store in memory")

    async def flush_tags(self, tags: Sequence[str]) -> None:
        with self._lock:
            for tag in tags:
                self._tags.pop(tag, None)
            self.generation += 1

    async def flush(self) -> None:
        with self._lock:
            for key in list(self._entries):
                self._remove(key)
            self._ends.clear()
            self._tags.clear()
            self.generation += 1

    async def close(self) -> None:
        pass

    def _put(self, key: str, entry: Entry, now: float) -> None:
        self._sweep(now)
        if key not in self._entries and len(self._entries) >= self.max_items:
            self._policy.removed(self._policy.evict())
        self._entries[key] = entry
        self._policy.wrote(key)
        self._ends.note(key, entry.expires_at, self._entries)

    def _sweep(self, now: float) -> None:
        for _ in range(_SWEEP):
            key = self._ends.passed(now)
            if key is None:
                return
            entry = self._entries.get(key)
            if entry is not None and entry.expires_at <= now:
                self._remove(key)

    def _drop_unused_tags(self) -> None:
        # A version that somebody is just computing with may go too: what they compute is then dead on arrival, never
        # wrong.
        used = {tag for entry in self._entries.values() for tag, _ in entry.tags}
        self._tags = {tag: version for tag, version in self._tags.items() if tag in used}
        self.generation += 1
        self._most_tags = max(_FEWEST_TAGS, 2 * len(self._tags))

    def _remove(self, key: str) -> Entry | None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._policy.removed(key)
        return entry

    def _restamp(self, key: str, now: float, fresh_until: float, expires_at: float | None) -> bool:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry.expires_at <= now:
                return False
            ends = entry.expires_at if expires_at is None else expires_at
            self._entries[key] = replace(entry, refresh_at=fresh_until, fresh_until=fresh_until, expires_at=ends)
            self._ends.note(key, ends, self._entries)
            return True
