"""Reading through: the value of a fresh entry, or else the result of the user's callback.

One caller at a time computes a key: within this process by a flight (see `flight`), among processes by a lease on the
server. The others get the previous value if it may still be used, or else wait. The versions of tags are read before
the callback runs, so that a flush which happens meanwhile also invalidates what it computes from old data.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from backburner.cache.context import Context
from backburner.cache.engine import MISSING, Engine
from backburner.cache.entry import Decision, Entry, TagVersions
from backburner.cache.finding import NO_STORE, Finding, look
from backburner.cache.flight import Flight, LeftOut, following, leading
from backburner.cache.keys import check_tags
from backburner.cache.plan import Plan
from backburner.cache.stores.base import Turn
from backburner.errors import CallbackTimeout, StoreError
from backburner.events import LateCallback, RefreshFailed, StaleServed
from backburner.interruptions import interruptions


class ReadThrough:
    """What `remember` and its kin do, in terms of an engine's steps.

    Args:
        engine: blocking or asyncio, as the caller.
        blocking: a blocking engine for `Context.tag`, which blocks in either case.
    """

    def __init__(self, engine: Engine, blocking: Engine | None = None) -> None:
        self._engine = engine
        self._blocking = blocking or engine
        self._runtime = engine.runtime
        self._flights = engine.flights

    async def remember(self, key: str, plan: Plan, deadline: float | None = None) -> object:
        """The value of a key.

        Args:
            deadline: in the runtime's `elapsed`, if the plan's hard timeout began earlier.

        Raises:
            CallbackTimeout: there was none within the plan's hard timeout.
        """
        if deadline is None:
            deadline = self._runtime.elapsed() + plan.hard_timeout
        while True:
            flight, leads = self._flights.join(key, self._runtime.loop(), plan.tags)
            if leads:
                try:
                    value = await self._lead(flight, key, plan)
                except BaseException:
                    self._abandon(flight)
                    raise
            elif self._runtime.may_wait(flight):
                value = await self._follow(flight, key, plan, deadline)
                if value is MISSING:
                    continue
            else:
                # This thread blocks the loop of the flight's leader: waiting for it, or for its lease, would never end.
                flight = Flight(key, None)
                value = await self._alone(flight, key, plan)
            if value is MISSING:
                value = await self.arrival(flight, key, plan, deadline)
            if value is MISSING:
                raise RuntimeError(f"the callback for {key!r} was ended from outside before it gave a value")
            return value

    def _abandon(self, flight: Flight) -> None:
        """See to it that nobody waits for a flight whose leader was interrupted, by a signal's handler, where nothing
        else could. Doing so for one that has landed does nothing."""
        self._engine.let_go(flight.turn)
        self._flights.land(flight)

    async def arrival(self, flight: Flight, key: str, plan: Plan, deadline: float) -> object:
        """The value of a flight that was begun for this caller but is led by a task or thread apart; `MISSING` if none.

        Raises:
            CallbackTimeout: as `remember`.
        """
        found = await self._wait(flight, key, plan, deadline)
        return self._engine.value(key, found, plan.shape) if isinstance(found, Entry) else found.value

    async def _follow(self, flight: Flight, key: str, plan: Plan, deadline: float) -> object:
        """The value of somebody else's flight; `MISSING` if the caller is to start again."""
        since = self._runtime.elapsed()
        try:
            with following(flight):
                found = await self._wait(flight, key, plan, deadline)
        finally:
            self._engine.waited(key, since, "flight")
        if not isinstance(found, Entry):
            return found.value
        # The flight may have begun before another process removed the key or flushed a tag, and this caller after it.
        if flight.overtaken or not await self._engine.still_holds("remember", key, found):
            return MISSING
        value = self._engine.value(key, found, plan.shape)
        if value is not MISSING:
            self._engine.count(key, value, stale=flight.stale)
        return value

    async def _wait(self, flight: Flight, key: str, plan: Plan, deadline: float) -> Entry | Finding:
        """The outcome of a flight or, if it takes too long, the previous value.

        Raises:
            CallbackTimeout: there is none.
        """
        try:
            if plan.soft_timeout < math.inf:
                await self._runtime.wait(flight, flight.began + plan.soft_timeout - self._runtime.elapsed())
                if not flight.landed.done():
                    # Looked up again, since it may have been removed in the meantime.
                    found = await self._look_or_go_on(key, plan)
                    if found.value is not MISSING:
                        self._engine.count(key, found.value, found.entry, stale=found.stale)
                        self._engine.tell(LateCallback(key, plan.soft_timeout, found.stale))
                        return found
            await self._runtime.wait(flight, deadline - self._runtime.elapsed() if deadline < math.inf else math.inf)
        finally:
            flight.late |= not flight.landed.done()
        if flight.landed.done():
            # A key that the callback of a list has left out may be known to this caller's own callback.
            left_out = isinstance(flight.error, LeftOut) and not plan.of_list
            return Finding() if left_out else flight.outcome() or Finding()
        self._engine.tell(LateCallback(key, plan.hard_timeout, stale=False))
        raise CallbackTimeout(
            f"the callback for {key!r} gave nothing within hard_timeout={plan.hard_timeout:g} s, and there is no value "
            "from before. It goes on, and its value is stored; make it faster, or allow it more time"
        )

    async def _lead(self, flight: Flight, key: str, plan: Plan) -> object:
        """The value; `MISSING` if it is computed apart from the caller, who must wait for the flight."""
        handed_over = False
        try:
            with leading(flight):
                found = await self._look_or_go_on(key, plan)
                if found.serves(plan):
                    self._engine.count(key, found.value, found.entry, stale=found.stale)
                    flight.entry, flight.stale = found.entry, found.stale
                    if found.decision in (Decision.HIT, Decision.RESTING):
                        return found.value
                    self._flights.land(flight)  # followers need not wait for the renewal
                    return await self._renew(key, plan, found)
                if not plan.timed:
                    value, flight.entry = await self._obtain(key, plan, flight, found)
                    return value
                may_wait = self._engine.may_wait(key)  # asked here: the thread apart blocks no event loop
                self._lead_apart(key, plan, flight, found, may_wait=may_wait)
                handed_over = True
                return MISSING
        except interruptions():
            raise  # of this caller only: a follower leads
        except Exception as error:
            flight.error = error
            raise
        finally:
            # Also when cancelled or killed: neither entry nor error is set then, and a follower leads.
            if not handed_over:
                self._flights.land(flight)

    def _lead_apart(self, key: str, plan: Plan, flight: Flight, found: Finding, *, may_wait: bool) -> None:
        async def lead() -> None:
            try:
                _, flight.entry = await self._obtain(key, plan, flight, found, may_wait=may_wait)
            except Exception as error:  # noqa: BLE001  # raised by who waits; who left before is told
                flight.error = error
                if flight.late:
                    self._engine.tell(RefreshFailed(key, error))

        self._runtime.spawn(lead(), partial(self._flights.land, flight))

    async def _alone(self, flight: Flight, key: str, plan: Plan) -> object:
        """As `_lead`, with a flight that nobody else can join."""
        found = await self._look_or_go_on(key, plan)
        if found.serves(plan):
            self._engine.count(key, found.value, found.entry, stale=found.stale)
            return found.value
        if plan.timed:
            self._lead_apart(key, plan, flight, found, may_wait=False)
            return MISSING
        value, _ = await self._obtain(key, plan, flight, found, may_wait=False)
        return value

    async def _look_or_go_on(self, key: str, plan: Plan) -> Finding:
        try:
            return await look(self._engine, key, plan)
        except StoreError as error:
            self._engine.degraded("remember", (key,), error)
            return NO_STORE

    async def _obtain(
        self, key: str, plan: Plan, flight: Flight, found: Finding, *, may_wait: bool = True
    ) -> tuple[object, Entry]:
        """The value and its entry: computed here, under the lease if possible, or by another process in the
        meantime."""
        turn: Turn | None = None
        since = 0.0
        try:
            while found is not NO_STORE:
                asked = await self._engine.begin({key: found.mark}, plan.tags, plan.longest)
                if asked.keys:
                    turn = flight.turn = asked
                    break
                if asked.taken:
                    if not may_wait or not self._engine.may_wait(key):
                        break
                    since = since or self._runtime.elapsed()
                    await self._engine.store.wait(asked.taken[key])
                before, found = found, await look(self._engine, key, plan)
                if found.entry is not None and found.serves(plan):
                    self._engine.count(key, found.value, found.entry, stale=found.stale)
                    flight.stale = found.stale
                    return found.value, found.entry
                if before.entry is None and not asked.taken:
                    found = replace(found, sure=False)
        except StoreError as error:
            # The result will not be stored: that would cost a second time budget while the server is ill.
            self._engine.degraded("remember", (key,), error)
        finally:
            if since:
                self._engine.waited(key, since, "lease")
        self._engine.count(key, MISSING)
        return await self._compute(key, plan, flight, turn, found)

    async def _renew(self, key: str, plan: Plan, found: Finding) -> object:
        """Renew the value, unless somebody else is doing so. The caller has a value in any case."""
        flight = self._flights.try_renewing(key, self._runtime.loop(), plan.tags)
        if flight is None:
            return found.value
        try:
            return await self._renew_in(flight, key, plan, found)
        except BaseException:
            self._abandon(flight)
            raise

    async def _renew_in(self, flight: Flight, key: str, plan: Plan, found: Finding) -> object:
        land = partial(self._flights.land, flight)
        if not (plan.in_background or plan.timed):
            try:
                return await self._renew_with(key, plan, flight, found)
            finally:
                land()
        try:
            self._runtime.spawn(self._renew_with(key, plan, flight, found), land)
        except RuntimeError as error:
            land()
            self._engine.tell(RefreshFailed(key, error))
            return found.value
        if plan.in_background:
            return found.value
        timeout = min(plan.soft_timeout, plan.hard_timeout)
        await self._runtime.wait(flight, timeout)
        if not flight.landed.done():
            self._engine.tell(LateCallback(key, timeout, found.stale))
            return found.value
        value = MISSING if flight.entry is None else self._engine.value(key, flight.entry, plan.shape)
        return found.value if value is MISSING else value

    async def _renew_with(self, key: str, plan: Plan, flight: Flight, found: Finding) -> object:
        try:
            turn = flight.turn = await self._engine.begin({key: found.mark}, plan.tags, plan.longest)
            if not turn.keys:
                return found.value  # another process is at it, or was
            value, flight.entry = await self._call(key, plan, flight, turn, found, refresh=True)
        except interruptions():
            raise
        except Exception as error:  # noqa: BLE001  # the caller has a good value; whoever wants to know is told
            self._engine.tell(RefreshFailed(key, error))
            return found.value
        else:
            return value

    async def _compute(
        self, key: str, plan: Plan, flight: Flight, turn: Turn | None, found: Finding
    ) -> tuple[object, Entry]:
        """Call the callback; if it fails, fall back on the previous value, unless that has been invalidated."""
        try:
            return await self._call(key, plan, flight, turn, found)
        except interruptions():
            raise
        except Exception as error:
            if found.entry is None or found.value is MISSING or flight.superseded:
                raise
            if not await self._engine.still_holds("remember", key, found.entry):
                raise
            self._engine.tell(StaleServed(key, error))
            flight.stale = True
            return found.value, found.entry

    async def _call(
        self, key: str, plan: Plan, flight: Flight, turn: Turn | None, found: Finding, *, refresh: bool = False
    ) -> tuple[object, Entry]:
        """Call the callback, and store its result if there is a turn."""
        context = self._context(key, plan)
        flight.tags = context.tags  # the same list: the callback may add to it
        finished = turn is None
        rest = 0.0
        try:
            arguments = (context,) if _takes_context(plan.callback) else ()
            with self._engine.computing((key,), refresh=refresh) as computation:
                value = await self._runtime.call(plan.callback, *arguments)
                given = plan.given(key, value)
            lifetime, grace = plan.times(value, self._engine.lifetime(context.ttl))
            entry = self._engine.entry(key, value, lifetime, computation.seconds, grace=grace)
            if turn is not None and not context.skipped and not flight.superseded:
                try:
                    versions = await self._versions(turn, context, plan, lifetime + grace)
                except StoreError as error:
                    self._engine.degraded("remember", (key,), error)
                else:
                    finished = True
                    entry.tags = versions or ()
                    held = await self._engine.finish(turn, {} if versions is None else {key: entry})
                    flight.overtaken = key not in held or versions is None
        except interruptions():
            raise
        except Exception:
            rest = plan.throttle if found.value is not MISSING else 0.0
            raise
        else:
            return given, entry
        finally:
            if turn is not None and not finished:
                held = await self._engine.give_up(turn, rest)
                flight.superseded |= key not in held

    def _context(self, key: str, plan: Plan) -> Context:
        def pin_with(engine: Engine) -> Callable[[tuple[str, ...]], Any]:
            async def pin(tags: tuple[str, ...]) -> TagVersions | None:
                try:
                    return await engine.pin(tags, plan.longest)
                except StoreError as error:
                    engine.degraded("remember", (key,), error)
                    return None

            return pin

        return Context(key, plan.lifetime, list(plan.tags), pin_with(self._blocking), pin_with(self._engine))

    async def _versions(self, turn: Turn, context: Context, plan: Plan, lifetime: float) -> TagVersions | None:
        """The versions that a computed entry's tags had when they were named; ``None`` if a tag that was only appended
        in the callback has been flushed since it began."""
        known = dict(turn.versions) | context.versions
        named = check_tags((*known, *context.tags)) if known or context.tags else ()
        if known and lifetime > plan.longest:  # longer than the versions would live
            await self._engine.pin(tuple(known), lifetime)
        late = await self._engine.pin_late(turn, [tag for tag in named if tag not in known], lifetime)
        return None if late is None else (*known.items(), *late)


def _takes_context(callback: Callable[..., Any]) -> bool:
    if not callable(callback):
        raise TypeError(f"the callback is a {type(callback).__name__}, not a function: give load itself, not load()")
    try:
        parameters = inspect.signature(callback).parameters.values()
    except ValueError:  # some functions written in C do not tell
        return False
    return any(
        parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        for parameter in parameters
    )
