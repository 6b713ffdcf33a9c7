"""``@cached_response(after_dependencies=True)``: dependencies run on every request, the function only on a miss.

FastAPI solves the dependencies and calls a stand-in for the function (`after_dependencies`), which answers with the
door itself. On a hit, nothing else runs. On a miss, the door calls the function with the arguments that
are already solved (`Pending`), and its result is rendered as the route would render it (`rendering`).
"""

import inspect
from collections.abc import Callable
from functools import wraps
from inspect import Parameter, Signature
from typing import Any, Final

import anyio
from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute

from backburner.errors import ConfigError
from backburner.http.call import CALL
from backburner.http.door import Door
from backburner.http.endpoint import Answer, by_starlette, called, resolved
from backburner.http.exchange import ASGIApp, Message, Receive, Send

_BEHIND: Final = "backburner.behind"
_PENDING: Final = "backburner.pending"
_ANEW: Final = "backburner.anew"
_REQUEST: Final = "backburner_request"
_RESPONSE: Final = "backburner_response"
_IDENTITY: Final = "backburner_identity_"


def identifying(door: Door) -> list[Parameter]:
    """Parameters that make FastAPI call the functions of `vary_on`, which say who is asking."""
    return [
        Parameter(f"{_IDENTITY}{number}", Parameter.KEYWORD_ONLY, default=Depends(identify))
        for number, identify in enumerate(door.identities)
    ]


def identities(keywords: dict[str, Any]) -> list[object]:
    """What those functions returned; removed from the keyword arguments of a call."""
    return [keywords.pop(name) for name in list(keywords) if name.startswith(_IDENTITY)]


def after_dependencies(function: Callable[..., Any], door: Door) -> Callable[..., Any]:
    """The stand-in that becomes the route: same parameters as the function, and the request and response as well."""
    signature = resolved(function)
    request_name = _parameter_of(signature, Request) or _REQUEST
    response_name = _parameter_of(signature, Response) or _RESPONSE

    @wraps(function)
    async def made(*arguments: Any, **keywords: Any) -> Any:
        if by_starlette(arguments, keywords):
            raise ConfigError(f"{door.name}() has no dependencies, in plain Starlette: leave out after_dependencies")
        told = identities(keywords)
        request, response = keywords.get(request_name), keywords.get(response_name)
        own = {name: value for name, value in keywords.items() if name not in (_REQUEST, _RESPONSE)}
        if request is None or response is None or _BEHIND not in request.scope or _ANEW in request.scope:
            return await called(function, *arguments, **own)
        return Answer(_guarded(door, told, Pending(function, own, response, *request.scope[_BEHIND])))

    added = [
        Parameter(name, Parameter.KEYWORD_ONLY, annotation=kind)
        for name, kind in ((request_name, Request), (response_name, Response))
        if name not in signature.parameters
    ]
    parameters = [*signature.parameters.values(), *added, *identifying(door)]
    made.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return made


def rendering(route: Any) -> ASGIApp:
    """An application that renders what a `Pending` call returns, with the response options of a route."""
    names = ["status_code", "response_class", "response_model"]
    names += [f"response_model_{name}" for name in ("include", "exclude", "by_alias")]
    names += [f"response_model_exclude_{name}" for name in ("unset", "defaults", "none")]
    return APIRoute("/", _render, **{name: getattr(route, name) for name in names}).app


async def _render(request: Request, response: Response) -> Any:
    pending: Pending = request.scope[_PENDING]
    return await pending.value(response)


def behind(scope: Any, rendering: ASGIApp, anew: ASGIApp) -> None:
    """Note in the scope what the door of a route leads to.

    Args:
        rendering: renders the result of the call whose dependencies have been solved.
        anew: the whole route, dependencies included; for a renewal that outlives the request.
    """
    scope[_BEHIND] = rendering, anew


class Pending:
    """A call of the function with its dependencies solved. They live only as long as the request they belong to."""

    def __init__(
        self,
        function: Callable[..., Any],
        keywords: dict[str, Any],
        response: Response,
        rendering: ASGIApp,
        anew: ASGIApp,
    ) -> None:
        self.keywords = keywords
        self._function = function
        self._response = response
        self._rendering = rendering
        self._anew = anew
        # What dependencies set is for their request; what the function sets is cached.
        self.headers = list(response.headers.raw)
        del response.headers.raw[:]
        self._ended = False
        self._rendered: anyio.Event | None = None

    async def value(self, response: Response) -> Any:
        """Call the function. The headers and status that it set on its own response are applied to `response`."""
        given = await called(self._function, **self.keywords)
        response.headers.raw.extend(self._response.headers.raw)
        if self._response.status_code:
            response.status_code = self._response.status_code
        return given

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer with the pending call; with the whole route where the request may be over before the call is."""
        call = scope.get(CALL)
        if self._ended or (call is not None and call.renewal):
            await self._anew({**scope, _ANEW: True}, receive, send)
            return
        self._rendered = anyio.Event()
        try:
            await self._rendering({**scope, _PENDING: self}, receive, send)
        finally:
            self._rendered.set()

    async def end(self) -> None:
        """Wait until nothing uses the dependencies any more: others may be waiting for a call whose client has gone."""
        self._ended = True
        if self._rendered is not None:
            with anyio.CancelScope(shield=True):
                await self._rendered.wait()


def _guarded(door: Door, told: list[object], pending: Pending) -> ASGIApp:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        async def with_own(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *pending.headers]
            await send(message)

        door.tag_with(scope, pending.keywords)
        try:
            await door.respond(scope, receive, with_own, pending, told)
        finally:
            await pending.end()

    return app


def _parameter_of(signature: Signature, kind: type) -> str | None:
    for parameter in signature.parameters.values():
        if inspect.isclass(parameter.annotation) and issubclass(parameter.annotation, kind):
            return parameter.name
    return None
