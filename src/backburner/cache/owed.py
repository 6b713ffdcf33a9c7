"""Invalidations that the server could not be told, because it was not there.

Without them an entry that was forgotten, or replaced, while the server was away would be back with the server. They are
made good before this process reads anything else from it. They live in this process: if it ends first, they end with
it, and the ttl of the entries is the bound.
"""

from collections.abc import Iterable
from threading import Lock
from typing import Final

from backburner.cache.stores.base import Store

MOST: Final = 100_000
"""Names kept at most. More, and everything under the prefix goes: an empty cache is slow, a wrong one is wrong."""


class Owed:
    """What the server still has to be told."""

    def __init__(self) -> None:
        self.some = False
        """Whether there is anything; read without the lock."""
        self._keys: set[str] = set()
        self._tags: set[str] = set()
        self._everything = False
        self._lock = Lock()

    def add(self, *, keys: tuple[str, ...] = (), tags: tuple[str, ...] = ()) -> None:
        """Note names to be removed; without any, everything."""
        with self._lock:
            self._keys.update(keys)
            self._tags.update(tags)
            self._everything |= not (keys or tags) or len(self._keys) + len(self._tags) > MOST
            if self._everything:
                self._keys.clear()
                self._tags.clear()
            self.some = True

    def after_fork(self) -> None:
        """In a forked child: a lock that another thread of the parent held would never be released here."""
        self._lock = Lock()

    def owes(self, key: str, tags: Iterable[str]) -> bool:
        """Whether the server has to be told of a key, or of one of its tags."""
        with self._lock:
            return self._everything or key in self._keys or not self._tags.isdisjoint(tags)

    async def pay(self, store: Store) -> None:
        """Tell the store; what it cannot be told stays owed.

        Raises:
            StoreError: it is still not there.
        """
        with self._lock:
            keys, tags, everything = tuple(self._keys), tuple(self._tags), self._everything
        if everything:
            await store.flush()
        if tags:
            await store.flush_tags(tags)
        if keys:
            await store.forget(keys)
        with self._lock:
            self._keys.difference_update(keys)
            self._tags.difference_update(tags)
            self._everything = self._everything and not everything
            self.some = bool(self._keys or self._tags or self._everything)
