"""The cache as ASGI middleware: the outermost layer, in front of routing."""

from collections.abc import Awaitable, Callable
from typing import Any

from backburner.cache import Cache
from backburner.http.policy import Policy

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Any, Receive, Send], Awaitable[None]]


class CacheMiddleware:
    """Answer requests from stored responses where HTTP allows it."""

    def __init__(self, app: ASGIApp, *, cache: Cache, policy: Policy | None = None) -> None:
        self._app = app
        self._cache = cache
        self._policy = policy or Policy()

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)
