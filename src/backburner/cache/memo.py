"""A cache that reads each key once per unit of work, such as a request, and returns the same object from then on.

Outside of a scope it behaves like the cache itself. Reads of several keys (`many` and its kin), `has` and counters
always go to the cache, and are not kept. After a write within the scope, through whichever cache object, the key is
read again; writes of others are not seen until the scope ends.
"""

from collections.abc import Callable
from typing import Any

from backburner.cache.engine import MISSING, Engine
from backburner.cache.plan import Plan
from backburner.cache.remember import ReadThrough
from backburner.cache.scope import current_scope
from backburner.cache.shape import Shape, shape_of
from backburner.cache.verbs import Verbs

_Keeper = Callable[[str, Shape | None], Callable[[object], object]]


class MemoizedCache(Verbs):
    """What `Cache.memo` returns."""

    def __init__(self, cache: Verbs) -> None:
        self._cache = cache
        self._tags = cache._tags  # noqa: SLF001  # as below, another face of the same cache

    def __repr__(self) -> str:
        return f"<MemoizedCache of {self._cache!r}>"

    def tags(self, *tags: str) -> "MemoizedCache":
        """The same cache, but its writes carry these tags."""
        return MemoizedCache(self._cache.tags(*tags))

    def flush(self) -> bool:
        """As `Cache.flush` or, with tags, `TaggedCache.flush`."""
        return self._cache.flush()

    async def aflush(self) -> bool:
        """As `flush`."""
        return await self._cache.aflush()

    def _engine(self) -> Engine:
        return self._cache._engine()  # noqa: SLF001

    def _aengine(self) -> Engine:
        return self._cache._aengine()  # noqa: SLF001

    def _hit(self, key: str) -> object:
        return self._kept_or(key, None, self._cache._hit)  # noqa: SLF001

    def _hit_as(self, key: str, annotation: Any) -> object:
        shape = shape_of(annotation)
        return self._kept_or(key, shape, lambda key: self._cache._hit_as(key, shape))  # noqa: SLF001

    def _kept_or(self, key: str, shape: Shape | None, hit: Callable[[str], object]) -> object:
        scope = current_scope()
        if scope is None or not isinstance(key, str):
            return hit(key)
        owner = self._owner()
        value = scope.find(owner, key, shape, MISSING)
        if value is MISSING:
            writes = scope.writes
            value = hit(key)
            if value is not MISSING:
                value = scope.keep(owner, key, shape, value, writes)
        return value

    def _owner(self) -> object:
        """Identifies the cache in a scope: what all its faces share, and what learns of every write."""
        return self._engine().flights

    def _keeper(self, key: str, shape: Shape | None) -> Callable[[object], object]:
        """A function that keeps a value that is about to be read, and returns the one to use."""
        scope = current_scope()
        if scope is None:
            return lambda value: value
        owner, writes = self._owner(), scope.writes
        return lambda value: value if value is MISSING else scope.keep(owner, key, shape, value, writes)

    async def _get(self, engine: Engine, key: str, shape: Shape | None) -> object:
        keep = self._keeper(key, shape)
        return keep(await engine.get(key, shape))

    def _read_through(self, engine: Engine) -> ReadThrough:
        return _KeptReading(engine, self._engine(), self._keeper)


class _KeptReading(ReadThrough):
    """Reads through, and keeps each value in the scope."""

    def __init__(self, engine: Engine, blocking: Engine, keeper: _Keeper) -> None:
        super().__init__(engine, blocking)
        self._keeper = keeper

    async def remember(self, key: str, plan: Plan, deadline: float | None = None) -> object:
        keep = self._keeper(key, plan.shape)
        return keep(await super().remember(key, plan, deadline))
