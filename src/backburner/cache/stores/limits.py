"""Where rate limits are kept, and their arithmetic: GCRA, the generic cell rate algorithm.

The state of a key is a single time: the moment up to which its rate is used up. Each call moves it by the time that a
call takes at this rate, and is refused if it would then be further ahead of the present than a burst allows. There are
no counters and no windows, and so no double rate where two windows meet. All times are whole microseconds. See ITU-T
I.371, and Brandur Leach's "Rate Limiting, Cells, and GCRA".
"""

import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any, Final, Protocol, Self

from backburner.cache.keys import Keyspace
from backburner.redis.script import Script

_LIMIT: Final = Script.load("limit")
_SECOND: Final = 1_000_000
_RATE: Final = re.compile(
    r"\s*(\d{1,9})\s*/\s*(\d{0,9})\s*"
    r"(?:(s|sec|seconds?)|(m|min|minutes?)|(h|hours?)|(d|days?))\s*",
    re.IGNORECASE,
)
_UNITS: Final = (1, 60, 3600, 86_400)
_LONGEST: Final = 366 * 86_400
_FEWEST: Final = 1024
"""Keys kept in memory before those whose limit has fully recovered are removed."""


@dataclass(frozen=True, slots=True)
class Rate:
    """So many calls in a given time."""

    text: str
    interval: int
    """Microseconds that each call takes at this rate, rounded up."""
    burst: int
    """Calls that may come at once after a pause."""

    @classmethod
    @lru_cache(maxsize=256)
    def parse(cls, text: str) -> Self:
        """Read ``"5/minute"``, ``"100/h"`` or ``"10/30s"``.

        Raises:
            ValueError: it is not a rate.
        """
        match = _RATE.fullmatch(str(text))
        if match is None:
            raise ValueError(
                f"{text!r} is no rate; write how many, a slash and a time, such as '5/minute', '100/h' or '10/30s'"
            )
        count = int(match[1])
        unit = next(seconds for seconds, found in zip(_UNITS, match.groups()[2:], strict=True) if found)
        period = int(match[2] or 1) * unit
        if not 1 <= count <= period * _SECOND or period > _LONGEST:
            raise ValueError(f"{text!r} is no rate: from 1 a year to a million a second can be counted")
        return cls(f"{count}/{period}", -(-period * _SECOND // count), count)


@dataclass(frozen=True, slots=True)
class Allowance:
    """Whether something may happen now; its truth value is `allowed`. Times are seconds."""

    allowed: bool
    remaining: int
    """How many more calls would be allowed right now."""
    retry_after: float
    """When this call would be allowed; 0 if it is."""
    reset_after: float
    """When the limit will have fully recovered."""

    def __bool__(self) -> bool:
        return self.allowed


def judge(rate: Rate, cost: int, now: int, before: int) -> tuple[Allowance, int]:
    """Decide about a call, given the time and the state before it. Returns the decision and the state after it.
    Pure."""
    before = max(before, now)
    after = before + cost * rate.interval
    tolerance = rate.burst * rate.interval
    allowed = after - now <= tolerance
    if not allowed:
        after = before
    return (
        Allowance(
            allowed,
            remaining=(tolerance - (after - now)) // rate.interval,
            retry_after=0.0 if allowed else (before + cost * rate.interval - now - tolerance) / _SECOND,
            reset_after=(after - now) / _SECOND,
        ),
        after,
    )


class Limits(Protocol):
    """The rate limits of one store."""

    async def take(self, name: str, rate: Rate, cost: int) -> Allowance:
        """Count a call against the limit of this name, if the rate allows it. Atomic.

        Raises:
            StoreError: the store failed.
        """
        ...


class MemoryLimits:
    """Limits for this process."""

    def __init__(self) -> None:
        self._used: dict[str, int] = {}
        self._most = _FEWEST
        self._lock = Lock()

    def after_fork(self) -> None:
        """In a forked child: a lock that another thread of the parent held would never be released here."""
        self._lock = Lock()

    async def take(self, name: str, rate: Rate, cost: int) -> Allowance:
        now = time.monotonic_ns() // 1000
        with self._lock:
            allowance, after = judge(rate, cost, now, self._used.get(name, 0))
            if allowance and after > now:
                self._make_room(now)
                self._used[name] = after
        return allowance

    def _make_room(self, now: int) -> None:
        if len(self._used) >= self._most:
            self._used = {name: until for name, until in self._used.items() if until > now}
            self._most = max(_FEWEST, 2 * len(self._used))


class RedisLimits:
    """Limits for all processes that use the same server and prefix, by the server's clock.

    Args:
        script: runs a script with names and arguments.
        keyspace: the names to use.
    """

    def __init__(
        self,
        script: Callable[[Script, Sequence[str], Sequence[object]], Awaitable[Any]],
        keyspace: Keyspace,
    ) -> None:
        self._script = script
        self._keyspace = keyspace

    async def take(self, name: str, rate: Rate, cost: int) -> Allowance:
        arguments = [cost * rate.interval, rate.burst * rate.interval]
        now, before = await self._script(_LIMIT, [self._keyspace.limit(name)], arguments)
        allowance, _ = judge(rate, cost, int(now), int(before))
        return allowance
