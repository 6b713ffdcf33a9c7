"""The cache."""

from backburner.cache.cache import Cache, TaggedCache
from backburner.cache.limiter import Limiter
from backburner.cache.locks import Lock
from backburner.cache.stats import Stats
from backburner.cache.stores.limits import Allowance

__all__ = ["Allowance", "Cache", "Limiter", "Lock", "Stats", "TaggedCache"]
