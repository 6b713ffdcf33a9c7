"""What `Cache.stats()` returns."""

from collections.abc import Mapping
from dataclasses import dataclass

from backburner.cache.counters import Counts
from backburner.redis.tracking import Mode

__all__ = ["Stats"]


@dataclass(slots=True, kw_only=True)
class Stats(Counts):
    """What a cache has done in this process since it was made, or since the fork. Other processes are not included."""

    namespaces: Mapping[str, Counts]
    """The same counts by namespace: the part of keys before the first colon. Beyond 200, the rest is in ``"other"``."""
    available: bool
    """Whether the server answered when last asked."""
    tracking: Mode | None
    """How changes on the server are heard, so that copies in memory can be dropped; "off" while they are not, and no
    copies are kept. ``None`` if this cache keeps none."""
    memory_items: int
    """Entries in this process."""
    memory_bytes: int
    """How much memory they take."""
