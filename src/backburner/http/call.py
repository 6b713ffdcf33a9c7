"""What a response of the application means for the cache: to be kept, to update what is stored, or to be passed on.

There is one `Call` per call of the application. It holds the right to store under the key, which is requested before
the application is called, so that a response that is purged meanwhile, or whose tag is flushed, is not stored
afterwards.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from random import random
from typing import Any, Final

from backburner.cache.engine import Engine
from backburner.cache.entry import MAX_TAGS, Entry, TagVersions, refresh_point, tag_bytes
from backburner.cache.flight import Flight
from backburner.cache.stores.base import Turn
from backburner.errors import StoreError
from backburner.events import RefreshFailed, StaleServed
from backburner.http import rules
from backburner.http.exchange import Way
from backburner.http.headers import Headers, entity_tag_of, field, without
from backburner.http.place import Found, Place, lasting
from backburner.http.policy import Policy
from backburner.http.request import CONDITIONAL, Request
from backburner.http.rules import Credentials
from backburner.http.stored import Stored, Variants

CALL: Final = "backburner.call"
"""The key of the `Call` in the scope that the application gets."""
_REST: Final = 1.0
"""Seconds for which an application that has just failed is not called again, if a stored response may stand in."""
_TAGS_KEPT: Final = 86_400.0
"""Seconds that the versions of tags are kept at least, while it is not yet known how long the response will be."""

_LASTING: Final = frozenset(
    {"no-store", "private", "vary", "credentials", "set-cookie", "freshness", "stale", "inner", "tags"}
)
"""Reasons for not storing a response that the next one for the same key is likely to have too."""


class Passing:
    """Keys whose responses were for one client only a moment ago: requests for them need not wait for each other.
    Requests with and without credentials are noted separately."""

    _SECONDS: Final = 10.0
    _MOST: Final = 10_000

    def __init__(self) -> None:
        self._until: dict[tuple[str, bool], float] = {}

    def add(self, key: str, *, credentials: bool) -> None:
        """Note a key. When there are too many, all are forgotten."""
        if len(self._until) >= self._MOST:
            self._until.clear()
        self._until[key, credentials] = time.monotonic() + self._SECONDS

    def has(self, key: str, *, credentials: bool) -> bool:
        """Whether the key was noted recently."""
        return self._until.get((key, credentials), 0.0) > time.monotonic()


class NotShared(Exception):
    """The response that others were waiting for is for one client only."""

    def __init__(self, credentials: Credentials) -> None:
        super().__init__(credentials)
        self.credentials = credentials


class ServerError(Exception):
    """The application answered with a server error, and a stored response is sent instead."""


class Call:
    """One call of the application, as an `exchange.Keeper`.

    Args:
        found: the stored response, to be validated, or sent if the application fails.
        flight: of the requests that wait for this call.
        settled: called when the client whose request leads can be answered from `response`.
    """

    def __init__(
        self, place: Place, request: Request, policy: Policy, found: Found | None, flight: Flight, passing: Passing
    ) -> None:
        self._place = place
        self._engine = place.engine
        self._request = request
        self._policy = policy
        self._found = found
        self.flight = flight
        self._passing = passing
        self.settled: Callable[[], None] = lambda: None
        self.response: Stored | None = None
        """For the client whose request leads; the others get it without cookies."""
        self.aged = False
        """Whether it comes from the cache."""
        self.forwarded = "fwd=stale" if found else "fwd=vary-miss" if place.variants else "fwd=uri-miss"
        self.detail = ""
        self.renewal = False
        self._turn: Turn | None = None
        self._validates = False
        self._terms: rules.Terms | None = None
        self._started = self._engine.runtime.elapsed()
        self._reason = ""
        self._rest = 0.0
        self._of_unknown_length = False
        self._named: dict[str, bytes] = {}
        self._unfit = ""

    async def begin(self, *, may_wait: bool = True) -> bool:
        """Ask for the right to store. ``False`` if another process has just stored what is wanted.

        Args:
            may_wait: whether a response that another process is computing just now would do, too.
        """
        key, mark = self._place.key, self._place.mark
        # Groups are known only once there is a response; it is likely to have those of the last one.
        before = self._found.entry.tags if self._found else ()
        tags = tuple(dict.fromkeys((*self._place.tags, *(tag for tag, _ in before))))
        try:
            while True:
                turn = await self._engine.begin({key: mark}, tags, _TAGS_KEPT)
                if key in turn.keys:
                    self._turn = turn
                    break
                if self.renewal:
                    return False
                if not may_wait:
                    break
                if key in turn.taken:
                    await self._engine.store.wait(turn.taken[key])
                # An entry that cannot be used must not keep this from computing for ever.
                mark = None
                found = await self._place.find()
                if self._place.key != key:
                    break  # responses vary by now, and one stored under this key would not be found
                if found is not None and self._is_new(found):
                    self.response, self.aged = found.stored, True
                    self.forwarded += "; collapsed"
                    self._land(found.stored, found.entry.tags)
                    return False
                # Nothing was found there and nobody is computing it, and yet the store says that there is an entry.
                self._place.unreadable |= found is None and key not in turn.taken
        except StoreError as error:
            self.detail = "store-unavailable"
            self._engine.degraded("respond", (key,), error)
        if self._place.unreadable:
            self.detail = self.detail or "unreadable"
        self._started = self._engine.runtime.elapsed()
        return True

    def _is_new(self, found: Found) -> bool:
        before = self._found.entry.created if self._found else 0.0
        return found.entry.created > before and found.fresh_until > self._engine.runtime.now()

    def scope(self) -> Any:
        """The request as the application gets it: unconditional, or conditional if something is stored."""
        conditions = []
        if self._found is not None and self._request.method in CONDITIONAL:
            stored = self._found.stored
            if stored.etag is not None and not stored.own_tag:
                conditions.append((b"if-none-match", stored.etag))
            if stored.modified is not None:
                conditions.append((b"if-modified-since", stored.modified))
        self._validates = bool(conditions)
        scope = self._request.unconditional(conditions)
        scope[CALL] = self
        return scope

    async def tag(self, tags: Sequence[str]) -> None:
        """Add tags that become known while the application answers; to be called before it reads what they stand
        for."""
        try:
            self._named.update(await self._engine.pin(tags, _TAGS_KEPT))
        except StoreError as error:
            self._unfit = "store-unavailable"
            self._engine.degraded("respond", (self._place.key,), error)

    def computes(self, key: str, engine: Engine) -> bool:
        """Whether this call computes the response under a key of a cache."""
        return self._engine is engine and self._place.primary == key

    def give_way(self) -> None:
        """Leave the response to a cache further inside, which knows more about it."""
        self._unfit = "inner"

    # As a keeper

    def judge(self, status: int, headers: Headers) -> Way:
        """See `exchange.Keeper.judge`."""
        self.forwarded += f"; fwd-status={status}"
        if status in rules.SERVER_ERRORS and self._found is not None:
            error = ServerError(f"status {status}")
            if self.renewal:
                self.failed(error)
                return Way.DROP
            if self.stand_in(error):
                return Way.DROP
        if status == 304 and self._validates and self._found is not None:
            return Way.KEEP
        self._terms, self._reason = self._judged(status, headers)
        if status >= 400 and status not in rules.HEURISTIC:
            self._reason = ""  # a failure, or a client's mistake, tells nothing about the next response
        return Way.PASS if self._terms is None else Way.KEEP

    def _judged(self, status: int, headers: Headers) -> tuple[rules.Terms | None, str]:
        if self._unfit:
            return None, self._unfit
        if sum(map(tag_bytes, {*self._place.tags, *self._named, *self._groups(headers)})) > MAX_TAGS:
            return None, "tags"
        return rules.may_store(
            status,
            headers,
            self._policy,
            credentials=self._request.credentials(self._policy),
            now=self._engine.runtime.now(),
            delay=self._engine.runtime.elapsed() - self._started,
        )

    def _groups(self, headers: Headers) -> tuple[str, ...]:
        """The tags that a response names."""
        return self._policy.groups(rules.groups(headers, b"cache-groups"), self._request.target)

    async def keep(self, status: int, headers: Headers, body: bytes) -> None:
        """Store a complete response, and hand it to the requests that wait."""
        directives, _ = rules.cache_control(headers, self._policy)
        own_tag = False
        if status == 304 and self._found is not None:
            before = self._found.stored
            cookies = [pair for pair in headers if pair[0] == b"set-cookie"]
            kept = rules.updated_fields(before.headers, headers, directives)
            status, body, own_tag = before.status, before.body, before.own_tag
            self._terms, self._reason = self._judged(status, kept)
            headers = kept + cookies
        else:
            headers = without(headers, (b"transfer-encoding",))  # this has a length (RFC 9112 section 6.2)
            length = field(headers, b"content-length")
            if length is None:
                self._of_unknown_length = True
                if status != 204:  # which has none (RFC 9110 section 8.6)
                    headers.append((b"content-length", b"%d" % len(body)))
            elif length != str(len(body)):
                self._terms = None  # part of it is missing (RFC 9111 section 3.3)
            if status == 200 and field(headers, b"etag") is None:
                headers.append((b"etag", entity_tag_of(body)))
                own_tag = True
            kept = rules.stored_fields(headers, directives)
        terms = self._terms or rules.Terms(0.0, self._engine.runtime.now())
        self.response = Stored(status, tuple(headers), body, terms, own_tag=own_tag)
        if self._terms is None:
            self.passed()
        else:
            stored = Stored(status, tuple(kept), body, terms, own_tag=own_tag)
            await self._store(stored, rules.vary(headers) or [], self._groups(headers))
        self.settled()

    def passed(self) -> None:
        """Let the requests that wait go on by themselves."""
        credentials = self._request.credentials(self._policy)
        if self._reason in _LASTING:
            self._passing.add(self._place.key, credentials=bool(credentials))
        self.flight.error = NotShared(credentials)
        self._engine.flights.land(self.flight)
        turn, self._turn = self._turn, None
        if turn is not None:
            # At once: the response may be an endless stream, and other processes wait for the lease.
            self._engine.runtime.spawn(self._engine.give_up(turn))

    def failed(self, error: Exception) -> None:
        """Leave the stored response as it is, and do not call the application again for a moment."""
        self._rest = _REST
        self._engine.tell(RefreshFailed(self._place.key, error))

    def stand_in(self, error: Exception) -> bool:
        """Send the stored response in place of an error, if that is allowed."""
        found = self._found
        now = self._engine.runtime.now()
        if found is None or not rules.may_stand_in(found.stored.terms, found.fresh_until, now):
            return False
        self._engine.tell(StaleServed(self._place.key, error))
        self._rest = _REST
        self.response, self.aged = found.stored, True
        self._land(found.stored, found.entry.tags)
        self.settled()
        return True

    async def retract(self) -> None:
        """Remove a response that ended before the application failed: unless it said how long it is, it may be cut off.
        Starlette's `BaseHTTPMiddleware` ends a broken stream as if it were whole."""
        if self._of_unknown_length:
            await self._engine.forget((self._place.key,))

    def _land(self, stored: Stored, tags: TagVersions, variants: Variants | None = None) -> None:
        landed = self._place.landed(stored, variants or self._place.variants)
        self.flight.entry = Entry(None, 0.0, 0.0, 0.0, 0.0, tags, value=landed)
        self._engine.flights.land(self.flight)

    async def end(self) -> None:
        """Give back the right to store, if nothing was stored."""
        turn, self._turn = self._turn, None
        try:
            if turn is not None:
                await self._engine.give_up(turn, self._rest)
        finally:
            self._engine.flights.land(self.flight)  # also if cancelled once more meanwhile, as scopes of anyio do

    # Storing

    async def _store(self, stored: Stored, fields: list[bytes], groups: tuple[str, ...]) -> None:
        place = self._place
        variants = place.variants
        if variants is None and fields:
            variants = Variants(tuple(fields), secrets.token_hex(4))
        tags: TagVersions = ()
        if self._turn is not None:
            try:
                tags, held = await self._finish(self._turn, stored, variants, fields, groups)
                self._turn = None
                if not held:
                    return  # it was removed meanwhile: requests that came after that must not get it
                self.forwarded += "; stored"
            except StoreError as error:
                self.detail = "store-unavailable"
                self._engine.degraded("respond", (place.key,), error)
        self._land(stored, tags, variants)

    async def _finish(
        self, turn: Turn, stored: Stored, variants: Variants | None, fields: list[bytes], groups: tuple[str, ...]
    ) -> tuple[TagVersions, bool]:
        """The versions of the response's tags, and whether the right to store it was still held."""
        place, engine = self._place, self._engine
        now = engine.runtime.now()
        entry = self._entry(stored, now)
        wanted = dict.fromkeys((*place.tags, *self._named, *groups))
        known = self._named | {tag: version for tag, version in turn.versions if tag in wanted}
        late = await engine.pin_late(turn, [tag for tag in wanted if tag not in known], entry.expires_at - now)
        if late is None:
            await engine.give_up(turn)
            return (), False
        entry.tags = (*known.items(), *late)
        outcomes = {place.key: entry}
        if place.variants is not None:
            if set(fields) <= set(place.variants.fields):
                entry.expires_at = min(entry.expires_at, place.variants_end)
            else:
                # The response varies by more fields than before: variants stored under fewer are no longer found.
                outcomes = {}
                await engine.forget((place.primary,))
        elif variants is not None:
            await engine.store.write({place.key_of(variants): entry}, now)
            outcomes = {place.key: lasting(variants, now, entry.expires_at)}
        return entry.tags, place.key in await engine.finish(turn, outcomes)

    def _entry(self, stored: Stored, now: float) -> Entry:
        terms = stored.terms
        fresh_until = terms.born + terms.lifetime
        took = self._engine.runtime.elapsed() - self._started
        refresh_at = refresh_point(fresh_until, took, 1.0 - random())  # noqa: S311  # no secret
        if self._engine.store.shares_values:
            return Entry(None, now, refresh_at, fresh_until, fresh_until + terms.kept, value=stored)
        return Entry(stored.pack(), now, refresh_at, fresh_until, fresh_until + terms.kept)
