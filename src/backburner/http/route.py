"""Doors in front of FastAPI's routes, before dependencies.

FastAPI has no hook for a function becoming a route, but it then asks the route for its handler, and again when the
route's router is included in another one. `APIRoute.get_route_handler` is documented for applications to override, and
is overridden here for the functions that `cached_response` has marked, and for no others. Newer versions ask the routes
of an included router only on the first request; so they are checked when the router is included, so that caching what
must not be cached is an error on import.
"""

import inspect
from collections.abc import Callable, Iterator
from functools import partial, wraps
from typing import Any, Final
from weakref import WeakSet

import fastapi.routing
from fastapi import Request, Response, params
from fastapi.dependencies.utils import get_flat_params
from fastapi.routing import APIRoute, APIRouter
from fastapi.security.base import SecurityBase

from backburner.errors import ConfigError
from backburner.http.after_dependencies import behind, identifying, identities, rendering
from backburner.http.door import Door
from backburner.http.endpoint import DOOR, Answer, refuse_streams, resolved
from backburner.http.exchange import ASGIApp, Receive, Send
from backburner.http.policy import COOKIE

Handler = Callable[[Request], Any]

routed: Final[WeakSet[Callable[..., Any]]] = WeakSet()
"""Functions that became routes without a door."""

_get_route_handler = APIRoute.get_route_handler
_include_router = APIRouter.include_router
_contexts: Callable[..., Any] | None = getattr(fastapi.routing, "iter_route_contexts", None)
_effective = getattr(fastapi.routing, "_effective_route_context_var", None)
if _contexts is not None and _effective is None:
    raise ConfigError("@cached_response cannot see all dependencies of routes in this version of FastAPI: take 0.165")


@wraps(_get_route_handler)
def _handler(route: APIRoute) -> Handler:
    handler: Handler = _get_route_handler(route)
    door: Door | None = getattr(route.endpoint, DOOR, None)
    if door is None:
        if inspect.isfunction(route.endpoint):
            routed.add(route.endpoint)
        return handler
    included = _as_included(route)
    _check(door, included)
    door.also_vary_on(_headers(included))
    app = fastapi.routing.request_response(handler)
    if door.after_dependencies:
        return _behind_dependencies(handler, rendering(included), app)
    if door.identities:
        return _behind_identities(door, included, app)
    if "handle" not in vars(route):
        handle: Any = route.handle
        route.handle = partial(_handle, door, route, handle)  # type: ignore[method-assign]
    return handler


@wraps(_include_router)
def _including(router: APIRouter, *arguments: Any, **keywords: Any) -> None:
    _include_router(router, *arguments, **keywords)
    if _contexts is not None:
        for route in _contexts(router.routes[-1:]):
            door: Door | None = getattr(route.endpoint, DOOR, None)
            if door is not None:
                _check(door, route)


APIRoute.get_route_handler = _handler  # type: ignore[method-assign, assignment]
APIRouter.include_router = _including  # type: ignore[method-assign, assignment]


def _as_included(route: APIRoute) -> Any:
    """The route with what it takes over from the router that is including it."""
    context = _effective.get() if _effective is not None else None
    return context if context is not None and context.original_route is route else route


# The three places of a door


async def _handle(door: Door, route: APIRoute, handle: ASGIApp, scope: Any, receive: Receive, send: Send) -> None:
    if scope["method"] in (route.methods or ()):
        await door.respond(scope, receive, send, handle)
    else:
        await handle(scope, receive, send)


def _behind_identities(door: Door, route: Any, app: ASGIApp) -> Handler:
    async def identified(**keywords: Any) -> Response:
        told = identities(keywords)
        return Answer(lambda scope, receive, send: door.respond(scope, receive, send, app, told))

    identified.__signature__ = inspect.Signature(identifying(door))  # type: ignore[attr-defined]
    provider = route.dependency_overrides_provider
    handler: Handler = APIRoute(
        route.path, identified, response_model=None, dependency_overrides_provider=provider
    ).get_route_handler()
    return handler


def _behind_dependencies(handler: Handler, rendering: ASGIApp, anew: ASGIApp) -> Handler:
    async def guarded(request: Request) -> Response:
        behind(request.scope, rendering, anew)
        response: Response = await handler(request)
        return response

    return guarded


def _headers(route: Any) -> Iterator[str]:
    """The request headers that a route and its dependencies declare as parameters."""
    for declared in get_flat_params(route.dependant):
        if isinstance(declared.field_info, params.Header):
            yield from (declared.alias, declared.alias.replace("_", "-"))


# What cannot be cached


def _check(door: Door, route: Any) -> None:
    if unfit := set(route.methods) - door.policy.methods:
        some = sorted(unfit)
        raise ConfigError(
            f"{door.name}() answers {', '.join(some)}, which @cached_response does not cache: put the decorator on a "
            "function of its own for GET. (QUERY, and POST where it changes nothing, can be cached by their bodies: "
            'methods={"GET", "HEAD", "QUERY", "POST"})'
        )
    kind = route.response_class
    refuse_streams(door.name, getattr(kind, "value", kind))
    if route.dependency_overrides_provider is not None:  # else it has no application and an incomplete path
        door.check_path(route.param_convertors, route.path)
    if not door.after_dependencies and not door.identities:
        for who in _credentials(route):
            if who not in door.told and not (who.startswith(COOKIE) and "cookie" in door.told):
                raise ConfigError(
                    f"{door.name}() at {route.path!r} has a security dependency, and stored responses are given before "
                    "dependencies run. Use @cached_response(after_dependencies=True), which runs them on every "
                    "request, or say who asks, as in vary_on=current_user_id" + (f" or vary_on={who!r}" if who else "")
                )


def _credentials(route: Any) -> Iterator[str]:
    """Where the security dependencies of a route find credentials; empty if that cannot be told."""
    marked = {depends.dependency for depends in route.dependencies if isinstance(depends, params.Security)}
    for dependant in _all(route.dependant):
        scheme = inspect.unwrap(dependant.call)
        if isinstance(scheme, SecurityBase):
            yield _place(scheme)
            continue
        marked |= {depends.dependency for depends in _declared(dependant.call) if isinstance(depends, params.Security)}
        if dependant.call in marked and not any(isinstance(one.call, SecurityBase) for one in _all(dependant)):
            yield ""


def _all(dependant: Any) -> Iterator[Any]:
    """A function and all its dependencies, each after the one that depends on it."""
    yield dependant
    for dependency in dependant.dependencies:
        yield from _all(dependency)


def _declared(function: Callable[..., Any]) -> Iterator[object]:
    """The defaults and annotations that the parameters of a function are declared with."""
    for parameter in resolved(function).parameters.values():
        yield from (parameter.default, *getattr(parameter.annotation, "__metadata__", ()))


def _place(scheme: SecurityBase) -> str:
    place = getattr(getattr(scheme.model, "in_", None), "value", "")
    name = getattr(scheme.model, "name", "")
    return {"header": name.lower(), "cookie": COOKIE + name, "query": ""}.get(place, "authorization")
