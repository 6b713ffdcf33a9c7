"""Rate limits: at most so many of something in a given time, for all processes together.

One round trip per question, one key per limit, and a smooth rate instead of windows (see `stores.limits`). A limiter
only answers; what a refusal means is up to the caller.
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
"""`retry_after` while the server is away, in seconds: the longest pause of the breaker."""


class Limiter:
    """A rate limiter; made by `Cache.limiter`."""

    def __init__(self, cache: Verbs, name: str, *, fail_open: bool) -> None:
        self._cache = cache
        self._name = check_name("limiter's name", name)
        self._fail_open = fail_open

    def __repr__(self) -> str:
        return f"<Limiter {self._name!r} of {self._cache!r}>"

    def allow(self, key: str, rate: str, *, cost: int = 1) -> Allowance:
        """Decide whether something may happen now, and count it if so.

        Args:
            key: whom the rate is for, such as a user's id or an address. Any text.
            rate: ``"5/minute"``, ``"100/h"``, ``"10/30s"``. Different rates of one key are counted separately.
            cost: how much this counts for; 0 asks without counting.

        Raises:
            ValueError: the rate or the cost is invalid.
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
            # Name and rate contain no control characters, so different names, rates and keys cannot collide.
            return await engine.store.limits.take(f"{self._name}\x01{parsed.text}\x01{fit(key)}", parsed, cost)
        except StoreError as error:
            engine.degraded("limit", (key,), error)
            return Allowance(self._fail_open, 0, 0.0 if self._fail_open else _LATER, 0.0)
