"""The cache.

A read goes down this list until something answers it:

    verbs, cache       what users call, blocking and with an `a` in front; a hit in memory is answered right there
    engine, runtime    what each verb does, written once for both worlds; how the two worlds differ
    remember           reading through, for one key; `remember_many` for several. `plan`: options; `flight`: one
                       computation per process; `leases`: one per server; `context`: what a callback decides; `finding`
    stores             where entries lie: in memory, on a server, or there with copies in memory

    entry              one entry: its times, its bytes, and what it is good for at a given moment
    keys               which keys are allowed, and what they are called on the server
    codec              values to bytes: `converters` (types), `typemap`, `schema` (fingerprints), `compression`
    shape              values checked against a type that the reader asks for
    decorators         `@cached`: `templates` and `compiled` make the code of its keys; `default` is its cache
    memo, scope        one read per request
    locks, limiter     locks and rate limits
    owed               invalidations that the server missed while it was away
    counters, stats    what happened, in numbers; `metrics` for monitoring, `trouble` for logs, `explanation` for people
"""

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
