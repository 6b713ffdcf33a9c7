"""Where entries are kept.

One store lies behind each cache. Stores do not judge entries: the engine does.

    base             what every store does: the contract that ``tests/contract`` checks
    memory           in this process. `policies` chooses what is evicted, `ends` knows what expires next, `versions` has
                     the versions of tags, `collector` keeps entries out of garbage collection
    redis            on a server; `repeats` spares decoding the same bytes again
    tiered           on a server, with copies in this process
    locks, limits    locks and rate limits, in memory and on a server
"""

from backburner.cache.stores.base import Store
from backburner.cache.stores.memory import MemoryStore
from backburner.cache.stores.redis import RedisStore
from backburner.cache.stores.tiered import Near, TieredStore

__all__ = ["MemoryStore", "Near", "RedisStore", "Store", "TieredStore"]
