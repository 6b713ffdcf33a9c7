"""Invalidations that the server could not be told, because it was not there.

Without them an entry that was forgotten, or replaced, while the server was away would be back with the server. They are
made good before this process reads anything else from it. They live in this process: if it ends first, they end with
it, and the ttl of the entries is the bound.
"""

from collections.abc import Iterable, Iterator, Sequence
from threading import Lock
from typing import Final

from backburner.cache.stores.base import Store
from backburner.errors import StoreUnavailable

MOST: Final = 100_000
"""Names kept at most. More, and everything under the prefix goes: an empty cache is slow, a wrong one is wrong."""
_BATCH: Final = 1000
"""Names that the server is told at a time: in one go, many would take longer than it may, and so again each time."""


class Owed:
    """What the server still has to be told."""

    def __init__(self) -> None:
        self.some = False
        """Whether there is anything; read without the lock."""
        self._keys: set[str] = set()
        self._tags: set[str] = set()
        self._everything = False
        self._much_is_paid = False
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
        self._much_is_paid = False

    def owes(self, key: str, tags: Iterable[str]) -> bool:
        """Whether the server has to be told of a key, or of one of its tags."""
        with self._lock:
            return self._everything or key in self._keys or not self._tags.isdisjoint(tags)

    async def pay(self, store: Store) -> None:
        """Tell the store; what it cannot be told stays owed. Of much, one caller tells it, and the others do without.

        Raises:
            StoreError: it is still not there, or another caller is still at it.
        """
        with self._lock:
            if self._much_is_paid:
                raise StoreUnavailable("the server is being told of what was invalidated while it was away")
            keys, tags, everything = tuple(self._keys), tuple(self._tags), self._everything
            much = self._much_is_paid = everything or len(keys) + len(tags) > _BATCH
        try:
            if everything:
                await store.flush()
                self._paid(everything=True)
            for batch in _batches(tags):
                await store.flush_tags(batch)
                self._paid(tags=batch)
            for batch in _batches(keys):
                await store.forget(batch)
                self._paid(keys=batch)
        finally:
            if much:
                self._much_is_paid = False

    def _paid(self, *, keys: Sequence[str] = (), tags: Sequence[str] = (), everything: bool = False) -> None:
        with self._lock:
            self._keys.difference_update(keys)
            self._tags.difference_update(tags)
            self._everything = self._everything and not everything
            self.some = bool(self._keys or self._tags or self._everything)


def _batches(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[begin : begin + _BATCH] for begin in range(0, len(names), _BATCH))
