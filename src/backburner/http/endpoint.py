"""A decorated function as routes call it: FastAPI by keywords, plain Starlette with a request.

In FastAPI the door stands in front of the route (`route`), and the function here only supplies the values for its tags.
Plain Starlette gets the door as the response: nothing that a hit could have saved has run by then.
"""

import inspect
from collections.abc import Callable, Coroutine
from functools import wraps
from inspect import Signature
from typing import Any, Final

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import request_response

from backburner.errors import ConfigError
from backburner.http.door import Door
from backburner.http.exchange import ASGIApp, Receive, Send

DOOR: Final = "__backburner_door__"
"""The attribute of a decorated function that holds its door; `functools.wraps` passes it on to further wrappers."""


class Answer(Response):
    """A response that is sent by an ASGI application."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__()
        self._app = app

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Send it, and then run the background tasks that dependencies added."""
        await self._app(scope, receive, send)
        if self.background is not None:
            await self.background()


def resolved(function: Callable[..., Any]) -> Signature:
    """The signature of a function, its annotations resolved to objects where that is possible."""
    try:
        return inspect.signature(function, eval_str=True)
    except Exception:  # noqa: BLE001  # whatever a name in an annotation does; frameworks complain where it matters
        return inspect.signature(function)


async def called(function: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Any:
    """The result of a function; a plain one is called in a thread, as frameworks do."""
    if inspect.iscoroutinefunction(function):
        return await function(*arguments, **keywords)
    return await run_in_threadpool(function, *arguments, **keywords)


def behind_door(function: Callable[..., Any], door: Door) -> Callable[..., Any]:
    """The function that becomes a route, behind its door."""
    behind = request_response(function)
    made: Any
    if inspect.iscoroutinefunction(function):

        @wraps(function)
        async def made(*arguments: Any, **keywords: Any) -> Any:
            if by_starlette(arguments, keywords):
                return _starlette(door, behind, arguments[0])
            if (tagging := door.tagging(keywords)) is not None:
                await tagging
            return await function(*arguments, **keywords)
    else:

        @wraps(function)
        def made(*arguments: Any, **keywords: Any) -> Any:
            if by_starlette(arguments, keywords):
                return _starlette(door, behind, arguments[0])
            if (tagging := door.tagging(keywords)) is not None:
                anyio.from_thread.run(_awaited, tagging)
            return function(*arguments, **keywords)

    made.__signature__ = resolved(function)
    return made  # type: ignore[no-any-return]


async def _awaited(tagging: Coroutine[Any, Any, None]) -> None:
    await tagging


def by_starlette(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
    """Whether these are the arguments with which a plain Starlette route calls."""
    return len(arguments) == 1 and not keywords and isinstance(arguments[0], Request)


def _starlette(door: Door, behind: ASGIApp, request: Request) -> Answer:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        door.check_path(scope.get("path_params", {}), scope["path"])
        door.tag_with(scope, {})
        identities = [await called(identify, request) for identify in door.identities]
        await door.respond(scope, receive, send, behind, identities)

    return Answer(app)


def refuse_streams(name: str, kind: object) -> None:
    """Refuse a class of responses that are endless, or of unknown length.

    Raises:
        ConfigError: it is such a class.
    """
    if not inspect.isclass(kind) or issubclass(kind, FileResponse):
        return
    if issubclass(kind, StreamingResponse) or kind.__name__ == "EventSourceResponse":
        raise ConfigError(
            f"{name}() answers with a {kind.__name__}, and streams are not cached here: return the whole, or leave out "
            "@cached_response. CacheMiddleware stores streams that end, if they say Cache-Control: max-age=…"
        )
