"""Entries in this process, bounded in number and bytes, with an eviction policy. Nothing here suspends.

Reads take no lock: they are a dict look-up and a note for the policy. Writes hold a lock for a few dict operations,
however many entries there are.
"""

import math
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from sys import getsizeof
from threading import Lock
from typing import Final, Self
from urllib.parse import parse_qsl, urlsplit

from backburner.cache.entry import ENCODED, INT64, Entry
from backburner.cache.stores.base import Find, Outcome, Rest, Seen, Taken, Turn
from backburner.cache.stores.collector import untrack
from backburner.cache.stores.ends import Ends
from backburner.cache.stores.limits import MemoryLimits
from backburner.cache.stores.locks import MemoryLocks
from backburner.cache.stores.policies import policy_of
from backburner.cache.stores.versions import MOST_IDLE, Versions
from backburner.errors import ConfigError, ValueTooLarge
from backburner.events import Tier
from backburner.size import byte_count

_SWEEP: Final = 4
"""How many expired entries each write removes: more than one, so that none pile up; few, so that no write is slow."""
_MANY: Final = 50_000
"""Number of entries beyond which the garbage collector would be noticeable."""
_GC_HEADER: Final = 16
_BYTES: Final = getsizeof(b"")
_FLOAT: Final = getsizeof(1.5)
_PLACE_IN_ENDS: Final = 40
_ENTRY: Final = Entry.__basicsize__ + _GC_HEADER + 2 * _FLOAT + getsizeof(1 << 20) + _PLACE_IN_ENDS
"""Including its creation time, its expiry and its size."""
_PAIR: Final = getsizeof(("tag", b"version")) + _GC_HEADER + getsizeof(b"version8") + 8
"""Size of a tag and its version, without the name."""


class MemoryStore:
    """A bounded dict of entries.

    Args:
        policy: what to evict: ``lru`` the least recently used, ``s3fifo`` what was not used soon after it was put,
            ``lfu`` the least frequently used, ``ttl`` the first to expire.
        max_items: how many entries to keep at most.
        max_bytes: how much memory they may take, keys and bookkeeping included, in bytes or as text: ``"64MB"``,
            ``"64MiB"``. A single entry that is larger is not kept. ``None``: no limit.

    Raises:
        ConfigError: an argument is invalid.
    """

    shares_values = True

    def __init__(self, policy: str = "lru", max_items: int = 10_000, max_bytes: int | str | None = None) -> None:
        if max_items < 1:
            raise ConfigError(f"max_items={max_items}: a memory cache needs room for at least one entry")
        self.max_items = max_items
        self.max_bytes = math.inf
        if max_bytes is not None:
            try:
                self.max_bytes = byte_count(max_bytes)
            except ValueError as error:
                raise ConfigError(f"max_bytes: {error}") from None
        self.bytes = 0
        """How much memory the entries take."""
        self.evicted = 0
        """How many entries have been evicted."""
        self.on_evicted: Callable[[str], None] = lambda _: None
        """Called with the key of each evicted entry, under the lock."""
        self.locks = MemoryLocks()
        self.limits = MemoryLimits()
        self._tags = Versions()
        self._computing: dict[str, str] = {}  # tokens of turns, taken away from keys that are written or removed
        self.generation = 0
        """How often any tag has been flushed."""
        self._flushed: OrderedDict[str, int] = OrderedDict()  # the generations in which tags were flushed last
        self._flushes_forgotten = 0
        self._ends = Ends()
        self._policy = policy_of(policy, self._ends)
        self._entries = self._policy.entries
        self.peek = self._policy.hit
        """The entry of a key, counted as a use. No coroutine and no lock: this is what makes hits cheap."""
        self._lock = Lock()

    @classmethod
    def from_url(cls, url: str) -> Self:
        """The store that ``memory://?policy=…&max_items=…&max_bytes=…`` describes.

        Raises:
            ConfigError: an option is wrong, or unknown.
        """
        options = dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))
        max_items = options.pop("max_items", "10000")
        policy, max_bytes = options.pop("policy", "lru"), options.pop("max_bytes", None)
        if options:
            raise ConfigError(
                f"{url!r}: memory has no option {', '.join(options)}; it has policy, max_items and max_bytes"
            )
        if not max_items.isdecimal():
            raise ConfigError(f"{url!r}: max_items must be a whole number, not {max_items!r}")
        return cls(policy, int(max_items), max_bytes)

    def __len__(self) -> int:
        return len(self._entries)

    def look(self, key: str) -> Entry | None:
        """As `peek`, but not counted as a use."""
        return self._entries.get(key)

    def flushed(self, entry: Entry) -> bool:
        """Whether a tag of an entry has been flushed since it was made. Looked up once per entry and `generation`."""
        generation = self.generation
        if any(self._tags.get(tag) != version for tag, version in entry.tags):
            return True
        entry.tags_held_at = generation
        return False

    def forget_counts(self) -> None:
        """Make the next hit of each entry count as its first."""
        with self._lock:
            entries = list(self._entries.values())  # hits of other threads may change their order meanwhile
        for entry in entries:
            entry.counts = None

    def after_fork(self) -> None:
        """In a forked child: a lock that another thread of the parent held would never be released here, and what that
        thread was changing would stay half changed."""
        if self._lock.locked():
            self._clear()
        self._lock = Lock()
        self.locks.after_fork()
        self.limits.after_fork()

    def tier_of(self, key: str, entry: Entry) -> Tier:  # noqa: ARG002
        return "memory"

    async def find(self, key: str) -> Find:
        return Find(kept=self.look(key))

    async def read_one(self, key: str) -> Entry | None:
        return self.peek(key)

    async def read(self, keys: Sequence[str]) -> list[Entry | None]:
        return [self.peek(key) for key in keys]

    async def write(self, entries: Mapping[str, Entry], now: float) -> None:
        with self._lock:
            self._put_all(entries, now)

    async def add(self, key: str, entry: Entry, now: float) -> Entry | None:
        with self._lock:
            found = self._entries.get(key)
            if found is not None and found.expires_at > now:
                return found
            self._put_all({key: entry}, now)
            return None

    async def replace(self, key: str, found: Entry, entry: Entry, now: float) -> bool:
        with self._lock:
            if self._entries.get(key, found) is not found:
                return False
            self._put_all({key: entry}, now)
            return True

    async def take(self, key: str) -> Entry | None:
        with self._lock:
            self._overrule((key,))
            return self._remove(key)

    async def forget(self, keys: Sequence[str]) -> int:
        with self._lock:
            self._overrule(keys)
            return sum(self._remove(key) is not None for key in keys)

    async def increment(self, key: str, amount: int, begin: Entry, now: float, *, tags_checked: bool) -> int | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry.fresh_until <= now:
                self._put_all({key: begin}, now)
                return amount
            if entry.tags and not tags_checked:
                return None
            if type(entry.value) is not int or entry.value not in INT64:
                raise TypeError("not a whole number of 64 bits")
            total = entry.value + amount
            if total not in INT64:
                raise OverflowError("the sum does not fit into 64 bits")
            # A new entry, since readers may hold the old one.
            self._overrule((key,))
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
            return self._tags.pin(tags)

    async def flushed_since(self, tags: Sequence[str], began: int) -> bool:
        with self._lock:
            return max(self._flushes_forgotten, *(self._flushed.get(tag, 0) for tag in tags)) > began

    async def begin(self, seen: Seen, tags: Sequence[str], lifetime: float, lease: float) -> Turn:  # noqa: ARG002
        with self._lock:
            versions = tuple(zip(tags, self._tags.pin(tags), strict=True))
            turn = Turn(tuple(seen), versions, secrets.token_hex(8), self.generation)
            self._computing.update(dict.fromkeys(seen, turn.token))
        return turn

    async def renew(self, tokens: Mapping[str, str], lease: float) -> list[str]:  # noqa: ARG002
        return []  # only this process computes for this store, and leases are for when a process dies

    async def finish(self, turn: Turn, outcomes: Mapping[str, Outcome], now: float) -> list[str]:
        with self._lock:
            return self._finish(turn, outcomes, now)

    async def wait(self, taken: Taken) -> None:
        raise NotImplementedError("nobody else computes for a store in memory")

    async def flush_tags(self, tags: Sequence[str]) -> None:
        with self._lock:
            self._flush_tags(tags)

    async def flush(self) -> None:
        with self._lock:
            self._computing.clear()
            self._clear()

    async def close(self) -> None:
        pass

    # Under the lock

    def _finish(self, turn: Turn, outcomes: Mapping[str, Outcome], now: float) -> list[str]:
        held = [key for key in turn.keys if self._computing.get(key) == turn.token]
        computed = {}
        for key in held:
            del self._computing[key]
            match outcomes.get(key):
                case None:
                    pass
                case Rest(until):
                    if (entry := self._entries.get(key)) is not None:
                        self._entries[key] = replace(entry, refresh_at=until)
                case entry if entry.expires_at <= now:
                    self._remove(key)
                case entry:
                    computed[key] = entry
        self._put_all(computed, now)
        return held

    def _flush_tags(self, tags: Sequence[str]) -> None:
        self.generation += 1
        for tag in tags:
            self._tags.flush(tag)
            self._flushed[tag] = self.generation
            self._flushed.move_to_end(tag)
        while len(self._flushed) > MOST_IDLE:
            _, self._flushes_forgotten = self._flushed.popitem(last=False)

    def _overrule(self, keys: Iterable[str]) -> None:
        """Take away the turns to compute these keys: what is being computed must not overwrite a later write."""
        for key in keys:
            self._computing.pop(key, None)

    def _put_all(self, entries: Mapping[str, Entry], now: float) -> None:
        self._overrule(entries)
        refused = [key for key, entry in entries.items() if not self._put(key, entry, now)]
        if refused:
            raise ValueTooLarge(
                f"{', '.join(map(repr, refused))}: more than the {self.max_bytes:,} bytes that all entries may take "
                "together; raise max_bytes, or keep such values elsewhere"
            )

    def _put(self, key: str, entry: Entry, now: float, end: float | None = None) -> bool:
        """Put an entry in place of the old one, to be removed when it expires. Returns False if it is too large."""
        if self._ends.soonest <= now:
            self._sweep(now)
        entry.size = size = self._policy.overhead + weight(key, entry)
        if size > self.max_bytes:
            self._remove(key)
            return False
        entries = self._entries
        if len(entries) > _MANY:
            untrack(entry)
        old = entries.get(key)
        if old is not None:
            self._left(key, old)
        while self.bytes + size > self.max_bytes or (old is None and len(entries) >= self.max_items):
            evicted, gone = self._policy.evict()
            if gone is old:
                old = None
            else:
                self._left(evicted, gone)
                self.evicted += 1
                self.on_evicted(evicted)
        self.bytes += size
        self._ends.add(key, entry, entry.expires_at if end is None else end)
        if entry.tags:
            self._tags.carried(entry.tags)
        if old is None:
            self._policy.add(key)
            entries[key] = entry
        else:
            entry.uses = old.uses
            entries[key] = entry
            self._policy.hit(key)
        return True

    def _sweep(self, now: float) -> None:
        for _ in range(_SWEEP):
            key = self._ends.pop(now)
            if key is None:
                return
            self._remove(key)

    def _remove(self, key: str) -> Entry | None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._policy.discard(key)
            self._left(key, entry)
        return entry

    def _left(self, key: str, entry: Entry) -> None:
        """Account for an entry that has been removed or replaced."""
        self.bytes -= entry.size
        if entry.group is not None:
            entry.group.discard(key)
        if entry.tags:
            self._tags.dropped(entry.tags)

    def _clear(self) -> None:
        self._policy.clear()
        self._ends.clear()
        self._tags.clear()
        self.bytes = 0
        self.generation += 1

    def _restamp(self, key: str, now: float, fresh_until: float, expires_at: float | None) -> bool:
        with self._lock:
            self._overrule((key,))
            entry = self._entries.get(key)
            if entry is None or entry.expires_at <= now:
                return False
            ends = entry.expires_at if expires_at is None else expires_at
            self._entries[key] = replace(entry, refresh_at=fresh_until, fresh_until=fresh_until, expires_at=ends)
            if entry.group is not None:
                entry.group.discard(key)
            self._ends.add(key, self._entries[key], ends)
            return True


def weight(key: str, entry: Entry) -> int:
    """Bytes that an entry takes together with its key, without what the policy needs to find and order it.

    The sum of `sys.getsizeof` over its parts, as if none were shared. Values that are kept themselves are at most one
    level deep, and so is this sum.
    """
    size = _ENTRY + getsizeof(key)
    if (payload := entry.payload) is not None:
        size += _BYTES + len(payload)
    if (value := entry.value) is not ENCODED:
        size += getsizeof(value)
        if isinstance(value, (tuple, frozenset)):
            size += sum(map(getsizeof, value))
    if entry.tags:
        size += sum(_PAIR + getsizeof(tag) for tag, _ in entry.tags)
    return size
