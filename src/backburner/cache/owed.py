"""Invalidations that the server has missed because it was away.

Without them, an entry that was forgotten or replaced in the meantime would be back as soon as the server is. They are
sent before this process reads anything else from the server. A server that answers, but refuses to be written to (its
disk is full, its replicas are gone), can still be read, except for what is owed. They are kept in this process only: if
it ends first they are lost, and the ttl of the entries bounds how long outdated ones are served.
"""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from threading import Lock
from typing import Final

from backburner.cache.stores.base import Store
from backburner.errors import StoreError, StoreUnavailable

MOST: Final = 100_000
"""How many names are kept. Beyond that everything under the prefix is flushed: an empty cache is only slow."""
_PAUSE: Final = 1.0
"""Seconds until a server that has refused is asked again because of a read."""
_BATCH: Final = 1000
"""Names sent in one command: more might take longer than the time budget, and then never succeed."""


class Owed:
    """What the server has yet to be told."""

    def __init__(self) -> None:
        self.some = False
        """Whether anything is owed; may be read without the lock."""
        self._keys: dict[str, int] = {}  # by the number of the note that has them; likewise below
        self._tags: dict[str, int] = {}
        self._everything = 0
        self._notes = 0
        self._refused_until = 0.0
        self._much_is_paid = False
        self._lock = Lock()

    def add(self, *, keys: tuple[str, ...] = (), tags: tuple[str, ...] = ()) -> None:
        """Note keys and tags to be invalidated; without any, everything."""
        with self._lock:
            self._notes += 1
            self._keys.update(dict.fromkeys(keys, self._notes))
            self._tags.update(dict.fromkeys(tags, self._notes))
            if not (keys or tags) or len(self._keys) + len(self._tags) > MOST:
                self._everything = self._notes
                self._keys.clear()
                self._tags.clear()
            self.some = True

    def after_fork(self) -> None:
        """In a forked child: a lock that another thread of the parent held would never be released here."""
        self._lock = Lock()
        self._much_is_paid = False

    def owes(self, *keys: str, tags: Iterable[str] = ()) -> bool:
        """Whether one of the keys, or of the tags, has yet to be invalidated on the server."""
        with self._lock:
            if self._everything > 0:
                return True
            return not (self._keys.keys().isdisjoint(keys) and self._tags.keys().isdisjoint(tags))

    async def pay_if_possible(self, store: Store) -> None:
        """As `pay`, but a store that refuses is no error, and is not asked again for a moment.

        Raises:
            StoreUnavailable: as `pay`.
        """
        if time.monotonic() < self._refused_until:
            return
        try:
            await self.pay(store)
        except StoreUnavailable:
            raise
        except StoreError:
            self._refused_until = time.monotonic() + _PAUSE

    async def pay(self, store: Store) -> None:
        """Send the invalidations; those that cannot be sent stay owed. If there are many, one caller sends them, and
        the others go without the cache meanwhile.

        Raises:
            StoreError: the store failed or refuses, or another caller is still sending.
        """
        with self._lock:
            if self._much_is_paid:
                raise StoreUnavailable("the server is being told of what was invalidated while it was away")
            keys, tags, everything, notes = tuple(self._keys), tuple(self._tags), self._everything > 0, self._notes
            much = self._much_is_paid = everything or len(keys) + len(tags) > _BATCH
        try:
            if everything:
                await store.flush()
                self._paid(notes, everything=True)
            for batch in _batches(tags):
                await store.flush_tags(batch)
                self._paid(notes, tags=batch)
            for batch in _batches(keys):
                await store.forget(batch)
                self._paid(notes, keys=batch)
        finally:
            if much:
                self._much_is_paid = False

    def _paid(
        self, notes: int, *, keys: Sequence[str] = (), tags: Sequence[str] = (), everything: bool = False
    ) -> None:
        """Strike out what was noted by then. What was noted once more since may be later than the store was told."""
        with self._lock:
            _strike_out(self._keys, keys, notes)
            _strike_out(self._tags, tags, notes)
            if everything and self._everything <= notes:
                self._everything = 0
            self.some = bool(self._keys or self._tags or self._everything)


def _strike_out(noted: dict[str, int], names: Iterable[str], notes: int) -> None:
    for name in names:
        if noted.get(name, math.inf) <= notes:
            del noted[name]


def _batches(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[begin : begin + _BATCH] for begin in range(0, len(names), _BATCH))
