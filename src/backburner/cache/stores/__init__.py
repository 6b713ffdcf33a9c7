"""Where entries are kept."""

from backburner.cache.stores.base import Store
from backburner.cache.stores.memory import MemoryStore
from backburner.cache.stores.redis import RedisStore
from backburner.cache.stores.tiered import Near, TieredStore

__all__ = ["MemoryStore", "Near", "RedisStore", "Store", "TieredStore"]
