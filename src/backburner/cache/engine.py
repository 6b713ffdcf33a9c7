"""What the verbs of a cache do, written once for blocking and asyncio callers. (Reading through is in `remember`.)

Coroutines over a store (where entries are) and a runtime (how to wait). The engine decides what a failing store means:
reads become misses, writes report that they did not happen, and both emit events; with `strict`, they raise. What the
user's callback raises passes through unchanged.
"""

import math
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import Enum, auto
from random import random
from typing import Final, Literal, TypeVar

from backburner.cache.codec import Codec, is_immutable
from backburner.cache.counters import Counters
from backburner.cache.entry import (
    COUNTER,
    ENCODED,
    INT64,
    TTL,
    Decision,
    Entry,
    TagVersions,
    decide,
    refresh_point,
    seconds,
)
from backburner.cache.explanation import Explanation, explain
from backburner.cache.flight import Flights
from backburner.cache.leases import Leases
from backburner.cache.owed import Owed
from backburner.cache.runtime import Runtime
from backburner.cache.shape import Shape
from backburner.cache.stores.base import Find, Rest, Seen, Store, Turn
from backburner.errors import CodecError, StoreError, ValueTooLarge
from backburner.events import (
    Computed,
    Degraded,
    Event,
    Events,
    Hit,
    Invalidated,
    LeaseLost,
    Miss,
    Stored,
    Tier,
    Undecodable,
    Waited,
)

T = TypeVar("T")

FOREVER: Final = math.inf
_TAGS_OUTLIVE: Final = 60.0
"""Seconds that a tag's version outlives the entry: time for computing and writing it."""


class _Missing(Enum):
    """No value, as opposed to the value ``None``."""

    MISSING = auto()


MISSING: Final = _Missing.MISSING


class Computation:
    """A finished call of a user's callback."""

    __slots__ = ("seconds",)

    seconds: float
    """How long it took."""


class Engine:
    """The verbs over one store, in one runtime. The engines of one cache share everything given by keyword."""

    def __init__(
        self,
        store: Store,
        runtime: Runtime,
        *,
        codec: Codec,
        flights: Flights,
        owed: Owed,
        events: Events,
        counters: Counters,
        default_ttl: float,
        max_value_bytes: int,
        leases: Leases,
        strict: bool,
    ) -> None:
        self.store = store
        self.runtime = runtime
        self._codec = codec
        self.flights = flights
        self._owed = owed
        self._events = events
        self._counters = counters
        self._default_ttl = default_ttl
        self._max_value_bytes = max_value_bytes
        self._leases = leases
        self._strict = strict

    # Reading

    async def get(self, key: str, shape: Shape | None = None) -> object:
        """The value, or `MISSING`."""
        # Written out instead of calling `judge`: this is the path of most reads, and every coroutine on it costs.
        try:
            if self._owed.some and not await self._readable((key,)):
                entry = None
            else:
                entry = await self.store.read_one(key)
            current = await self.current(entry) if entry is not None and entry.tags else ()
        except StoreError as error:
            self.degraded("get", (key,), error)
            return MISSING
        value: object = MISSING
        if entry is not None and decide(entry, self.runtime.now(), current).fresh:
            value = self.value(key, entry, shape)
        self.count(key, value, entry)
        return value

    async def many(self, keys: Sequence[str], shape: Shape | None = None) -> dict[str, object]:
        """The values of those keys that have one."""
        if not keys:
            return {}
        return await self._or_else({}, "get", keys, self.fresh_values(keys, shape))

    async def has(self, key: str) -> bool:
        """Whether a fresh entry is there, without decoding it."""
        return await self._or_else(False, "has", (key,), self._has(key))

    async def _has(self, key: str) -> bool:
        _, decision = await self.judge(key)
        return decision.fresh

    async def explain(self, key: str) -> Explanation:
        """Explain what a read of a key finds. Nothing is counted, and no event is emitted."""
        current: dict[str, bytes | None] = {}
        find: Find | StoreError
        try:
            find = await self.store.find(key)
            entry = find.kept if find.entry is None else find.entry
            if entry is not None and entry.tags:
                names = [tag for tag, _ in entry.tags]
                current = dict(zip(names, await self._versions(names), strict=True))
        except StoreError as error:
            find = error
        return explain(
            key,
            find,
            current,
            self.runtime.now(),
            owed=self._owed.owes(key, tags=current),
            decode=lambda payload: self._codec.decode(payload, key),
        )

    async def pull(self, key: str, shape: Shape | None = None) -> object:
        """Remove the entry and return its value, or `MISSING`."""
        return await self._or_else(MISSING, "pull", (key,), self._pull(key, shape))

    async def _pull(self, key: str, shape: Shape | None) -> object:
        readable = await self._readable((key,))
        self.flights.supersede((key,))
        entry = await self.store.take(key)
        self.flights.supersede((key,))
        decision = decide(entry, self.runtime.now(), await self.current(entry))
        fresh = decision.fresh and readable
        value = self.value(key, entry, shape) if entry is not None and fresh else MISSING
        self.count(key, value, entry)
        return value

    # Writing

    async def put(self, values: Mapping[str, object], ttl: TTL, tags: Sequence[str]) -> bool:
        """Store values. Returns whether they were stored; a ttl of zero or less removes the keys instead."""
        lifetime, keys = self.lifetime(ttl), tuple(values)
        if not keys:
            return True
        if lifetime <= 0:
            return await self._or_else(None, "put", keys, self._forget(keys), owed={"keys": keys}) is not None
        # Encoding comes first: a value that cannot be stored is the caller's mistake, whatever the server does.
        entries = {key: self._fitting(key, self.entry(key, value, lifetime)) for key, value in values.items()}
        return await self._or_else(False, "put", keys, self._put(entries, lifetime, tags), owed={"keys": keys})

    async def _put(self, entries: dict[str, Entry], lifetime: float, tags: Sequence[str]) -> bool:
        await self._pay_first()
        versions = await self.pin(tags, lifetime)
        for entry in entries.values():
            entry.tags = versions
        self.flights.supersede(entries)
        await self.store.write(entries, self.runtime.now())
        self.flights.supersede(entries)
        for key in entries:
            self._stored(key)
        return True

    async def add(self, key: str, value: object, ttl: TTL, tags: Sequence[str]) -> bool:
        """Store a value if there is none. Returns whether it was stored."""
        lifetime = self.lifetime(ttl)
        if lifetime <= 0:
            return False
        entry = self._fitting(key, self.entry(key, value, lifetime))
        return await self._or_else(False, "add", (key,), self._add(key, entry, lifetime, tags))

    async def _add(self, key: str, entry: Entry, lifetime: float, tags: Sequence[str]) -> bool:
        await self._pay_first()
        entry.tags = await self.pin(tags, lifetime)
        now = self.runtime.now()
        found = await self.store.add(key, entry, now)
        if found is not None:
            if decide(found, now, await self.current(found)).fresh:
                return False
            if not await self.store.replace(key, found, entry, now):
                return False
        self.flights.supersede((key,))
        self._stored(key)
        return True

    async def increment(self, key: str, amount: int, ttl: TTL, tags: Sequence[str]) -> int | None:
        """Add to a whole number. Returns the sum; ``None`` if the store failed."""
        lifetime = self.lifetime(ttl)
        if isinstance(amount, bool) or not isinstance(amount, int):
            raise TypeError(f"the amount must be a whole number, not {amount!r}")
        if amount not in INT64:
            raise OverflowError(f"the amount {amount} does not fit into 64 bits")
        amount = int(amount)  # a plain int, also of an IntEnum
        begin = self.entry(key, amount, lifetime)
        return await self._or_else(None, "increment", (key,), self._increment(key, amount, begin, lifetime, tags))

    async def _increment(self, key: str, amount: int, begin: Entry, lifetime: float, tags: Sequence[str]) -> int | None:
        await self._pay_first()
        begin.tags = await self.pin(tags, lifetime)
        now = self.runtime.now()
        tags_checked = False
        try:
            while (total := await self.store.increment(key, amount, begin, now, tags_checked=tags_checked)) is None:
                _, decision = await self.judge(key)
                if decision.fresh:
                    tags_checked = True
                else:
                    await self.store.forget((key,))
        except TypeError as error:
            if await self.store.add(key, begin, now) is not None:  # an unreadable entry counts as none
                raise TypeError(f"{key!r} cannot be incremented: it holds {error}") from None
            total = amount
        except OverflowError as error:
            raise OverflowError(f"{key!r} cannot be incremented by {amount}: {error}") from None
        self.flights.supersede((key,))
        return total

    async def touch(self, key: str, ttl: TTL) -> bool:
        """Give a fresh entry a new ttl. Returns whether there was one."""
        lifetime = self.lifetime(ttl)
        if lifetime <= 0:
            return await self.forget((key,)) > 0
        return await self._or_else(False, "touch", (key,), self._touch(key, lifetime))

    async def _touch(self, key: str, lifetime: float) -> bool:
        entry, decision = await self.judge(key)
        if entry is None or not decision.fresh:
            return False
        if entry.tags:
            await self.store.pin_tags([tag for tag, _ in entry.tags], lifetime + _TAGS_OUTLIVE)
        now = self.runtime.now()
        touched = await self.store.touch(key, now + lifetime, now + lifetime, now)
        self.flights.supersede((key,))
        return touched

    # Removing

    async def forget(self, keys: Sequence[str]) -> int:
        """Remove entries. Returns how many there were."""
        if not keys:
            return 0
        return await self._or_else(0, "forget", keys, self._forget(keys), owed={"keys": tuple(keys)})

    async def _forget(self, keys: Sequence[str]) -> int:
        # Before, for computations under way; after, for those that began meanwhile and have read the old entry.
        self.flights.supersede(keys)
        count = await self.store.forget(keys)
        self.flights.supersede(keys)
        self.tell(Invalidated(keys=tuple(keys)))
        return count

    async def expire(self, key: str) -> bool:
        """Make an entry stale. Returns whether there was one."""
        return await self._or_else(False, "expire", (key,), self._expire(key), owed={"keys": (key,)})

    async def _expire(self, key: str) -> bool:
        self.flights.supersede((key,))
        existed = await self.store.expire(key, self.runtime.now())
        self.flights.supersede((key,))
        self.tell(Invalidated(keys=(key,)))
        return existed

    async def flush_tags(self, tags: Sequence[str]) -> bool:
        """Invalidate all entries that carry any of these tags. Returns whether that was done."""
        flushing = self._flush(self.store.flush_tags(tags), tuple(tags))
        return await self._or_else(False, "flush", (), flushing, owed={"tags": tuple(tags)})

    async def flush(self) -> bool:
        """Remove everything. Returns whether that was done."""
        return await self._or_else(False, "flush", (), self._flush(self.store.flush(), ()), owed={})

    async def _flush(self, flushing: Awaitable[None], tags: tuple[str, ...]) -> bool:
        self.flights.flush(tags)
        await flushing
        self.flights.flush(tags)
        self.tell(Invalidated(tags=tags))
        return True

    # Steps that the verbs share

    async def _readable(self, keys: Sequence[str]) -> Sequence[str]:
        """Send the invalidations that the store missed, before a read that would be wrong without them.

        Returns:
            The keys that can be read: if the store refuses invalidations, those that are not to be invalidated.

        Raises:
            StoreError: they still cannot be sent.
        """
        if not self._owed.some:
            return keys
        await self._owed.pay_if_possible(self.store)
        return [key for key in keys if not self._owed.owes(key)]

    async def _pay_first(self) -> None:
        """As `_readable`, before a write that they would undo later. If they cannot be sent, the write is tried all the
        same, for its effect in this process; once they are sent, they make it a miss, which is safe."""
        if self._owed.some:
            with suppress(StoreError):
                await self._owed.pay(self.store)

    def value(self, key: str, entry: Entry, shape: Shape | None = None) -> object:
        """The value of an entry; a fresh object unless it is immutable. `MISSING` if its bytes cannot be read, or it
        does not fit the reader's `shape`."""
        try:
            value = self._decoded(key, entry)
            return value if shape is None else shape.fit(value)
        except CodecError as error:
            self._events.emit(Undecodable(key, str(error)))
            return MISSING

    def _decoded(self, key: str, entry: Entry) -> object:
        if entry.value is not ENCODED:
            return entry.value
        payload = entry.payload or b""
        if payload.endswith(b"\n") and (counter := COUNTER.fullmatch(payload)):
            return int(counter[1])
        return self._codec.decode(payload, key)

    def count(self, key: str, value: object, entry: Entry | None = None, *, stale: bool = False) -> bool:
        """Count a hit or a miss, and emit its event; returns whether it was a hit. A value without an entry came from
        somebody else's flight."""
        counts = self._counters.of(key)
        if value is MISSING:
            counts.misses += 1
            if Miss in self._events.listening:
                self._events.emit(Miss(key))
            return False
        tier: Tier = "flight" if entry is None else self.store.tier_of(key, entry)
        of_tier = counts.tiers[tier]
        of_tier.tally += 1.0
        if stale:
            of_tier.stale += 1
        if Hit in self._events.listening:
            self._events.emit(Hit(key, tier, stale))
        return True

    @contextmanager
    def computing(self, keys: Sequence[str], *, refresh: bool = False) -> Iterator[Computation]:
        """Wraps the call of a callback that computes these keys: traces and counts it, and emits an event at the
        end."""
        computation = Computation()
        counts = self._counters.of(keys[0])
        started = self.runtime.elapsed()
        try:
            with self._events.trace(keys):
                yield computation
        except Exception:
            counts.failed += 1
            raise
        finally:
            computation.seconds = self.runtime.elapsed() - started
            counts.compute_seconds += computation.seconds
        counts.computed += 1
        counts.refreshed += refresh
        if Computed in self._events.listening:
            self._events.emit(Computed(tuple(keys), computation.seconds, refresh))

    def may_wait(self, key: str) -> bool:
        """Whether waiting for the lease on a key can end, should a computation in this process hold it."""
        return all(map(self.runtime.may_wait, self.flights.going_on(key)))

    def waited(self, key: str, since: float, on: Literal["flight", "lease"]) -> None:
        """Count that a caller has waited for another one since a time of the runtime's `elapsed`, and emit an event."""
        seconds = self.runtime.elapsed() - since
        counts = self._counters.of(key)
        counts.waited += 1
        counts.wait_seconds += seconds
        if Waited in self._events.listening:
            self._events.emit(Waited(key, seconds, on))

    def entry(self, key: str, value: object, lifetime: float, took: float = 0.0, *, grace: float = 0.0) -> Entry:
        """An entry for a value that took so many seconds to compute.

        Raises:
            CodecError: the value cannot be stored.
        """
        now = self.runtime.now()
        fresh_until = now + lifetime
        refresh_at = refresh_point(fresh_until, took, 1.0 - random()) if took else fresh_until  # noqa: S311  # no secret
        # Equal times share one float object: 24 bytes less for each entry in this process.
        times = (now, refresh_at, fresh_until, fresh_until + grace if grace else fresh_until)
        if self.store.shares_values and is_immutable(value):
            return Entry(None, *times, compute_seconds=took, value=value)
        payload = b"J%d\n" % value if type(value) is int and value in INT64 else self._codec.encode(value, key)
        return Entry(payload, *times, compute_seconds=took)

    def _misfit(self, key: str, entry: Entry) -> ValueTooLarge | None:
        """The error for an entry that is too large to be stored, or ``None``."""
        encoded = entry.value if entry.payload is None else entry.payload
        size = len(encoded) if isinstance(encoded, (bytes, str)) else 0
        if size <= self._max_value_bytes:
            return None
        return ValueTooLarge(
            f"the value of {key!r} has {size} bytes, and max_value_bytes is {self._max_value_bytes}: store less of it, "
            "or allow more if the time budget is enough to send and read it"
        )

    def _fitting(self, key: str, entry: Entry) -> Entry:
        if error := self._misfit(key, entry):
            raise error
        return entry

    def lifetime(self, ttl: TTL) -> float:
        """A ttl in seconds; for ``None``, the default.

        Raises:
            ValueError: it is not a duration.
        """
        return self._default_ttl if ttl is None else seconds(ttl)

    async def judge(self, key: str) -> tuple[Entry | None, Decision]:
        """The entry of a key, and the decision about it.

        Raises:
            StoreError: the store failed.
        """
        # Checked here, so that most reads are spared another coroutine.
        if self._owed.some and not await self._readable((key,)):
            return None, Decision.MISS
        entry = await self.store.read_one(key)
        return entry, decide(entry, self.runtime.now(), await self.current(entry) if entry and entry.tags else ())

    async def fresh_values(self, keys: Sequence[str], shape: Shape | None = None) -> dict[str, object]:
        """The values of those keys that have a fresh one; counts hits and misses. Raises as `judge` does."""
        found = {}
        for key, (entry, decision) in (await self.judged(keys)).items():
            value = self.value(key, entry, shape) if entry is not None and decision.fresh else MISSING
            if self.count(key, value, entry):
                found[key] = value
        return found

    async def judged(self, keys: Sequence[str]) -> dict[str, tuple[Entry | None, Decision]]:
        """As `judge`, for several keys."""
        readable = await self._readable(keys)
        entries: dict[str, Entry | None] = dict.fromkeys(keys)
        entries.update(zip(readable, await self.store.read(readable) if readable else (), strict=True))
        tags = tuple({tag for entry in entries.values() if entry is not None for tag, _ in entry.tags})
        current = dict(zip(tags, await self._versions(tags), strict=True)) if tags else {}
        now = self.runtime.now()
        return {
            key: (entry, decide(entry, now, [current[tag] for tag, _ in entry.tags] if entry else ()))
            for key, entry in entries.items()
        }

    async def current(self, entry: Entry | None) -> Sequence[bytes | None]:
        """The current versions of an entry's tags.

        Raises:
            StoreError: the store failed.
        """
        if entry is None or not entry.tags:
            return ()
        return await self._versions([tag for tag, _ in entry.tags])

    async def _versions(self, tags: Sequence[str]) -> Sequence[bytes | None]:
        """The current versions of tags. One whose flush is owed has none; asked for, the store would keep it."""
        if not self._owed.some:
            return await self.store.tag_versions(tags)
        told = [tag for tag in tags if not self._owed.owes(tags=(tag,))]
        versions = dict(zip(told, await self.store.tag_versions(told) if told else (), strict=True))
        return [versions.get(tag) for tag in tags]

    async def still_holds(self, operation: str, key: str, entry: Entry) -> bool:
        """Whether none of an entry's tags has been flushed since; assumed if the store fails."""
        try:
            current = await self.current(entry)
        except StoreError as error:
            self.degraded(operation, (key,), error)
            return True
        return [version for _, version in entry.tags] == list(current)

    async def pin(self, tags: Sequence[str], lifetime: float) -> TagVersions:
        """The versions of tags, with new ones for tags that have none. To be called before a value is computed.

        Raises:
            StoreError: the store failed.
        """
        if not tags:
            return ()
        versions = await self.store.pin_tags(tags, lifetime + _TAGS_OUTLIVE)
        return tuple(zip(tags, versions, strict=True))

    async def pin_late(self, turn: Turn, tags: Sequence[str], lifetime: float) -> TagVersions | None:
        """The versions of tags that are named only after a value was computed; ``None`` if one of them has been flushed
        since the computation began, so that the value is outdated.

        Raises:
            StoreError: the store failed.
        """
        versions = await self.pin(tags, lifetime)
        return None if tags and await self.store.flushed_since(tags, turn.began) else versions

    def _stored(self, key: str) -> None:
        self._counters.of(key).stored += 1
        if Stored in self._events.listening:
            self._events.emit(Stored(key))

    async def begin(self, seen: Seen, tags: Sequence[str], lifetime: float) -> Turn:
        """Ask for the right to compute values. `finish` or `give_up` must follow; until then, leases are renewed.

        Raises:
            StoreError: the store failed.
        """
        turn = await self.store.begin(seen, tags, lifetime + _TAGS_OUTLIVE, self._leases.seconds)
        if turn.keys:
            try:
                self._leases.hold(turn.keys, turn.token)
            except BaseException:  # from a signal's handler
                self.let_go(turn)
                raise
        return turn

    def let_go(self, turn: Turn | None) -> None:
        """Stop renewing the leases of a turn whose computation was interrupted and could not give them back."""
        if turn is not None:
            self._leases.let_go(turn.keys, turn.token)

    async def finish(self, turn: Turn, entries: Mapping[str, Entry]) -> Sequence[str]:
        """Store computed entries. One that has expired already removes what was there.

        Returns:
            The keys that nobody has written or removed in the meantime, as far as is known.
        """
        return await self._or_else(turn.keys, "remember", turn.keys, self._finish(turn, entries))

    async def _finish(self, turn: Turn, entries: Mapping[str, Entry]) -> Sequence[str]:
        now = self.runtime.now()
        too_large = {key: error for key, entry in entries.items() if (error := self._misfit(key, entry))}
        entries = {key: entry for key, entry in entries.items() if key not in too_large}
        try:
            held = await self.store.finish(turn, entries, now)
        finally:
            self._leases.let_go(turn.keys, turn.token)
        for key in held:
            if key in entries and entries[key].expires_at > now:
                self._stored(key)
        for key, error in too_large.items():
            self.degraded("remember", (key,), error)
        return held

    async def give_up(self, turn: Turn, rest: float = 0.0) -> Sequence[str]:
        """Give leases back without a result. Where there is a previous value, nobody is to try again for `rest`
        seconds. If the store fails, leases end by themselves.

        Returns:
            The keys that nobody has written or removed in the meantime, as far as is known.
        """
        now = self.runtime.now()
        try:
            return await self.store.finish(turn, dict.fromkeys(turn.keys, Rest(now + rest) if rest else None), now)
        except StoreError as error:
            # Not raised even if strict: another exception is already propagating.
            self._events.emit(Degraded("remember", turn.keys, error))
            return turn.keys
        finally:
            self._leases.let_go(turn.keys, turn.token)

    async def renew(self, tokens: Mapping[str, str]) -> list[str]:
        """Renew leases. Returns the keys whose lease was lost; none if the store failed."""
        try:
            lost = await self.store.renew(tokens, self._leases.seconds)
        except StoreError as error:
            self._events.emit(Degraded("renew", tuple(tokens), error))
            return []
        for key in lost:
            self._events.emit(LeaseLost(key))
        return lost

    def tell(self, event: Event) -> None:
        """Emit an event; counters subscribe to it."""
        self._events.emit(event)

    def degraded(self, operation: str, keys: Sequence[str], error: StoreError) -> None:
        """Emit `Degraded` and go on without the store.

        Raises:
            StoreError: the given error, if the cache is strict.
        """
        if self._strict:
            raise error
        self._events.emit(Degraded(operation, tuple(keys), error))

    async def _or_else(
        self,
        fallback: T,
        operation: str,
        keys: Sequence[str],
        step: Awaitable[T],
        *,
        owed: Mapping[str, tuple[str, ...]] | None = None,
    ) -> T:
        """Await a step. If the store fails, note the invalidations that it is `owed`, degrade, and return
        `fallback`."""
        try:
            return await step
        except StoreError as error:
            if owed is not None and not isinstance(error, ValueTooLarge):  # that store has removed the old one
                self._owed.add(**owed)
            self.degraded(operation, keys, error)
            return fallback
        except BaseException:
            # Cancelled, or interrupted by a signal's handler: whether the store heard of it, nobody knows.
            if owed is not None:
                self._owed.add(**owed)
            raise
