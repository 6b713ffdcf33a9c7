"""Rate limits: at most so many of something in so much time, for all processes together.

One round trip per question, one key per limit, smooth instead of in windows (see `stores.limits`). This slows nobody
down by itself: what a refusal means is the caller's affair.
"""

from typing import TYPE_CHECKING, Any, Final

from backburner.cache.keys import check_name, fit
from backburner.cache.runtime import run
from backburner.cache.stores.limits import Allowance, Rate
from backburner.cache.verbs import Verbs
from backburner.errors import StoreError

if TYPE_CHECKING:
    from backburner.cache.engine import Engine

_LATER: Final = 1.0
"""Seconds after which to try again when the server is away: the longest that its absence goes unnoticed."""


class Limiter:
    """Counts one kind of thing; `Cache.limiter` makes it."""

    def __init__(self, cache: Verbs, name: str, *, fail_open: bool) -> None:
        self._cache = cache
        self._name = check_name("limiter's name", name)
        self._fail_open = fail_open

    def __repr__(self) -> str:
        return f"<Limiter {self._name!r} of {self._cache!r}>"

    def allow(self, key: str, rate: str, *, cost: int = 1) -> Allowance:
        """Whether it may happen now, and count it if so.

        Args:
            key: whose rate it is, such as a user's or an address. Any text.
            rate: ``"5/minute"``, ``"100/h"``, ``"10/30s"``. The same key has a rate of its own for each.
            cost: how many it counts for; 0 asks without counting.

        Raises:
            ValueError: the rate or the cost makes no sense.
            StoreError: the server is away, and the cache is strict.
        """
        return run(self._allow(self._cache._engine(), key, rate, cost))  # noqa: SLF001  # a part of the cache

    async def aallow(self, key: str, rate: str, *, cost: int = 1) -> Allowance:
        """As `allow`."""
        return await self._allow(self._cache._aengine(), key, rate, cost)  # noqa: SLF001

    async def _allow(self, engine: "Engine", key: str, rate: str, cost: Any) -> Allowance:
        parsed = Rate.parse(rate)
        if isinstance(cost, bool) or not isinstance(cost, int) or not 0 <= cost <= parsed.burst:
            raise ValueError(f"cost={cost!r}: with {rate!r} a call can cost from 0 to {parsed.burst}")
        if not isinstance(key, str):
            raise ValueError(f"the key of a limit must be text, not {type(key).__name__}: {key!r}")  # noqa: TRY004
        try:
            # The name and the rate have no control characters, so no other name, rate and key give the same.
            return await engine.store.limits.take(f"{self._name}\x01{parsed.text}\x01{fit(key)}", parsed, cost)
        except StoreError as error:
            engine.degraded("limit", (key,), error)
            return Allowance(self._fail_open, 0, 0.0 if self._fail_open else _LATER, 0.0)
