"""Where the responses to a request are stored, and which of them answers it.

Responses that vary are stored under keys of their own; the key of their target holds the fields that they vary by.
"""

import secrets
from collections.abc import Callable
from typing import Final, NamedTuple

from backburner.cache.engine import Engine
from backburner.cache.entry import ENCODED, Decision, Entry
from backburner.errors import CodecError, StoreError
from backburner.events import Undecodable
from backburner.http.headers import Headers
from backburner.http.request import digest
from backburner.http.stored import Stored, Variants, unpack

_VARIANTS_OUTLIVE: Final = 86_400.0
"""Seconds that the entry which tells variants apart is kept longer than the first of them."""


class Found(NamedTuple):
    """A stored response that matches a request."""

    stored: Stored
    entry: Entry
    fresh_until: float
    """Earlier than the entry's, if all variants were made stale."""
    refresh_at: float


class Landed(NamedTuple):
    """The result of a flight: a response, and which of the requests for its key it answers."""

    stored: Stored
    variants: Variants | None
    values: tuple[str, ...]

    def answers(self, headers: Headers) -> bool:
        """Whether it answers a request with these headers."""
        return self.variants is None or self.variants.values(headers) == self.values


Looked = tuple[Entry | None, Decision] | StoreError
"""The result of a look-up of a key, or why it has none."""


class Place:
    """Where responses to one request are stored: under the key of its target, or one that also holds what they vary by.

    Args:
        primary: the key of the target.
        distinction: what they vary by regardless of their headers; see `Request.distinction`.
        tags: of everything that is stored here.
        looked: the result of a look-up of `primary` a moment ago, if there was one.
    """

    def __init__(
        self,
        engine: Engine,
        primary: str,
        distinction: str,
        headers: Headers,
        tags: tuple[str, ...],
        looked: Looked | None = None,
    ) -> None:
        self.engine = engine
        self.primary = primary
        self.key = primary
        self.tags = tags
        self.variants: Variants | None = None
        self.variants_end = 0.0
        self._distinction = distinction
        self.unreadable = False
        """Whether an entry was there that cannot be decoded."""
        self.mark: bytes | None = None
        """The mark of the entry found under the key (see `Entry.mark`)."""
        self._headers = headers
        self._looked = looked

    async def find(self) -> Found | None:
        """The response that is stored for the request, fresh or not.

        Raises:
            StoreError: the store cannot be read.
        """
        self.key, self.variants = self.primary, None
        entry, decision = await self._look()
        self.mark = b"" if entry is None else entry.mark
        value = self._read(self.primary, entry, decision)
        if self._distinction and not isinstance(value, Variants):
            entry, value = await self._told_apart()
        if entry is None or value is None:
            return None
        if isinstance(value, Stored):
            return Found(value, entry, entry.fresh_until, entry.refresh_at)
        self.variants, self.variants_end = value, entry.expires_at
        self.key = self.key_of(value)
        stale_since = entry.fresh_until
        entry, decision = await self.engine.judge(self.key)
        self.mark = b"" if entry is None else entry.mark
        value = self._read(self.key, entry, decision)
        if entry is None or not isinstance(value, Stored):
            return None
        if stale_since < entry.created or entry.fresh_until < stale_since:
            return Found(value, entry, entry.fresh_until, entry.refresh_at)
        # All variants that were there were made stale then, by somebody who did not know their keys.
        return Found(value, entry, stale_since, stale_since)

    async def _look(self) -> tuple[Entry | None, Decision]:
        looked, self._looked = self._looked, None
        if isinstance(looked, StoreError):
            raise looked
        return await self.engine.judge(self.primary) if looked is None else looked

    def _read(self, key: str, entry: Entry | None, decision: Decision) -> Stored | Variants | None:
        if entry is None or decision is Decision.MISS:
            return None
        value = value_of(key, entry, self.engine.tell)
        self.unreadable |= value is None
        return value

    async def _told_apart(self) -> tuple[Entry, Stored | Variants | None]:
        now = self.engine.runtime.now()
        variants = Variants((), secrets.token_hex(4))
        entry = lasting(variants, now, now)
        found = await self.engine.store.add(self.primary, entry, now)
        return (entry, variants) if found is None else (found, value_of(self.primary, found, self.engine.tell))

    def key_of(self, variants: Variants) -> str:
        """The key of the variant that the request selects."""
        return variant_key(self.primary, variants, self._headers, self._distinction)

    def landed(self, stored: Stored, variants: Variants | None) -> Landed:
        """A response for this request, for those who wait for it."""
        return Landed(stored, variants, variants.values(self._headers) if variants else ())


def variant_key(primary: str, variants: Variants, headers: Headers, distinction: str) -> str:
    """The key of the variant that a request selects."""
    values = [value.encode() for value in variants.values(headers)]
    return f"{primary}\x01{variants.token}{digest(distinction.encode(), *values)}"


def lasting(variants: Variants, now: float, until: float) -> Entry:
    """An entry that tells variants apart, kept until after a time. It has no tags: the variants have."""
    ends = until + _VARIANTS_OUTLIVE
    return Entry(variants.pack(), now, ends, ends, ends)


def value_of(key: str, entry: Entry, tell: Callable[[Undecodable], None]) -> Stored | Variants | None:
    """What is stored under a key. Decoded once for each copy in this process, since all readers can share it."""
    if entry.value is ENCODED:
        try:
            entry.value = unpack(entry.payload or b"")
        except CodecError as error:
            tell(Undecodable(key, str(error)))
            return None
    return entry.value if isinstance(entry.value, (Stored, Variants)) else None
