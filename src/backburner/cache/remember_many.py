"""Reading several keys through, with one call of the user's callback for those that nobody else is computing.

Each key has its own flight and lease, as in `remember`, so that overlapping lists compute each key once. A list first
computes what it can and gives the leases back, and only then waits for what others compute: so no two lists ever wait
for each other.
"""

from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from inspect import isawaitable
from typing import Any

from backburner.cache.engine import MISSING, Engine
from backburner.cache.entry import Entry
from backburner.cache.finding import Finding
from backburner.cache.flight import Flight, LeftOut, leading
from backburner.cache.plan import Plan
from backburner.cache.remember import ReadThrough
from backburner.cache.stores.base import Turn
from backburner.errors import StoreError
from backburner.events import RefreshFailed, StaleServed
from backburner.interruptions import interruptions


class ReadThroughMany:
    """What `remember_many` does, in terms of an engine's steps."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def remember(self, keys: Sequence[str], plan: Plan) -> dict[str, object]:
        """The values of keys, without those that the callback leaves out.

        Raises:
            CallbackTimeout: one of them had no value within the plan's hard timeout.
        """
        deadline = self._engine.runtime.elapsed() + plan.hard_timeout
        wanted = tuple(dict.fromkeys(keys))
        led: dict[str, Flight] = {}
        batch = _Batch(self._engine, plan)
        try:
            self._lead_those_that_nobody_leads(wanted, plan, led)
            values = dict(await batch.compute(led)) if led else {}
        except BaseException:
            # Also where a signal's handler has interrupted what would have seen to it.
            self._engine.let_go(batch.turn)
            for flight in led.values():
                self._engine.flights.land(flight)
            raise
        one = ReadThrough(self._engine)
        for key in wanted:
            if key not in led:
                # Somebody else computes it. Should that fail, it is computed alone: the rest of the list is done by
                # then.
                alone = replace(plan, callback=lambda key=key: _one(plan, key), of_list=True)
                with suppress(LeftOut):
                    values[key] = await one.remember(key, alone, deadline)
            elif batch.apart and key not in values:
                values[key] = await one.arrival(led[key], key, plan, deadline)
        return {key: values[key] for key in wanted if values.get(key, MISSING) is not MISSING}

    def _lead_those_that_nobody_leads(self, keys: Sequence[str], plan: Plan, led: dict[str, Flight]) -> None:
        flights, loop = self._engine.flights, self._engine.runtime.loop()
        for key in keys:
            flight, leads = flights.join(key, loop, plan.tags)
            if leads:
                led[key] = flight


class _Batch:
    """The keys of a list whose flights this caller leads."""

    def __init__(self, engine: Engine, plan: Plan) -> None:
        self._engine = engine
        self._plan = plan
        self._led: Mapping[str, Flight] = {}
        self._pending: dict[str, Finding] = {}
        self._values: dict[str, object] = {}
        self._held_here: frozenset[str] = frozenset()
        """Keys whose lease may be held by a task that cannot go on before this caller does."""
        self._answers = True
        """Whether the store answers."""
        self.turn: Turn | None = None
        """The last that was asked for."""
        self.apart = False
        """Whether the callback runs apart from the caller, because there is a timeout."""

    async def compute(self, led: Mapping[str, Flight]) -> dict[str, object]:
        """The values of all keys; if the missing ones are computed apart, only those that were there."""
        self._led = led
        self._pending = dict.fromkeys(led, Finding())
        try:
            with leading(*self._led.values()):
                await self._take_what_is_there()
                self._held_here = frozenset(key for key in self._pending if not self._engine.may_wait(key))
                if self._pending and self._plan.timed:
                    self._engine.runtime.spawn(self._compute_apart(), self._land_all)
                    self.apart = True
                else:
                    await self._compute()
        except interruptions():
            raise  # of this caller only: followers lead
        except Exception as error:
            self._fail(error)
            raise
        else:
            return self._values
        finally:
            if not self.apart:
                self._land_all()

    async def _compute_apart(self) -> None:
        try:
            await self._compute()
        except Exception as error:  # noqa: BLE001  # raised by who waits; who left before is told
            for key in self._pending:
                if self._led[key].late:
                    self._engine.tell(RefreshFailed(key, error))
            self._fail(error)

    async def _compute(self) -> None:
        since = 0.0
        try:
            while self._pending:
                turn = await self._begin()
                if turn is None:
                    await self._call(tuple(self._pending), None)
                elif turn.keys:
                    await self._call(turn.keys, turn)
                elif held_here := self._held_here & turn.taken.keys():
                    await self._call(tuple(held_here), None)
                elif turn.taken:
                    since = since or self._engine.runtime.elapsed()
                    await self._wait(turn)
                if self._pending:
                    await self._take_what_is_there()
        finally:
            if since:
                self._engine.waited(next(iter(self._led)), since, "lease")

    def _fail(self, error: Exception) -> None:
        for key in self._pending:
            self._led[key].error = error

    def _land_all(self) -> None:
        # Also when cancelled or killed: neither entry nor error is set then, and followers lead.
        for flight in self._led.values():
            self._engine.flights.land(flight)

    async def _take_what_is_there(self) -> None:
        plan, pending = self._plan, self._pending
        try:
            judgements = await self._engine.judged(tuple(pending))
        except StoreError as error:
            self._engine.degraded("remember_many", tuple(pending), error)
            self._answers = False
            return
        for key, judged in judgements.items():
            found = Finding.of(self._engine, key, plan, *judged)
            if found.serves(plan):
                self._engine.count(key, found.value, found.entry, stale=found.stale)
                self._land(key, found.value, found.entry, stale=found.stale)
            else:
                pending[key] = replace(found, sure=pending[key].sure)

    async def _begin(self) -> Turn | None:
        """Ask for the leases on the missing keys; ``None`` if the store does not answer."""
        plan, pending = self._plan, self._pending
        if not self._answers:
            return None
        try:
            seen = {key: pending[key].mark for key in pending}
            turn = self.turn = await self._engine.begin(seen, plan.tags, plan.longest)
        except StoreError as error:
            self._engine.degraded("remember_many", tuple(pending), error)
            return None
        for key in pending.keys() - turn.taken.keys() - set(turn.keys):
            pending[key] = replace(pending[key], sure=False)  # there is an entry now, or one that cannot be read
        return turn

    async def _wait(self, turn: Turn) -> None:
        try:
            await self._engine.store.wait(next(iter(turn.taken.values())))
        except StoreError as error:
            self._engine.degraded("remember_many", tuple(turn.taken), error)

    async def _call(self, keys: tuple[str, ...], turn: Turn | None) -> None:
        """Call the callback for keys, and store its results if there is a turn."""
        for key in keys:
            self._engine.count(key, MISSING)
        finished = turn is None
        rest = 0.0
        try:
            with self._engine.computing(keys) as computation:
                computed = _mapping(await self._engine.runtime.call(self._plan.callback, list(keys)))
                given = {key: self._plan.given(key, computed[key]) for key in keys if key in computed}
            entries: dict[str, Entry] = {}
            for key in keys:
                if key in given:
                    lifetime, grace = self._plan.times(computed[key], self._plan.lifetime)
                    entries[key] = self._engine.entry(key, computed[key], lifetime, computation.seconds, grace=grace)
                    entries[key].tags = turn.versions if turn is not None else ()
            if turn is not None:
                finished = True
                storable = {key: entry for key, entry in entries.items() if not self._led[key].superseded}
                held = await self._engine.finish(turn, storable)
                for key in keys:
                    self._led[key].overtaken = key not in held
        except interruptions():
            raise
        except Exception as error:
            rest = self._plan.throttle
            if any(self._pending[key].value is MISSING or self._led[key].superseded for key in keys):
                raise
            for key in keys:
                self._engine.tell(StaleServed(key, error))
                self._land(key, self._pending[key].value, self._pending[key].entry, stale=True)
        else:
            for key in keys:
                self._land(key, given.get(key, MISSING), entries.get(key))
        finally:
            if turn is not None and not finished:
                await self._engine.give_up(turn, rest)

    def _land(self, key: str, value: object, entry: Entry | None, *, stale: bool = False) -> None:
        del self._pending[key]
        if value is not MISSING:
            self._values[key] = value
        flight = self._led[key]
        flight.entry, flight.stale = entry, stale
        self._engine.flights.land(flight)


def _one(plan: Plan, key: str) -> object:
    given = plan.callback([key])
    return _picked_later(given, key) if isawaitable(given) else _picked(given, key)


async def _picked_later(given: Awaitable[Any], key: str) -> object:
    return _picked(await given, key)


def _picked(given: object, key: str) -> object:
    values = _mapping(given)
    if key not in values:
        raise LeftOut(f"the callback of remember_many gave no value for {key!r}")
    return values[key]


def _mapping(given: object) -> Mapping[str, object]:
    if not isinstance(given, Mapping):
        raise TypeError(f"the callback of remember_many must give a dict from keys to values, not {given!r}")
    return given
