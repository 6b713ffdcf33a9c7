"""What a store does, in words: the contract that every store keeps and ``tests/contract`` checks.

A store keeps entries and the versions of tags. It does not judge them: whether an entry is fresh, or its tags were
flushed, is decided by `entry.decide` in the engine. The methods are coroutines so that one engine serves blocking and
asyncio callers; those of a blocking store never suspend.

Every method may raise `StoreUnavailable` (nobody there, or not within the budget) or another `StoreError`, and
nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from backburner.cache.entry import Entry, TagVersions
from backburner.cache.stores.limits import Limits
from backburner.cache.stores.locks import Locks
from backburner.events import Tier

REMEMBERED: Final = 60.0
"""Seconds for which a server knows when a tag was flushed."""


@dataclass(frozen=True, slots=True)
class Taken:
    """Another process computes the value."""

    token: str
    seconds: float
    """How long its lease still lasts."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Which of several keys the caller may compute now. What is neither granted nor taken has another entry than the
    caller has seen."""

    keys: tuple[str, ...]
    """Those that were granted."""
    versions: TagVersions
    """Of their tags, read now."""
    token: str
    """Of the leases on them."""
    began: int = 0
    """When that was, by a clock of the store's own; see `Store.flushed_since`."""
    taken: Mapping[str, Taken] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rest:
    """What becomes of an entry whose computation failed: it stays, and is not to be computed before a time."""

    until: float


Outcome = Entry | Rest | None
"""Of a computation: the new entry, which removes the old one if it has ended already; or nothing."""

Seen = Mapping[str, bytes | None]
"""The mark (see `Entry.mark`) of what the caller knows to lie under each key; ``None``: it does not matter."""


@dataclass(frozen=True, slots=True)
class Find:
    """What lies under a key, for who asks why a read finds what it finds."""

    kept: Entry | None = None
    """In this process."""
    asked: bool = False
    """Whether there is a server, and it answered."""
    stored: bytes | None = None
    """On the server, as it lies there."""
    entry: Entry | None = None
    """What these bytes hold."""
    unreadable: str | None = None
    """Why they cannot be read."""
    compressed: bool = False


class Store(Protocol):
    """Keeps entries until they expire, are removed, or must make room."""

    shares_values: bool
    """Whether entries stay in this process, so that immutable values need not be encoded."""

    @property
    def locks(self) -> Locks: ...

    @property
    def limits(self) -> Limits: ...

    def tier_of(self, key: str, entry: Entry) -> Tier:
        """Where an entry came from that was read a moment ago."""
        ...

    async def find(self, key: str) -> Find:
        """What lies under a key; as far as this process goes, without a trace of having looked."""
        ...

    async def read_one(self, key: str) -> Entry | None:
        """The entry of a key; ``None`` if there is none, or none that can be read."""
        ...

    async def read(self, keys: Sequence[str]) -> list[Entry | None]:
        """The entries of keys, in their order; ``None`` where there is none, or none that can be read."""
        ...

    async def write(self, entries: Mapping[str, Entry], now: float) -> None:
        """Put entries, replacing what was there."""
        ...

    async def add(self, key: str, entry: Entry, now: float) -> Entry | None:
        """Put an entry if there is none, or none that can be read. ``None`` if it was put, else the one that is
        there, for its times and tags: its value may need more to be read."""
        ...

    async def replace(self, key: str, found: Entry, entry: Entry, now: float) -> bool:
        """Put an entry if `found` is still the one that is there, or there is none. Whether it was put. Atomic."""
        ...

    async def take(self, key: str) -> Entry | None:
        """Read and remove an entry, atomically."""
        ...

    async def forget(self, keys: Sequence[str]) -> int:
        """Remove entries. How many there were."""
        ...

    async def increment(self, key: str, amount: int, begin: Entry, now: float, *, tags_checked: bool) -> int | None:
        """Add to a whole number atomically, keeping its times and tags; begin with `begin`, which holds `amount`, if
        there is none.

        Returns:
            The sum; ``None`` if the entry has tags that the caller must check first.

        Raises:
            TypeError: the entry is no whole number.
            OverflowError: the sum does not fit into 64 bits.
        """
        ...

    async def touch(self, key: str, fresh_until: float, expires_at: float, now: float) -> bool:
        """Give an entry new times. Whether there was one."""
        ...

    async def expire(self, key: str, now: float) -> bool:
        """Make an entry stale, keeping it until its end. Whether there was one."""
        ...

    async def tag_versions(self, tags: Sequence[str]) -> list[bytes | None]:
        """The current versions of tags; ``None`` for a tag that was flushed and not used since."""
        ...

    async def pin_tags(self, tags: Sequence[str], lifetime: float) -> list[bytes]:
        """The current versions of tags, given to them where missing, and kept for at least `lifetime` seconds."""
        ...

    async def flushed_since(self, tags: Sequence[str], began: int) -> bool:
        """Whether any of these tags was flushed since a turn began, or may have been. Of what is longer ago than
        `REMEMBERED` seconds, only a store in memory knows."""
        ...

    async def begin(self, seen: Seen, tags: Sequence[str], lifetime: float, lease: float) -> Turn:
        """Ask to compute values that will live for `lifetime` seconds. For those granted, `finish` must follow within
        `lease` seconds, or `renew`."""
        ...

    async def renew(self, tokens: Mapping[str, str], lease: float) -> list[str]:
        """Hold the leases on keys for `lease` seconds from now on. The keys whose lease was lost."""
        ...

    async def finish(self, turn: Turn, outcomes: Mapping[str, Outcome], now: float) -> list[str]:
        """End the computation of all keys of a turn. Nothing is done to those that were written or removed since
        `begin`; the others are given."""
        ...

    async def wait(self, taken: Taken) -> None:
        """Wait until the other process has finished, for a while: it may also have died."""
        ...

    async def flush_tags(self, tags: Sequence[str]) -> None:
        """Take the versions of tags away, at a cost that does not depend on how many entries carry them."""
        ...

    async def flush(self) -> None:
        """Remove all entries and tags of this store, and nothing else on the server."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
