"""Locks: one owner at a time, among all processes that use the same server.

A lock does not degrade as the cache does: if the server does not answer, nobody gets the lock, and that is an error
even if the cache is not strict. A lock is held for a limited time, since its holder may die; a holder that takes longer
loses it without noticing. Where that matters, pass `Lock.fence` to whatever you write to, and let it refuse smaller
numbers.
"""

import secrets
import time
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from backburner.cache.entry import Duration, seconds
from backburner.cache.keys import check_name
from backburner.cache.runtime import run
from backburner.cache.verbs import Verbs
from backburner.errors import LockTimeout, StoreError
from backburner.events import Degraded, Events, LockLost

if TYPE_CHECKING:
    from backburner.cache.engine import Engine

_LONGEST: Final = 366 * 86_400.0


class Lock:
    """One owner's handle on a lock; made by `Cache.lock`. Not to be shared: each owner makes its own.

    As a context manager, with or without `async`, it waits for the lock and releases it at the end. It is not
    re-entrant.
    """

    def __init__(
        self, cache: Verbs, events: Events, name: str, ttl: Duration, wait: Duration | None, owner: str | None
    ) -> None:
        self.name = check_name("lock's name", name)
        self.owner = check_name("lock's owner", owner) if owner is not None else secrets.token_hex(16)
        """The owner's token. Any `Lock` with this token, in any process, can extend and release the lock."""
        self.fence = 0
        """The fencing number: larger than that of every earlier owner; 0 until the lock is acquired."""
        self._cache = cache
        self._events = events
        self._ttl = _positive("ttl", ttl)
        self._wait = self._ttl if wait is None else _waiting(wait)
        self._acquired_at = 0.0
        self._ends_at = 0.0
        self._entered = False

    def __repr__(self) -> str:
        return f"<Lock {self.name!r} of {self._cache!r}>"

    def acquire(self, *, blocking: bool = True, wait: Duration | None = None) -> bool:
        """Acquire the lock, waiting for it if somebody else holds it. Returns whether it was acquired.

        Args:
            blocking: whether to wait at all.
            wait: how long to wait at most; ``None``: the `wait` that the lock was made with.

        Raises:
            StoreUnavailable: the server does not answer.
            RuntimeError: this very object holds the lock already.
        """
        return run(self._acquire(self._cache._engine(), self._patience(blocking, wait)))  # noqa: SLF001

    async def aacquire(self, *, blocking: bool = True, wait: Duration | None = None) -> bool:
        """As `acquire`."""
        return await self._acquire(self._cache._aengine(), self._patience(blocking, wait))  # noqa: SLF001

    def block(self, wait: Duration | None = None) -> Self:
        """Acquire the lock or raise: ``with cache.lock("import", ttl=30).block(5): …``.

        Raises:
            LockTimeout: it was not free within the time.
            StoreUnavailable: the server does not answer.
            RuntimeError: this very object holds the lock already.
        """
        patience = self._patience(True, wait)
        if not self.acquire(wait=patience):
            raise self._timed_out(patience)
        return self

    async def ablock(self, wait: Duration | None = None) -> Self:
        """As `block`: ``async with await cache.lock("import", ttl=30).ablock(5): …``."""
        patience = self._patience(True, wait)
        if not await self.aacquire(wait=patience):
            raise self._timed_out(patience)
        return self

    def extend(self, ttl: Duration | None = None) -> bool:
        """Hold the lock for `ttl` from now on, by default the ttl it was made with. ``False`` if it is no longer ours.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        return run(self._extend(self._cache._engine(), ttl))  # noqa: SLF001

    async def aextend(self, ttl: Duration | None = None) -> bool:
        """As `extend`."""
        return await self._extend(self._cache._aengine(), ttl)  # noqa: SLF001

    def release(self) -> bool:
        """Release the lock and wake a waiter. ``False`` if it was not, or no longer, ours; then nothing changes.

        Raises:
            StoreUnavailable: the server does not answer; the lock ends with its ttl.
        """
        return run(self._release(self._cache._engine()))  # noqa: SLF001

    async def arelease(self) -> bool:
        """As `release`."""
        return await self._release(self._cache._aengine())  # noqa: SLF001

    def locked(self) -> bool:
        """Whether anybody holds the lock.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        return run(self._cache._engine().store.locks.held(self.name))  # noqa: SLF001

    async def alocked(self) -> bool:
        """As `locked`."""
        return await self._cache._aengine().store.locks.held(self.name)  # noqa: SLF001

    def __enter__(self) -> Self:
        if self._entered or not self._held:
            self.block()
        self._entered = True
        return self

    async def __aenter__(self) -> Self:
        if self._entered or not self._held:
            await self.ablock()
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        run(self._leave(self._cache._engine()))  # noqa: SLF001

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leave(self._cache._aengine())  # noqa: SLF001

    @property
    def _held(self) -> bool:
        return time.monotonic() < self._ends_at

    async def _acquire(self, engine: "Engine", patience: float) -> bool:
        if self._held:
            raise RuntimeError(
                f"this object holds the lock {self.name!r} already; each owner makes its own with cache.lock(…)"
            )
        locks = engine.store.locks
        deadline = time.monotonic() + patience
        try:
            while True:
                asked_at = time.monotonic()
                claim = await locks.claim(self.name, self.owner, self._ttl)
                if claim.fence:
                    self.fence = claim.fence
                    self._acquired_at, self._ends_at = asked_at, asked_at + self._ttl
                    return True
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                await locks.wait(self.name, min(left, claim.seconds), engine.runtime.until)
        except (StoreError, GeneratorExit):
            raise
        except BaseException:
            # Cancelled, or interrupted by a signal handler: the lock may be ours although the reply has not reached us,
            # or it may be our turn.
            with suppress(StoreError):
                await locks.release(self.name, self.owner)
            raise

    async def _extend(self, engine: "Engine", ttl: Duration | None) -> bool:
        lifetime = self._ttl if ttl is None else _positive("ttl", ttl)
        asked_at = time.monotonic()
        extended = await engine.store.locks.extend(self.name, self.owner, lifetime)
        self._ends_at = asked_at + lifetime if extended else 0.0
        return extended

    async def _release(self, engine: "Engine") -> bool:
        self._ends_at = 0.0
        return await engine.store.locks.release(self.name, self.owner)

    async def _leave(self, engine: "Engine") -> None:
        self._entered = False
        # The work under the lock is done, so nothing is raised here.
        try:
            if not await self._release(engine):
                self._events.emit(LockLost(self.name, time.monotonic() - self._acquired_at))
        except StoreError as error:
            self._events.emit(Degraded("release", (self.name,), error))

    def _patience(self, blocking: bool, wait: Duration | None) -> float:
        if not blocking:
            return 0.0
        return self._wait if wait is None else _waiting(wait)

    def _timed_out(self, patience: float) -> LockTimeout:
        return LockTimeout(
            f"the lock {self.name!r} was not free within {patience:g} s. Wait longer (wait=…), do less while holding "
            "it, or try again later"
        )


def _positive(what: str, duration: Duration) -> float:
    length = seconds(duration)
    if not 0 < length <= _LONGEST:
        raise ValueError(f"{what}={duration!r}: a lock is held for a time, since its holder may die; write ttl=30")
    return length


def _waiting(wait: Duration) -> float:
    return max(0.0, seconds(wait))
