"""One memo for each HTTP request: while it lasts, `Cache.memo` reads each key once.

It ends with the last byte of the response. Background tasks, and anything else that goes on after that, have none.
"""

from typing import Any

from backburner.cache.scope import memo_scope
from backburner.http.exchange import ASGIApp, Receive, Send


class MemoMiddleware:
    """Gives each request a memo of its own: ``app.add_middleware(MemoMiddleware)``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one connection; those that are not HTTP go to the application unchanged."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with memo_scope() as memo:

            async def send_and_end(message: Any) -> None:
                if message["type"] == "http.response.body" and not message.get("more_body", False):
                    memo.end()
                await send(message)

            await self._app(scope, receive, send_and_end)
