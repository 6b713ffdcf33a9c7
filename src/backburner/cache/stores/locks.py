"""Where locks are kept: who holds one, until when, and who is woken when it is free.

Waiters do not poll: they sleep until the holder releases the lock, or its time is up. One waiter is woken at a time,
roughly in order of arrival; a newcomer may be faster. A waiter that was woken but gives up must call `release`, which
passes its turn on. The verbs that users call are in `backburner.cache.locks`.
"""

import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Final, Protocol

from backburner.cache.keys import Keyspace
from backburner.redis.script import Script

_CLAIM: Final = Script.load("lock_claim")
_EXTEND: Final = Script.load("lock_extend")
_HELD: Final = Script.load("lock_held")
_RELEASE: Final = Script.load("lock_release")

_REMEMBERED: Final = 60_000
"""Milliseconds that the last fencing number outlives its owner: as far as the server's clock may be set back."""
_BELL: Final = 5_000
"""Milliseconds that a wake-up is kept for a waiter that has found the lock taken, but is not listening yet."""
_LOST: Final = 5.0
"""Seconds after which a waiter looks by itself: the process that got the wake-up may have died."""
_FEWEST: Final = 1024
"""Locks kept in memory before those that expired without being released are removed."""

Until = Callable[["Future[None]", float], Awaitable[None]]
"""Waits for a future, for so many seconds at most; blocking or asyncio, as the caller's runtime does."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The outcome of an attempt."""

    fence: int
    """The fencing number, larger than that of any earlier owner; 0 if somebody else holds the lock."""
    seconds: float
    """Until the other holder's time is up."""


class Locks(Protocol):
    """The locks of one store. All methods but the last may raise `StoreError`; times are seconds."""

    async def claim(self, name: str, owner: str, ttl: float) -> Claim:
        """Acquire a lock if nobody else holds it."""
        ...

    async def extend(self, name: str, owner: str, ttl: float) -> bool:
        """Hold it for `ttl` from now on. False if the owner does not hold it."""
        ...

    async def release(self, name: str, owner: str) -> bool:
        """Release it and wake a waiter. False if the owner does not hold it; if it is free, a waiter is woken all the
        same."""
        ...

    async def held(self, name: str) -> bool:
        """Whether anybody holds it."""
        ...

    async def wait(self, name: str, seconds: float, until: Until) -> None:
        """Return when the lock is given back, after `seconds`, or sooner."""
        ...


@dataclass(slots=True)
class _Held:
    owner: str = ""
    until: float = 0.0
    fence: int = 0
    waiters: deque[Future[None]] = field(default_factory=deque)


class MemoryLocks:
    """Locks among the threads and event loops of this process."""

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}
        self._fence = 0
        self._most = _FEWEST
        self._lock = Lock()

    def after_fork(self) -> None:
        """In a forked child: what the parent's threads hold and wait for belongs to the parent."""
        self.__init__()  # type: ignore[misc]

    async def claim(self, name: str, owner: str, ttl: float) -> Claim:
        now = time.monotonic()
        with self._lock:
            held = self._held.get(name)
            if held is None:
                self._make_room(now)
                held = self._held[name] = _Held()
            if held.until > now and held.owner != owner:
                return Claim(0, held.until - now)
            if held.until <= now:
                self._fence += 1
                held.fence = self._fence
            held.owner, held.until = owner, now + ttl
            return Claim(held.fence, 0.0)

    async def extend(self, name: str, owner: str, ttl: float) -> bool:
        now = time.monotonic()
        with self._lock:
            held = self._held.get(name)
            if held is None or held.owner != owner or held.until <= now:
                return False
            held.until = now + ttl
            return True

    async def release(self, name: str, owner: str) -> bool:
        now = time.monotonic()
        with self._lock:
            held = self._held.get(name)
            if held is None:
                return False
            mine = held.owner == owner and held.until > now
            if not mine and held.until > now:
                return False
            held.owner, held.until = "", 0.0
            if not _wake_one(held.waiters):
                del self._held[name]
            return mine

    async def held(self, name: str) -> bool:
        held = self._held.get(name)
        return held is not None and held.until > time.monotonic()

    async def wait(self, name: str, seconds: float, until: Until) -> None:
        waiter: Future[None] = Future()
        with self._lock:
            held = self._held.get(name)
            if held is None or held.until <= time.monotonic():
                return
            held.waiters.append(waiter)
        try:
            await until(waiter, seconds)
        finally:
            waiter.cancel()
            with self._lock, suppress(ValueError):  # it is out of the line already if it was woken
                held.waiters.remove(waiter)

    def _make_room(self, now: float) -> None:
        if len(self._held) >= self._most:
            self._held = {name: held for name, held in self._held.items() if held.until > now or held.waiters}
            self._most = max(_FEWEST, 2 * len(self._held))


def _wake_one(waiters: deque[Future[None]]) -> bool:
    while waiters:
        # False: it has given up just now.
        if (waiter := waiters.popleft()).set_running_or_notify_cancel():
            waiter.set_result(None)
            return True
    return False


class RedisLocks:
    """Locks among all processes that use the same server and prefix.

    Args:
        script: runs a script with names and arguments.
        pop: pops an item from a list, waiting for so many seconds or less. Returns whether it got one.
        keyspace: the names to use.
    """

    def __init__(
        self,
        script: Callable[[Script, Sequence[str], Sequence[object]], Awaitable[Any]],
        pop: Callable[[str, float], Awaitable[bool]],
        keyspace: Keyspace,
    ) -> None:
        self._script = script
        self._pop = pop
        self._keyspace = keyspace
        self._lines: dict[str, deque[Future[None]]] = {}
        self._lock = Lock()

    async def claim(self, name: str, owner: str, ttl: float) -> Claim:
        arguments = [owner, _milliseconds(ttl), _REMEMBERED]
        fence, left = await self._script(_CLAIM, [self._keyspace.lock(name)], arguments)
        return Claim(int(fence), int(left) / 1000)

    async def extend(self, name: str, owner: str, ttl: float) -> bool:
        arguments = [owner, _milliseconds(ttl), _REMEMBERED]
        return bool(await self._script(_EXTEND, [self._keyspace.lock(name)], arguments))

    async def release(self, name: str, owner: str) -> bool:
        names = [self._keyspace.lock(name), self._keyspace.bell(name)]
        return bool(await self._script(_RELEASE, names, [owner, _REMEMBERED, _BELL]))

    async def held(self, name: str) -> bool:
        return bool(await self._script(_HELD, [self._keyspace.lock(name)], []))

    async def wait(self, name: str, seconds: float, until: Until) -> None:
        # Only one waiter of this process listens to the server: a thousand must not take a thousand connections.
        deadline = time.monotonic() + min(seconds, _LOST)
        turn: Future[None] = Future()
        with self._lock:
            line = self._lines.setdefault(name, deque())
            line.append(turn)
            listens = line[0] is turn
        try:
            if not listens:
                await until(turn, deadline - time.monotonic())
                listens = turn.done()
            while listens and (left := deadline - time.monotonic()) > 0:
                if await self._pop(self._keyspace.bell(name), left):
                    return
        finally:
            self._leave(name, turn)

    def _leave(self, name: str, turn: Future[None]) -> None:
        with self._lock:
            line = self._lines[name]
            first = line[0] is turn
            line.remove(turn)
            if not line:
                del self._lines[name]
            elif first:
                line[0].set_result(None)


def _milliseconds(seconds: float) -> int:
    return max(1, math.ceil(seconds * 1000))
