"""What `Cache.stats()` gives."""

from collections.abc import Mapping
from dataclasses import dataclass

from backburner.cache.counters import Counts
from backburner.redis.tracking import Mode

__all__ = ["Stats"]


@dataclass(slots=True, kw_only=True)
class Stats(Counts):
    """What a cache did in this process since it was made, or forked. What other processes did is not in it."""

    namespaces: Mapping[str, Counts]
    """The same by what keys have before their first colon. Of many, the later ones together as ``"other"``."""
    available: bool
    """Whether the server answered when last asked."""
    tracking: Mode | None
    """How changes of what is kept in memory are heard of, "off" while they are not; ``None`` where nothing is kept of
    a server."""
    memory_items: int
    """Entries in this process."""
    memory_bytes: int
    """What they take."""
