"""Decoded entries, for when the server sends the same bytes again.

A read of a popular entry usually brings the same bytes as the read before. Then the checksum, the header, decompression
and what a response cache has made of the payload need not be done again. This saves neither a round trip nor bytes on
the wire: all bytes are compared, and freshness is judged anew each time. There are two halves; when the newer one is
full, the older one is dropped.
"""

from typing import Final

from backburner.cache.entry import Entry

MOST_BYTES: Final = 8 * 1024 * 1024
MOST_ITEMS: Final = 8192
_LARGEST: Final = MOST_BYTES // 4
_EACH: Final = 512
"""Bytes of overhead per item."""


class Repeats:
    """Entries by key, for a cache that keeps no copies. Without a lock: each step is a single dict operation, and a
    race loses an item at worst."""

    def __init__(self) -> None:
        self._young: dict[str, tuple[bytes, bytes, Entry]] = {}
        self._old: dict[str, tuple[bytes, bytes, Entry]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def find(self, key: str, data: bytes) -> Entry | None:
        """The entry of these bytes, if they are the ones that were kept last for this key."""
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
        """Keep the entry that bytes were decoded into. Nobody may change it from now on."""
        payload = entry.payload or b""
        # The entry holds the payload already; the rest of the data is kept, or all of it if the payload is not part of
        # it.
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
