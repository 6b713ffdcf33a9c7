"""What a callback can decide about the entry that it computes."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from backburner.cache.entry import TTL, TagVersions
from backburner.cache.keys import check_tags
from backburner.cache.runtime import run

Pin = Callable[[tuple[str, ...]], Coroutine[Any, Any, TagVersions | None]]
"""Reads the versions of tags; ``None`` if that was not possible."""


@dataclass(slots=True)
class Context:
    """Given to a callback that takes an argument."""

    key: str
    ttl: TTL
    tags: list[str]
    """Of the entry. A flush of those that are appended here counts from when the callback began, if that is no more
    than a minute ago; of those named by `tag` and `atag`, from then on, however long it takes."""
    _pin: Pin
    _apin: Pin
    versions: dict[str, bytes] = field(default_factory=dict)
    """Of tags that were named by `tag` and `atag`."""
    skipped: bool = False

    def skip(self) -> None:
        """Give the value to the caller, and do not store it."""
        self.skipped = True

    def tag(self, *tags: str) -> None:
        """Add tags that are known only now. Name them *before* reading the data that they stand for: a flush from then
        on makes the value dead. One round trip; in an asyncio callback, it blocks the event loop: use `atag`.

        Raises:
            ValueError: a tag makes no sense.
            StoreError: the cache is strict, and the server not there. Without `strict`, the value is not stored.
        """
        if new := self._new(tags):
            self._add(new, run(self._pin(new)))

    async def atag(self, *tags: str) -> None:
        """As `tag`, for callbacks that are coroutine functions."""
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
