"""Reading through: the value of a fresh entry, or else what the user's callback gives.

One caller at a time computes for a key (see `flight`). What the others get meanwhile depends on the entry: the current
value if there is one that may still be given, else they wait. The versions of tags are read before the callback runs,
so that what it computes from old data dies with a flush that happens meanwhile.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from backburner.cache.engine import MISSING, Engine
from backburner.cache.entry import TTL, Decision, Entry, TagVersions
from backburner.cache.flight import Flight, leading
from backburner.cache.keys import check_tags
from backburner.cache.stores.base import Taken, Turn
from backburner.errors import StoreError
from backburner.events import RefreshFailed, StaleServed


@dataclass(slots=True)
class Context:
    """What a callback that takes an argument can decide about the entry it computes."""

    key: str
    ttl: TTL
    tags: list[str] = field(default_factory=list)
    """More tags may be added; they count from when the callback returns."""
    skipped: bool = False

    def skip(self) -> None:
        """Give the value to the caller, and do not store it."""
        self.skipped = True


@dataclass(frozen=True, slots=True)
class Plan:
    """How the callers of one key want it."""

    callback: Callable[..., Any]
    lifetime: float
    """Seconds that the value is fresh."""
    tags: Sequence[str] = ()
    grace: float = 0.0
    """Seconds that it is kept beyond that."""
    in_background: bool = False
    """Whether a value beyond its freshness is given at once, and renewed afterwards."""


class ReadThrough:
    """What `remember` and its kin do, with the steps of an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._runtime = engine.runtime
        self._flights = engine.flights

    async def remember(self, key: str, plan: Plan) -> object:
        """The value of a key."""
        while True:
            flight, leads = self._flights.join(key, self._runtime.loop())
            if leads:
                return await self._lead(flight, key, plan)
            since = self._runtime.elapsed()
            if not await self._runtime.wait(flight):
                # Waiting here could never end: neither for the flight, nor for the lease that it holds.
                value, _ = await self._read_or_compute(key, plan, Flight(None), may_wait=False)
                return value
            self._engine.waited(key, since, "flight")
            entry = flight.outcome()
            if entry is not None and await self._still_holds(key, entry):
                value = self._engine.value(key, entry)
                if self._engine.count(key, value):
                    return value

    async def remember_many(self, keys: Sequence[str], plan: Plan) -> dict[str, object]:
        """The values of keys; those missing are computed together, by one call with the list of them."""
        wanted = tuple(dict.fromkeys(keys))
        led = self._lead_those_that_nobody_leads(wanted)
        values = await self._lead_many(led, plan) if led else {}
        for key in wanted:
            if key not in led:
                # Somebody else computes it: alone if it comes to nothing, since the list is gone by then.
                alone = Plan(lambda key=key: self._one_of(key, plan), plan.lifetime, plan.tags)
                with suppress(_LeftOut):
                    values[key] = await self.remember(key, alone)
        return {key: values[key] for key in wanted if key in values}

    def _lead_those_that_nobody_leads(self, keys: Sequence[str]) -> dict[str, Flight]:
        led: dict[str, Flight] = {}
        try:
            for key in keys:
                flight, leads = self._flights.join(key, self._runtime.loop())
                if leads:
                    led[key] = flight
        except RuntimeError:
            for key, flight in led.items():
                self._flights.land(key, flight)
            raise
        return led

    async def _one_of(self, key: str, plan: Plan) -> object:
        given = _mapping(await self._runtime.call(plan.callback, [key]))
        if key not in given:
            raise _LeftOut(f"the callback of remember_many gave no value for {key!r}")
        return given[key]

    async def _lead_many(self, led: Mapping[str, Flight], plan: Plan) -> dict[str, object]:
        try:
            versions: TagVersions | None = None
            values: dict[str, object] = {}
            try:
                values = await self._engine.fresh_values(tuple(led))
                versions = await self._engine.pin(plan.tags, plan.lifetime)
            except StoreError as error:
                self._engine.degraded("remember_many", tuple(led), error)
            missing = [key for key in led if key not in values]
            if not missing:
                return values
            with leading(*led.values()), self._engine.computing(missing) as computation:
                given = _mapping(await self._runtime.call(plan.callback, missing))
            entries = {}
            for key in missing:
                if key in given:
                    values[key] = given[key]
                    entry = self._engine.entry(key, given[key], plan.lifetime, computation.seconds)
                    entries[key] = led[key].entry = entry
            storable = {key: entry for key, entry in entries.items() if not led[key].superseded}
            if versions is not None and storable and plan.lifetime > 0:
                await self._engine.put_computed(storable, versions)
        except Exception as error:
            for flight in led.values():
                flight.error = error
            raise
        else:
            return values
        finally:
            for key, flight in led.items():
                self._flights.land(key, flight)

    async def _lead(self, flight: Flight, key: str, plan: Plan) -> object:
        try:
            with leading(flight):
                value, flight.entry = await self._read_or_compute(key, plan, flight)
        except Exception as error:
            flight.error = error
            raise
        else:
            return value
        finally:
            # Also when cancelled or killed: neither entry nor error is set then, and a follower leads.
            self._flights.land(key, flight)

    async def _read_or_compute(
        self, key: str, plan: Plan, flight: Flight, *, may_wait: bool = True
    ) -> tuple[object, Entry]:
        stale: Entry | None = None
        turn: Turn | Taken | None = None
        since = 0.0
        try:
            while turn is None or isinstance(turn, Taken):
                entry, decision = await self._engine.judge(key)
                usable = entry is not None and decision is not Decision.MISS
                value = self._engine.value(key, entry) if entry is not None and usable else MISSING
                if entry is not None and value is not MISSING:
                    if decision is Decision.HIT:
                        self._engine.count(key, value, entry)
                        return value, entry
                    if decision is Decision.REFRESH or plan.in_background:
                        self._engine.count(key, value, entry, stale=decision is Decision.STALE)
                        flight.entry = entry
                        self._flights.land(key, flight)  # the others need not wait for what follows
                        return await self._renew(key, plan, value, entry)
                    stale = entry
                turn = await self._engine.begin(key, plan.tags, plan.lifetime + plan.grace)
                if isinstance(turn, Taken):
                    if not may_wait:
                        break
                    since = since or self._runtime.elapsed()
                    await self._engine.store.wait(turn)
            self._engine.count(key, MISSING)
        except StoreError as error:
            # Nothing is stored later on: that would cost a second time budget while the server is ill.
            turn = None
            self._engine.degraded("remember", (key,), error)
            self._engine.count(key, MISSING)
        finally:
            if since:
                self._engine.waited(key, since, "lease")
        try:
            return await self._compute(key, plan, flight, turn if isinstance(turn, Turn) else None)
        except Exception as error:
            if stale is None or (value := self._engine.value(key, stale)) is MISSING:
                raise
            self._engine.tell(StaleServed(key, error))
            return value, stale

    async def _renew(self, key: str, plan: Plan, value: object, entry: Entry) -> tuple[object, Entry]:
        """Compute anew, unless somebody does; the caller has a value whatever becomes of it."""
        flight = self._flights.try_renewing(key, self._runtime.loop())
        if flight is None:
            return value, entry
        if plan.in_background:
            self._runtime.spawn(self._renew_with(key, plan, flight))
            return value, entry
        return await self._renew_with(key, plan, flight) or (value, entry)

    async def _renew_with(self, key: str, plan: Plan, flight: Flight) -> tuple[object, Entry] | None:
        try:
            turn = await self._engine.begin(key, plan.tags, plan.lifetime + plan.grace)
            return None if isinstance(turn, Taken) else await self._compute(key, plan, flight, turn, refresh=True)
        except Exception as error:  # noqa: BLE001 - the caller has a good value; whoever wants to know is told
            self._engine.tell(RefreshFailed(key, error))
            return None
        finally:
            self._flights.land_renewal(key, flight)

    async def _compute(
        self, key: str, plan: Plan, flight: Flight, turn: Turn | None, *, refresh: bool = False
    ) -> tuple[object, Entry]:
        """Call back, and store what it gives if there is a turn to do so."""
        context = Context(key, plan.lifetime, list(plan.tags))
        finished = turn is None
        try:
            arguments = (context,) if _takes_context(plan.callback) else ()
            with self._engine.computing((key,), refresh=refresh) as computation:
                value = await self._runtime.call(plan.callback, *arguments)
            lifetime = self._engine.lifetime(context.ttl)
            entry = self._engine.entry(key, value, lifetime, computation.seconds, grace=plan.grace)
            if turn is not None and lifetime > 0 and not context.skipped and not flight.superseded:
                finished = True
                known = {tag for tag, _ in turn.versions}
                late = [tag for tag in check_tags(context.tags) if tag not in known] if context.tags else []
                await self._engine.finish(key, turn, entry, late)
            return value, entry
        finally:
            if turn is not None and not finished:
                await self._engine.give_up(key, turn)

    async def _still_holds(self, key: str, entry: Entry) -> bool:
        # The flight may have begun before another process flushed a tag, and this caller have come after.
        if not entry.tags:
            return True
        try:
            current = await self._engine.current(entry)
        except StoreError as error:
            self._engine.degraded("remember", (key,), error)
            return True
        return [version for _, version in entry.tags] == list(current)


class _LeftOut(LookupError):
    """A callback for several keys gave no value for one that it was asked for alone."""


def _mapping(given: object) -> Mapping[str, object]:
    if not isinstance(given, Mapping):
        raise TypeError(f"the callback of remember_many must give a dict from keys to values, not {given!r}")
    return given


def _takes_context(callback: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(callback).parameters.values()
    except ValueError:  # some functions written in C do not tell
        return False
    return any(
        parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        for parameter in parameters
    )
