"""The versions of tags in this process, and how many entries carry each.

A version that no entry carries may be in use by a computation in progress, so it is kept until enough others have come.
A value that was computed with a version that is gone is a miss, never wrong.
"""

import secrets
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from backburner.cache.entry import VERSION_BYTES, TagVersions

MOST_IDLE: Final = 10_000
"""How many versions are kept that no entry carries."""


class Versions:
    """The current version of each tag. `get` may be called at any time, everything else only under one lock."""

    def __init__(self) -> None:
        self._versions: dict[str, bytes] = {}
        self._carriers: dict[str, int] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()
        self.get = self._versions.get

    def __len__(self) -> int:
        return len(self._versions)

    def pin(self, tags: Sequence[str]) -> list[bytes]:
        """The versions of tags; a tag without one is given a new one."""
        return [self._pinned(tag) for tag in tags]

    def _pinned(self, tag: str) -> bytes:
        version = self._versions.get(tag)
        if version is None:
            version = secrets.token_bytes(VERSION_BYTES)
            self.set(tag, version)
        elif tag in self._idle:
            self._idle.move_to_end(tag)
        return version

    def set(self, tag: str, version: bytes) -> None:
        """Give a tag a version that comes from elsewhere."""
        self._versions[tag] = version
        if tag not in self._carriers:
            self._idled(tag)

    def flush(self, tag: str) -> bool:
        """Remove the version of a tag. Returns whether it had one."""
        self._idle.pop(tag, None)
        return self._versions.pop(tag, None) is not None

    def carried(self, tags: TagVersions) -> None:
        """An entry with these tags was put."""
        for tag, _ in tags:
            self._carriers[tag] = self._carriers.get(tag, 0) + 1
            self._idle.pop(tag, None)

    def dropped(self, tags: TagVersions) -> None:
        """An entry with these tags is gone."""
        for tag, _ in tags:
            carriers = self._carriers[tag] - 1
            if carriers:
                self._carriers[tag] = carriers
            else:
                del self._carriers[tag]
                if tag in self._versions:
                    self._idled(tag)

    def clear(self) -> None:
        """Remove all versions, once all entries are gone."""
        self._versions.clear()
        self._carriers.clear()
        self._idle.clear()

    def _idled(self, tag: str) -> None:
        self._idle[tag] = None
        if len(self._idle) > MOST_IDLE:
            oldest, _ = self._idle.popitem(last=False)
            del self._versions[oldest]
