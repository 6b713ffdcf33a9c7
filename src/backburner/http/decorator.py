"""`@cached_response`: the responses of one route, cached where the route is declared.

The decorator makes the door and marks the function with it. In FastAPI the door is placed by `route`, when the function
becomes a route; a plain Starlette route calls the function with the request, and gets the door as its response.
"""

import inspect
from collections.abc import Callable, Container, Sequence
from importlib.util import find_spec
from typing import Any, ParamSpec, TypedDict, TypeVar, Unpack, overload

from backburner.cache.default import default_cache
from backburner.cache.entry import Duration
from backburner.errors import ConfigError
from backburner.extras import extra
from backburner.http.door import Door, Source
from backburner.http.policy import Policy

with extra("fastapi", needed_by="@cached_response"):
    from starlette.websockets import WebSocket

    from backburner.http.endpoint import DOOR, behind_door, refuse_streams, resolved

if find_spec("fastapi") is None:
    routed: Container[object] = ()
    behind_dependencies = behind_door  # which has none to stand behind
else:
    from backburner.http.after_dependencies import after_dependencies as behind_dependencies
    from backburner.http.route import routed

P = ParamSpec("P")
T = TypeVar("T")


class Options(TypedDict, total=False):
    """Further options of `cached_response`; each as in `Policy`."""

    stale_while_revalidate: Duration
    stale_if_error: Duration
    ignore_cookies: bool
    methods: frozenset[str]
    max_body_bytes: int
    cache_status: str


@overload
def cached_response(function: Callable[P, T], /) -> Callable[P, T]: ...
@overload
def cached_response(
    *,
    ttl: Duration | None = None,
    namespace: str = "",
    tags: Sequence[str] = (),
    vary_on: str | Callable[..., Any] | Sequence[str | Callable[..., Any]] = (),
    after_dependencies: bool = False,
    cache: Source = default_cache,
    **options: Unpack[Options],
) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
def cached_response(
    function: Callable[..., Any] | None = None,
    /,
    *,
    ttl: Duration | None = None,
    namespace: str = "",
    tags: Sequence[str] = (),
    vary_on: str | Callable[..., Any] | Sequence[str | Callable[..., Any]] = (),
    after_dependencies: bool = False,
    cache: Source = default_cache,
    **options: Unpack[Options],
) -> Any:
    """Cache the responses of a route; write it below ``@app.get(…)``.

    A stored response is sent after routing and before dependencies, validation and the function itself.

    Args:
        ttl: how long responses stay fresh unless they say so: seconds, a `timedelta`, or ``"10m"``. ``None``:
            such responses are not stored.
        namespace: a name to purge the responses by; may contain fields, as tags do.
        tags: templates of the function's arguments and the path's parameters, such as ``"book:{book_id}"``.
        vary_on: what responses depend on besides their URL: the name of a header or a cookie (``"cookie:theme"``), a
            dependency that returns who is asking, or several of these. In plain Starlette, a function of the request.
        after_dependencies: whether dependencies run on every request, as they must if they check access. A plain
            function then becomes a coroutine function.
        cache: where responses are kept: a cache, or a function that returns one and is called for each request.
            ``None``: the process's `default_cache`.
        options: as in `Policy`.

    Raises:
        ConfigError: an option is invalid, the function cannot be cached, or the decorators are in the wrong order. Some
            of this, such as a security dependency that must run before anything is sent, is known only when the route
            is registered.
    """
    several = (vary_on,) if isinstance(vary_on, str) or callable(vary_on) else tuple(vary_on)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        _refuse_what_cannot_be_cached(function)
        policy = Policy(ttl=ttl, **options)
        door = Door(
            function,
            policy,
            tags=tags,
            namespace=namespace,
            vary_on=several,
            cache=cache,
            after_dependencies=after_dependencies,
        )
        endpoint = (behind_dependencies if after_dependencies else behind_door)(function, door)
        setattr(endpoint, DOOR, door)
        return endpoint

    return decorate if function is None else decorate(function)


def _refuse_what_cannot_be_cached(function: Any) -> None:
    name = getattr(function, "__name__", repr(function))
    if not inspect.isfunction(function):
        raise ConfigError(f"@cached_response is for functions that answer requests, not for {function!r}")
    if hasattr(function, DOOR):
        raise ConfigError(f"{name}() has a @cached_response already; one is enough")
    if function in routed:
        raise ConfigError(
            f"{name}() is a route already, without the cache: put @cached_response below the line that makes it one, "
            "next to the function"
        )
    signature = resolved(function)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError(f"{name}() yields a stream, which is not cached: return the whole of it")
    refuse_streams(name, signature.return_annotation)
    for parameter in signature.parameters.values():
        if inspect.isclass(parameter.annotation) and issubclass(parameter.annotation, WebSocket):
            raise ConfigError(f"{name}() answers a websocket, which cannot be cached; leave out @cached_response")
