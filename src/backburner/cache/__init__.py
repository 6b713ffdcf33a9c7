"""The cache."""

from backburner.cache.cache import Cache, TaggedCache
from backburner.cache.context import Context
from backburner.cache.explanation import Explanation
from backburner.cache.limiter import Limiter
from backburner.cache.locks import Lock
from backburner.cache.memo import MemoizedCache
from backburner.cache.plan import FlexibleOptions, Options
from backburner.cache.scope import memo_scope
from backburner.cache.stats import Stats
from backburner.cache.stores.limits import Allowance

__all__ = [
    "Allowance",
    "Cache",
    "Context",
    "Explanation",
    "FlexibleOptions",
    "Limiter",
    "Lock",
    "MemoizedCache",
    "Options",
    "Stats",
    "TaggedCache",
    "memo_scope",
]
