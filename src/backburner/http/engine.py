"""The response cache itself: plain hits, invalidation by unsafe methods, purging; a `Visit` does everything else.

Nothing here knows whether it stands in front of an application, of a route, or behind its dependencies. A hit costs one
pass over the request's headers and one look-up, or two where responses vary.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from backburner.cache import Cache
from backburner.cache.engine import Engine
from backburner.cache.entry import Decision, Entry
from backburner.cache.runtime import run
from backburner.errors import StoreError
from backburner.http import rules
from backburner.http.answer import answer
from backburner.http.call import CALL, Call, Passing
from backburner.http.exchange import ASGIApp, Message, Receive, Send
from backburner.http.headers import Headers
from backburner.http.place import Looked, Place, value_of, variant_key
from backburner.http.policy import Policy
from backburner.http.request import INNER, Request, key_of, keys_of, target_of
from backburner.http.stored import Stored, Variants
from backburner.http.visit import Visit, replayed


class ResponseCache:
    """HTTP responses in a `Cache`.

    Args:
        inner: whether it stands at a route, with possibly another response cache in front of it.

    Responses can be removed by URL, by namespace or by tag, from every process that uses the same cache; for tags,
    `cache.tags("books").flush()` does the same.
    """

    def __init__(self, cache: Cache, *, inner: bool = False) -> None:
        self.cache = self._cache = cache
        self._layer = INNER if inner else ""
        self._passing = Passing()

    async def respond(self, scope: Any, receive: Receive, send: Send, app: ASGIApp, policy: Policy) -> None:
        """Answer one HTTP request to `app`, from the cache or by calling it."""
        request = Request(scope, self._layer)
        method = request.method
        if method != "GET" and method != "HEAD":
            await self._other(request, policy, app, receive, send)
            return
        if not request.target or request.is_uncommon():
            await app(scope, receive, send)
            return
        cache, key = self._cache, request.key
        if self._is_computed_further_out(key, scope):
            await app(scope, receive, send)
            return
        looked: Looked | None = None
        entry = here = cache._peek(key)  # noqa: SLF001
        hit = None if entry is None else self._hit(request, policy, key, entry)
        if hit is None:
            engine = self._aengine()
            try:
                looked = entry, decision = await engine.judge(key)
            except StoreError as error:
                looked = error
            else:
                if entry is not None and entry is not here and decision is Decision.HIT:
                    hit = self._hit(request, policy, key, entry)
        if hit is None:
            await self._visit(request, policy, app, receive, send, looked)
            return
        stored, key, entry = hit
        if looked is None:
            cache._count_hit(key, entry)  # noqa: SLF001
        else:
            engine.count(key, stored, entry)
        now = cache._clock()  # noqa: SLF001
        name = policy.cache_status
        status = f"{name}; hit; ttl={round(entry.fresh_until - now)}" if name else ""
        start, body = answer(stored, method, request.seen, now, status)
        await send(start)
        await send(body)

    def _is_computed_further_out(self, key: str, scope: Any) -> bool:
        """Whether a middleware in front, with the same cache, is computing this response; it would wait for itself."""
        outer: Call | None = scope.get(CALL)
        return outer is not None and outer.computes(key, self._aengine())

    def _hit(self, request: Request, policy: Policy, key: str, entry: Entry) -> tuple[Stored, str, Entry] | None:
        """The response that a fresh entry of the target leads to, and its place, if it may be sent without further
        checks."""
        value = value_of(key, entry, self._cache.events.emit)
        if isinstance(value, Variants):
            key = variant_key(key, value, request.headers, request.distinction(policy))
            variant = self._cache._peek(key)  # noqa: SLF001
            if variant is None:
                return None
            entry, value = variant, value_of(key, variant, self._cache.events.emit)
        elif policy.varies:
            return None
        if not isinstance(value, Stored):
            return None
        if len(request.seen) > 1 and (
            request.directives(policy) is not None or (request.credentials(policy) and not value.terms.public)
        ):
            return None
        return value, key, entry

    # The response cache is a part of the cache, as locks are.

    def _engine(self) -> Engine:
        return self._cache._engine()  # noqa: SLF001

    def _aengine(self) -> Engine:
        return self._cache._aengine()  # noqa: SLF001

    async def _visit(
        self, request: Request, policy: Policy, app: ASGIApp, receive: Receive, send: Send, looked: Looked | None
    ) -> None:
        tags = policy.tags_of(request.scope)
        if tags is None:
            await app(request.scope, receive, send)
            return
        place = Place(self._aengine(), request.key, request.distinction(policy), request.headers, tags, looked)
        await Visit(place, request, policy, self._passing, app, receive, send).run()

    async def _other(self, request: Request, policy: Policy, app: ASGIApp, receive: Receive, send: Send) -> None:
        """Answer a request of any method but GET and HEAD."""
        if request.method in policy.methods:
            await self._with_body(request, policy, app, receive, send)
        elif request.method in rules.SAFE or not request.target:
            await app(request.scope, receive, send)
        else:
            await self._changing(request, policy, app, receive, send)

    async def _with_body(self, request: Request, policy: Policy, app: ASGIApp, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if message["type"] != "http.request" or len(body) > policy.max_body_bytes:
                await app(request.scope, _then(body, message, receive), send)
                return
            if not message.get("more_body", False):
                break
        tags = policy.tags_of(request.scope)
        key = key_of(request.target, request.method, self._layer)
        common = request.target and not request.is_uncommon()
        if tags is not None and common and not self._is_computed_further_out(key, request.scope):
            place = Place(self._aengine(), key, request.distinction(policy, body), request.headers, tags)
            await Visit(place, request, policy, self._passing, app, receive, send, body).run()
        else:
            await app(request.scope, replayed(body, receive), send)

    # Invalidation

    async def _changing(self, request: Request, policy: Policy, app: ASGIApp, receive: Receive, send: Send) -> None:
        """Call the application for a request that may change what is stored."""
        changed: tuple[list[str], tuple[str, ...]] | None = None

        async def invalidate(message: Message) -> None:
            nonlocal changed
            if message["type"] == "http.response.start" and 200 <= message["status"] < 400:
                headers = [(name.lower(), value) for name, value in message.get("headers", ())]
                tags = rules.groups(headers, b"cache-group-invalidation")
                changed = [*_invalidated(request, headers)], policy.groups(tags, request.target)
                # Before the client gets the answer: what it asks for next must not be from before the change.
                await self._drop(*changed)
            await send(message)

        try:
            await app(request.scope, receive, invalidate)
        finally:
            if changed is not None:
                # Again: dependencies and background tasks may commit after the answer was sent, and requests in
                # between have stored what was there before.
                await self._drop(*changed)

    async def _drop(self, targets: Iterable[str], tags: tuple[str, ...]) -> None:
        engine = self._aengine()
        try:
            await engine.forget([key for target in dict.fromkeys(targets) for key in keys_of(target)])
        finally:
            if tags:  # also if cancelled meanwhile: the change is made, whether its answer arrives or not
                await engine.flush_tags(tags)

    def purge(self, *, url: str | None = None, namespace: str | None = None, tag: str | None = None) -> bool:
        """Remove the responses of a URL, of a namespace, or with a tag.

        Args:
            url: absolute, with its query.

        Returns:
            Whether it was done, and for a URL whether there were any. If the server is away, it is done before the next
            read from it.

        Raises:
            ValueError: not exactly one of the three is given, or it is invalid.
        """
        keys, tags = _named(url, namespace, tag)
        engine = self._engine()
        return run(engine.forget(keys)) > 0 if keys else run(engine.flush_tags(tags))

    async def apurge(self, *, url: str | None = None, namespace: str | None = None, tag: str | None = None) -> bool:
        """As `purge`."""
        keys, tags = _named(url, namespace, tag)
        engine = self._aengine()
        return await engine.forget(keys) > 0 if keys else await engine.flush_tags(tags)

    def expire(self, url: str) -> bool:
        """Make the responses of a URL stale: the application is asked before they are used again, and they may stand in
        if it fails. Returns whether there was one."""
        engine = self._engine()
        expired = [run(engine.expire(key)) for key in keys_of(target_of(url))]
        return any(expired)

    async def aexpire(self, url: str) -> bool:
        """As `expire`."""
        engine = self._aengine()
        expired = [await engine.expire(key) for key in keys_of(target_of(url))]
        return any(expired)


def _invalidated(request: Request, headers: Headers) -> Iterator[str]:
    yield request.target
    for url in rules.invalidated(request.url, headers):
        with suppress(ValueError):  # no URL under which anything could be stored
            yield target_of(url)


def _named(url: str | None, namespace: str | None, tag: str | None) -> tuple[list[str], list[str]]:
    if sum(name is not None for name in (url, namespace, tag)) != 1:
        raise ValueError("purge by one of url=…, namespace=… and tag=…")
    if url is not None:
        return keys_of(target_of(url)), []
    return [], [tag if tag is not None else f"http:{namespace}"]


def _then(body: bytes, message: Message, receive: Receive) -> Receive:
    """A `receive` that returns the part of a body that was read already, its last message as it was."""
    if message["type"] == "http.request":
        message = {**message, "body": body}
    messages = [message]

    async def again() -> Message:
        return messages.pop() if messages else await receive()

    return again
