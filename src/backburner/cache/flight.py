"""One computation per key at a time in this process, for all threads, tasks and event loops.

The first caller leads: it reads the store and, on a miss, calls the callback. Callers that come meanwhile follow: they
wait and share the outcome (single-flight). If the leader is cancelled or killed, its followers start again and one of
them leads. If the key is written or removed, or one of its tags flushed, the flight is superseded: later callers start
a new one, and what the old one computes is not stored.
"""

import asyncio
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from threading import Lock
from time import perf_counter
from typing import Final

from backburner.cache.entry import Entry
from backburner.cache.scope import current_scope
from backburner.cache.stores.base import Turn

_leading: Final[ContextVar[frozenset["Flight"]]] = ContextVar("backburner_flights_led_here", default=frozenset())


class LeftOut(LookupError):
    """A callback for several keys returned no value for a key that it was asked for alone."""


class Flight:
    """A computation in progress."""

    __slots__ = (
        "awaits",
        "began",
        "entry",
        "error",
        "key",
        "landed",
        "late",
        "loop",
        "overtaken",
        "stale",
        "superseded",
        "tags",
        "turn",
    )

    def __init__(self, key: str, loop: asyncio.AbstractEventLoop | None, tags: Collection[str] | None = None) -> None:
        self.key = key
        self.began = perf_counter()
        self.landed: Future[None] = Future()
        """Done when there is an outcome."""
        self.landed.set_running_or_notify_cancel()  # so that a follower who is cancelled cancels nobody else
        self.loop = loop
        """The leader's event loop, if the leader is a task."""
        self.tags = tags
        """The tags of the value, as far as they have been named; ``None``: unknown."""
        self.awaits: set[Flight] = set()
        """Flights that its callback waits for."""
        self.turn: Turn | None = None
        """The leader's right to store the outcome, once it has one."""
        self.superseded = False
        """Whether the key has been written or removed since, or one of its tags flushed."""
        self.overtaken = False
        """Whether the value was already outdated when the flight landed, perhaps before the last follower joined."""
        self.late = False
        """Whether a caller has left before it landed."""
        self.entry: Entry | None = None
        """The outcome. If `error` is not set either, the leader gave up."""
        self.stale = False
        """Whether the entry is past its freshness."""
        self.error: Exception | None = None

    def carries(self, tags: Collection[str]) -> bool:
        """Whether the value has any of these tags, or may have."""
        return self.tags is None or any(tag in self.tags for tag in tags)

    def outcome(self) -> Entry | None:
        """The entry; ``None`` if the leader gave up and somebody else must lead.

        Raises:
            Exception: what the callback raised. Each caller gets its own copy, since raising adds a traceback to it.
        """
        if self.error is not None:
            raise _fresh_copy(self.error) from self.error
        return self.entry


class Flights:
    """All flights of one cache."""

    def __init__(self) -> None:
        self._under_way: dict[str, Flight] = {}
        self._renewals: dict[str, Flight] = {}
        self._going_on: dict[str, list[Flight]] = {}  # all of these, and superseded ones
        # Held for operations on these only. Whatever loops under it is a function of its own: where a loop jumps back,
        # Python 3.12 and 3.13 leave it locked if a signal's handler raises just then (python/cpython#130279).
        self._lock = Lock()

    def join(
        self, key: str, loop: asyncio.AbstractEventLoop | None, tags: Collection[str] | None = None
    ) -> tuple[Flight, bool]:
        """The flight of a key, and whether the caller leads it.

        Args:
            tags: as `Flight.tags`, in case the caller leads.

        Raises:
            RuntimeError: the caller is the callback of this very flight, and would wait for itself.
        """
        begun = Flight(key, loop, tags)
        try:
            with self._lock:
                flight = self._under_way.setdefault(key, begun)
                if flight is begun:
                    self._going_on.setdefault(key, []).append(begun)
        except BaseException:  # from a signal's handler: nobody would ever land it
            self.land(begun)
            raise
        if flight is begun:
            return begun, True
        if flight in _leading.get():
            raise RuntimeError(f"the callback for {key!r} asks the cache for {key!r}: it would wait for itself")
        return flight, False

    def try_renewing(
        self, key: str, loop: asyncio.AbstractEventLoop | None, tags: Collection[str] | None = None
    ) -> Flight | None:
        """Begin a flight that renews a key which still has a value; ``None`` if somebody is renewing it already."""
        begun = Flight(key, loop, tags)
        try:
            with self._lock:
                if self._renewals.setdefault(key, begun) is not begun:
                    return None
                self._going_on.setdefault(key, []).append(begun)
        except BaseException:
            self.land(begun)
            raise
        return begun

    def going_on(self, key: str) -> list[Flight]:
        """All flights of a key that have not landed, including a renewal and superseded ones."""
        with self._lock:
            return list(self._going_on.get(key, ()))

    def supersede(self, keys: Iterable[str]) -> None:
        """Report that keys were written or removed."""
        _forget_in_scope(self, keys)
        if not self._under_way and not self._renewals:
            return
        with self._lock:
            self._supersede(keys)

    def flush(self, tags: Collection[str]) -> None:
        """Report that everything with any of these tags was removed; without tags, everything."""
        _forget_in_scope(self, None)
        with self._lock:
            self._supersede_tagged(tags)

    def land(self, flight: Flight) -> None:
        """Report that the leader is done, with or without success, and wake its followers. May be repeated."""
        with self._lock:
            self._remove(flight)
            landed = flight.landed.done()
        if not landed:
            flight.landed.set_result(None)

    # Under the lock

    def _supersede(self, keys: Iterable[str]) -> None:
        for flights in (self._under_way, self._renewals):
            for key in keys:
                flight = flights.pop(key, None)
                if flight is not None:
                    flight.superseded = True

    def _supersede_tagged(self, tags: Collection[str]) -> None:
        for flights in (self._under_way, self._renewals):
            for key in [key for key, flight in flights.items() if not tags or flight.carries(tags)]:
                flights.pop(key).superseded = True

    def _remove(self, flight: Flight) -> None:
        others = self._going_on.get(flight.key)
        if others is not None:
            if flight in others:
                others.remove(flight)
            if not others:
                del self._going_on[flight.key]
        for flights in (self._under_way, self._renewals):
            if flights.get(flight.key) is flight:
                del flights[flight.key]


class leading:  # noqa: N801  # reads as a statement: `with leading(flight):`
    """Context manager: calls made within belong to these flights."""

    def __init__(self, *flights: Flight) -> None:
        self._flights = flights

    def __enter__(self) -> None:
        self._token = _leading.set(_leading.get().union(self._flights))

    def __exit__(self, *_: object) -> None:
        _leading.reset(self._token)


@contextmanager
def following(flight: Flight) -> Iterator[None]:
    """Surrounds the wait for a flight of somebody else's.

    Raises:
        RuntimeError: it waits for a flight that the caller leads, by way of others or not: both would for ever.
    """
    led = {mine for mine in _leading.get() if not mine.landed.done()}
    for mine in led:
        mine.awaits.add(flight)  # before the look, so that of two callers at once one sees the other
    try:
        if led and (circle := led & _awaited_by(flight)):
            keys = " and ".join(repr(one.key) for one in (*circle, flight))
            raise RuntimeError(
                f"the callbacks for {keys} ask the cache for each other's value: they would wait for ever"
            )
        yield
    finally:
        for mine in led:
            mine.awaits.discard(flight)


def _awaited_by(flight: Flight) -> set[Flight]:
    found: set[Flight] = set()
    ahead = [flight]
    while ahead:
        new = ahead.pop().awaits.copy() - found  # a copy, since its callback may be about to add to it
        found |= new
        ahead += new
    return found


def _forget_in_scope(flights: Flights, keys: Iterable[str] | None) -> None:
    if (scope := current_scope()) is not None:
        scope.forget(flights, keys)


def _fresh_copy(error: Exception) -> Exception:
    """A copy of `error`; the object itself if it cannot be copied."""
    try:
        twin = copy(error)
    except Exception:  # noqa: BLE001  # a class of the user's; it may raise anything
        return error
    return twin.with_traceback(None) if type(twin) is type(error) else error
