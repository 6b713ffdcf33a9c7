"""Where entries are kept."""

from backburner.cache.stores.base import Store
from backburner.cache.stores.memory import MemoryStore
from backburner.cache.stores.redis import RedisStore

__all__ = ["MemoryStore", "RedisStore", "Store"]
