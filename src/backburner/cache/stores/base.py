"""What a store does: the contract that every store keeps, and ``tests/contract`` checks.

A store keeps entries and the versions of tags. It does not judge them: whether an entry is fresh, or its tags were
flushed, is decided by `entry.decide` in the engine. Its methods are coroutines so that one engine serves blocking and
asyncio callers; those of a blocking store never suspend.

Every method may raise `StoreUnavailable` (no answer within the time budget) or another `StoreError`, and nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from backburner.cache.entry import Entry, TagVersions
from backburner.cache.stores.limits import Limits
from backburner.cache.stores.locks import Locks
from backburner.events import Tier

REMEMBERED: Final = 60.0
"""Seconds that a server remembers when a tag was flushed."""


@dataclass(frozen=True, slots=True)
class Taken:
    """Another process is computing the value."""

    token: str
    seconds: float
    """How much longer its lease lasts."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Which of several keys the caller may compute now. A key that is neither granted nor taken has another entry than
    the one that the caller has seen."""

    keys: tuple[str, ...]
    """Those that were granted."""
    versions: TagVersions
    """The versions of their tags at this time."""
    token: str
    """The token of the leases on them."""
    began: int = 0
    """The time of this, by the store's own clock; see `Store.flushed_since`."""
    taken: Mapping[str, Taken] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rest:
    """The outcome of a failed computation: the old entry stays, and is not to be computed again until a given time."""

    until: float


Outcome = Entry | Rest | None
"""The outcome of a computation: a new entry (if it has expired already, it only removes the old one), `Rest`, or
none."""

Seen = Mapping[str, bytes | None]
"""For each key the mark (see `Entry.mark`) of the entry that the caller has seen there; ``None``: any."""


@dataclass(frozen=True, slots=True)
class Find:
    """What lies under a key, for `Cache.explain`."""

    kept: Entry | None = None
    """The entry in this process."""
    asked: bool = False
    """Whether there is a server, and it answered."""
    stored: bytes | None = None
    """The bytes on the server."""
    entry: Entry | None = None
    """The entry that these bytes hold."""
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
        """Where an entry that has just been read came from."""
        ...

    async def find(self, key: str) -> Find:
        """What lies under a key; looking leaves no trace in this process."""
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
        """Put an entry if there is none, or none that can be read. Returns ``None`` if it was put, else the one that is
        there, of which only times and tags may be used: its payload may still be compressed."""
        ...

    async def replace(self, key: str, found: Entry, entry: Entry, now: float) -> bool:
        """Put an entry if `found` is still there, or nothing is. Atomic. Returns whether it was put."""
        ...

    async def take(self, key: str) -> Entry | None:
        """Read and remove an entry, atomically."""
        ...

    async def forget(self, keys: Sequence[str]) -> int:
        """Remove entries. Returns how many there were."""
        ...

    async def increment(self, key: str, amount: int, begin: Entry, now: float, *, tags_checked: bool) -> int | None:
        """Add to a whole number atomically, keeping its times and tags; if there is none, put `begin`, which holds
        `amount`.

        Returns:
            The sum; ``None`` if the entry has tags that the caller must check first.

        Raises:
            TypeError: the entry is not a whole number.
            OverflowError: the sum does not fit into 64 bits.
        """
        ...

    async def touch(self, key: str, fresh_until: float, expires_at: float, now: float) -> bool:
        """Give an entry new times. Returns whether there was one."""
        ...

    async def expire(self, key: str, now: float) -> bool:
        """Make an entry stale, but keep it until it expires. Returns whether there was one."""
        ...

    async def tag_versions(self, tags: Sequence[str]) -> list[bytes | None]:
        """The current versions of tags; ``None`` for a tag that was flushed and not used since."""
        ...

    async def pin_tags(self, tags: Sequence[str], lifetime: float) -> list[bytes]:
        """The current versions of tags, kept for at least `lifetime` seconds. A tag without one is given a new one."""
        ...

    async def flushed_since(self, tags: Sequence[str], began: int) -> bool:
        """Whether any of these tags has been, or may have been, flushed since a turn began. A server forgets flushes
        after `REMEMBERED` seconds."""
        ...

    async def begin(self, seen: Seen, tags: Sequence[str], lifetime: float, lease: float) -> Turn:
        """Ask for the right to compute values that will live for `lifetime` seconds. For granted keys, `finish` or
        `renew` must follow within `lease` seconds."""
        ...

    async def renew(self, tokens: Mapping[str, str], lease: float) -> list[str]:
        """Renew the leases on keys, for `lease` seconds from now on. Returns the keys whose lease was lost."""
        ...

    async def finish(self, turn: Turn, outcomes: Mapping[str, Outcome], now: float) -> list[str]:
        """End the computation of all keys of a turn. Keys that were written or removed since `begin` are left as they
        are; the others are returned."""
        ...

    async def wait(self, taken: Taken) -> None:
        """Wait until the other process has finished, but not for long: it may have died."""
        ...

    async def flush_tags(self, tags: Sequence[str]) -> None:
        """Remove the versions of tags, at a cost that does not depend on how many entries carry them."""
        ...

    async def flush(self) -> None:
        """Remove all entries and tags of this store, and nothing else on the server."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...
