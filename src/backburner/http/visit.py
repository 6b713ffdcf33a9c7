"""One request's way through the cache: find, judge, and then serve, wait, or call the application.

Of concurrent requests for one key, one leads: it calls the application, in a task of its own, so that a client that
leaves does not end what others wait for; a lease on the server keeps other processes from calling theirs. A response
that turns out to be for one client only goes to the leader; the others go on by themselves at once, and for a while
later requests do not wait for each other.
"""

import asyncio
from typing import Any, Final

from backburner.cache.engine import MISSING
from backburner.cache.flight import Flight, leading
from backburner.errors import StoreError
from backburner.http import rules
from backburner.http.answer import answer
from backburner.http.call import Call, NotShared, Passing
from backburner.http.exchange import ASGIApp, Direct, Message, Receive, Send, Shared
from backburner.http.place import Found, Landed, Place
from backburner.http.policy import Policy
from backburner.http.request import Request
from backburner.http.stored import Stored

_flying: Final[set["asyncio.Task[None]"]] = set()
"""Calls in progress; an event loop keeps only weak references to its tasks."""


class Visit:
    """A request, and what it takes to answer it.

    Args:
        body: the request's, if it was read to be part of the key.
    """

    def __init__(
        self,
        place: Place,
        request: Request,
        policy: Policy,
        passing: Passing,
        app: ASGIApp,
        receive: Receive,
        send: Send,
        body: bytes | None = None,
    ) -> None:
        self._place = place
        self._engine = place.engine
        self._request = request
        self._policy = policy
        self._passing = passing
        self._app = app
        self._receive = receive if body is None else replayed(body, receive)
        self._send = send
        self._body = body or b""
        self._credentials = request.credentials(policy)
        self._asked = request.directives(policy)
        self._detail = ""

    async def run(self) -> None:
        """Answer the request."""
        engine = self._engine
        while True:
            try:
                found = await self._place.find()
            except StoreError as error:
                self._detail = "store-unavailable"
                engine.degraded("respond", (self._place.key,), error)
                found = None
            if found is not None and self._credentials and not found.stored.terms.public:
                found = None
            if found is not None:
                now = engine.runtime.now()
                verdict = rules.use(found.stored.terms, found.fresh_until, found.refresh_at, now, self._asked)
                if verdict is not rules.Use.VALIDATE:
                    engine.count(self._place.key, found.stored, found.entry, stale=now >= found.fresh_until)
                    if verdict is rules.Use.RENEW and self._request.method != "HEAD":
                        self._renew(found)  # a HEAD would bring nothing that answers a GET
                    await self._serve(found.stored, f"hit; ttl={round(found.fresh_until - now)}")
                    return
            if self._asked is not None and "only-if-cached" in self._asked:
                await self._refuse()
                return
            engine.count(self._place.key, MISSING)
            if not self._may_wait(found):
                whole = self._request.method != "HEAD" and b"range" not in self._request.seen
                may_be_for_all = self._credentials and whole and not self._is_passing()
                await (self._for_one(found) if may_be_for_all else self._alone(found))
                return
            flight, leads = engine.flights.join(self._place.key, engine.runtime.loop())
            if leads:
                await self._lead(flight, found)
                return
            await engine.runtime.wait(flight)
            if await self._follow(flight):
                return

    def _may_wait(self, found: Found | None) -> bool:
        """Whether the response that others get would do for this request too, as far as can be told beforehand."""
        seen = self._request.seen
        if self._credentials or self._request.method == "HEAD" or self._is_passing():
            return False
        if found is None and b"range" in seen:
            return False
        return self._asked is None or "no-store" not in self._asked

    def _is_passing(self) -> bool:
        return self._passing.has(self._place.key, credentials=bool(self._credentials))

    async def _follow(self, flight: Flight) -> bool:
        try:
            landed = flight.outcome()
        except NotShared as answer:
            if answer.credentials:
                return False  # which says nothing about a request without
            await self._alone(None)
            return True
        if landed is None or not await self._engine.still_holds("respond", self._place.key, landed):
            return False  # the leader was killed, or began before the cache was flushed
        if isinstance(landed.value, Landed) and landed.value.answers(self._request.headers):
            await self._serve(landed.value.stored, "fwd=uri-miss; collapsed")
        else:
            await self._alone(None)
        return True

    # Answering

    async def _serve(self, stored: Stored, status: str, *, aged: bool = True) -> None:
        now = self._engine.runtime.now() if aged else None
        start, body = answer(stored, self._request.method, self._request.seen, now, self._status(status))
        await self._send(start)
        await self._send(body)

    def _status(self, status: str) -> str:
        """The value of ``Cache-Status`` (RFC 9211), if the policy asks for it."""
        if not self._policy.cache_status:
            return ""
        return f"{self._policy.cache_status}; {status}{f'; detail={self._detail}' if self._detail else ''}"

    def _sign(self, headers: list[tuple[bytes, bytes]], status: str) -> None:
        """Append it to the values of caches further inside."""
        if said := self._status(status):
            headers.append((b"cache-status", said.encode()))

    async def _refuse(self) -> None:
        headers = [(b"content-length", b"0")]
        self._sign(headers, "fwd=request; fwd-status=504")
        await self._send({"type": "http.response.start", "status": 504, "headers": headers})
        await self._send({"type": "http.response.body", "body": b""})

    async def _answer(self, call: Call, exchange: "Direct | Shared") -> None:
        if call.response is not None and not exchange.streamed:
            self._detail = call.detail or self._detail
            await self._serve(call.response, call.forwarded, aged=call.aged)

    def _signed(self, call: Call) -> Send:
        if not self._policy.cache_status:
            return self._send

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._detail = call.detail or self._detail
                self._sign(message["headers"], call.forwarded)
            await self._send(message)

        return send

    # Calling the application

    def _call(self, found: Found | None, flight: Flight) -> Call:
        return Call(self._place, self._request, self._policy, found, flight, self._passing)

    async def _alone(self, found: Found | None) -> None:
        """Call the application with this request unchanged, for it alone."""
        call = self._call(found, Flight(self._place.key, None))
        call.forwarded = "fwd=bypass"
        exchange = Direct(call, self._policy.max_body_bytes, self._signed(call))
        exchange.let_pass()
        await self._app(self._request.scope, self._receive, exchange.send)

    async def _for_one(self, found: Found | None) -> None:
        """Call the application for a request with credentials, whose response may turn out to be for all. It does not
        wait for others, and stores nothing if one of them is about to."""
        flight, leads = self._engine.flights.join(self._place.key, self._engine.runtime.loop())
        call = self._call(found, flight if leads else Flight(self._place.key, None))
        exchange = Direct(call, self._policy.max_body_bytes, self._signed(call))
        answered = False

        async def send(message: Message) -> None:
            nonlocal answered
            await exchange.send(message)
            if call.response is not None and not answered:
                answered = True
                await self._answer(call, exchange)

        try:
            if leads:
                await call.begin(may_wait=False)
            await self._app(call.scope(), self._receive, send)
        except Exception as error:
            await call.retract()
            if answered or exchange.streamed or not call.stand_in(error):
                raise
            await self._answer(call, exchange)
        finally:
            await call.end()

    async def _lead(self, flight: Flight, found: Found | None) -> None:
        call = self._call(found, flight)
        exchange = Shared(call, self._policy.max_body_bytes, self._receive, self._body)
        call.settled = exchange.settle
        task = asyncio.create_task(self._fly(call, exchange))
        _flying.add(task)
        task.add_done_callback(_flying.discard)
        await exchange.relay(self._signed(call), task)
        await self._answer(call, exchange)
        # Background tasks belong to the request, and so do their exceptions.
        await asyncio.shield(task)

    def _renew(self, found: Found) -> None:
        """Call the application without a client, to renew the response, unless somebody else is doing so."""
        flight = self._engine.flights.try_renewing(self._place.key, self._engine.runtime.loop())
        if flight is None:
            return
        call = self._call(found, flight)
        call.renewal = True
        exchange = Shared(call, self._policy.max_body_bytes, self._receive, self._body)
        exchange.abandoned = True
        self._engine.runtime.spawn(self._fly(call, exchange), lambda: self._engine.flights.land(flight))

    async def _fly(self, call: Call, exchange: Shared) -> None:
        try:
            with leading(call.flight):
                if await call.begin():
                    await self._app(call.scope(), exchange.receive, exchange.send)
        except Exception as error:
            if exchange.abandoned and isinstance(error, ConnectionResetError):
                return  # raised in the application because nobody takes its response
            await call.retract()
            if call.renewal:
                call.failed(error)  # the client has a good response; the error is reported to the cache's observers
                return
            answered = call.response is not None or exchange.streamed
            if not answered and call.stand_in(error):
                return
            if not answered:
                call.flight.error = error
            raise
        finally:
            await call.end()


def replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that first returns a body that was read already, and then what follows."""
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return messages.pop() if messages else await receive()

    return again
