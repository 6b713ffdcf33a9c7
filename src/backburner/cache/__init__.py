"""The cache."""

from backburner.cache.cache import Cache, Stats, TaggedCache

__all__ = ["Cache", "Stats", "TaggedCache"]
