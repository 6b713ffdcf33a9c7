"""What was made of the bytes of an entry, for when the server sends the same bytes again.

A read of a popular entry brings, most of the time, what the read before brought. Then its checksum, its header, its
decompression and what a response cache has made of it need not be done again. It saves no question to the server and
no byte on the way: whether the bytes are the same is seen by comparing all of them, and whether the entry is fresh is
judged anew each time. Of two halves the older one is dropped when the newer one is full.
"""

from typing import Final

from backburner.cache.entry import Entry

MOST_BYTES: Final = 8 * 1024 * 1024
MOST_ITEMS: Final = 8192
_LARGEST: Final = MOST_BYTES // 4
_EACH: Final = 512
"""Bytes of an item beyond what is counted."""


class Repeats:
    """Entries by their keys, of a cache that keeps no copies. Without a lock: each step is one operation of a dict,
    and who comes in between loses an item at worst."""

    def __init__(self) -> None:
        self._young: dict[str, tuple[bytes, bytes, Entry]] = {}
        self._old: dict[str, tuple[bytes, bytes, Entry]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def find(self, key: str, data: bytes) -> Entry | None:
        """The entry that these bytes were the last time, if they were."""
        item = self._young.get(key)
        if item is None:
            item = self._old.get(key)
            if item is None:
                return None
        head, rest, entry = item
        if len(data) != len(head) + len(rest) or not data.startswith(head) or not data.endswith(rest):
            return None
        if key not in self._young:
            self._add(key, item)
        return entry

    def keep(self, key: str, data: bytes, entry: Entry) -> None:
        """Keep what bytes have become. Nobody may change the entry from now on."""
        payload = entry.payload or b""
        # The payload is there already; only where it is not part of the data, the data is kept too.
        head = data[: len(data) - len(payload)] if payload and data.endswith(payload) else data
        item = head, payload if head is not data else b"", entry
        if _size(item) <= _LARGEST:
            self._add(key, item)

    def _add(self, key: str, item: tuple[bytes, bytes, Entry]) -> None:
        if self._bytes > MOST_BYTES // 2 or len(self._young) >= MOST_ITEMS // 2:
            self._old, self._young = self._young, {}
            self._bytes = 0
        self._young[key] = item
        self._bytes += _size(item)


def _size(item: tuple[bytes, bytes, Entry]) -> int:
    head, _, entry = item
    # Twice, since what a response cache makes of a payload is about as large.
    return _EACH + len(head) + 2 * len(entry.payload or b"")
