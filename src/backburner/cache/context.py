"""`Context`: what a callback can decide about the entry that it computes."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from backburner.cache.entry import TTL, TagVersions
from backburner.cache.keys import check_tags
from backburner.cache.runtime import run

Pin = Callable[[tuple[str, ...]], Coroutine[Any, Any, TagVersions | None]]
"""Reads the versions of tags; ``None`` if the store failed."""


@dataclass(slots=True)
class Context:
    """Passed to a callback that takes an argument."""

    key: str
    ttl: TTL
    tags: list[str]
    """The entry's tags. A flush of a tag that is appended here is noticed if it came after the callback began, no more
    than a minute ago; a flush of a tag added by `tag` or `atag`, if it came after that call, however long ago."""
    _pin: Pin
    _apin: Pin
    versions: dict[str, bytes] = field(default_factory=dict)
    """Versions of the tags added by `tag` and `atag`."""
    skipped: bool = False

    def skip(self) -> None:
        """Return the value to the caller, but do not store it."""
        self.skipped = True

    def tag(self, *tags: str) -> None:
        """Add tags that are known only now. Call this *before* reading the data that they stand for: any later flush
        then invalidates the value. Takes one round trip; in an asyncio callback that blocks the event loop, so use
        `atag`.

        Raises:
            ValueError: a tag is invalid.
            StoreError: the server is away, and the cache is strict. If it is not strict, the value is not stored.
        """
        if new := self._new(tags):
            self._add(new, run(self._pin(new)))

    async def atag(self, *tags: str) -> None:
        """As `tag`, for coroutine functions."""
        if new := self._new(tags):
            self._add(new, await self._apin(new))

    def _new(self, tags: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(tag for tag in check_tags(tags) if tag not in self.versions)

    def _add(self, tags: tuple[str, ...], versions: TagVersions | None) -> None:
        self.tags.extend(tags)
        if versions is None:
            self.skip()
        else:
            self.versions.update(versions)
