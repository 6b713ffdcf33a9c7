"""Guards that nobody declared: dependencies, or the application itself, that read who asks from the request by hand.

The check on import cannot see them. What keeps a hit from passing them by is that a request with `Authorization` or a
cookie gets and leaves nothing, at whichever door, unless the response says that it is for all, or `vary_on` who asks.
"""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from backburner import Cache, cached_response
from backburner.http import CacheMiddleware, Policy
from tests.http.exchanges import Reply, ask

pytestmark = pytest.mark.anyio

USERS = {"Bearer ada": "ada", "Bearer emil": "emil", "session=ada": "ada", "session=emil": "emil"}
HEADERS = ["authorization", "cookie"]


@pytest.fixture
def cache() -> Cache:
    return Cache("memory://")  # where it lies does not matter here


def who(request: Request) -> str:
    """A guard as people write them, without any of FastAPI's security classes."""
    shown = request.headers.get("authorization") or request.headers.get("cookie") or ""
    if shown not in USERS:
        raise HTTPException(401)
    return USERS[shown]


def _as_a_route(cache: Cache, **options: Any) -> Any:
    app = FastAPI()

    @app.get("/a")
    @cached_response(ttl=60, cache_status="bb", cache=cache, **options)
    async def page(user: Annotated[str, Depends(who)]) -> str:
        await asyncio.sleep(0)  # so that others come while it computes
        return user

    return app


def _in_the_function(cache: Cache, **options: Any) -> Any:
    app = FastAPI()

    @app.get("/a")
    @cached_response(ttl=60, cache_status="bb", cache=cache, **options)
    def page(request: Request) -> str:
        return who(request)

    return app


def _of_the_router(cache: Cache, **options: Any) -> Any:
    app = FastAPI(dependencies=[Depends(who)])

    @app.get("/a")
    @cached_response(ttl=60, cache_status="bb", cache=cache, **options)
    def page(request: Request) -> str:
        return who(request)

    return app


def _in_starlette(cache: Cache, **options: Any) -> Any:
    @cached_response(ttl=60, cache_status="bb", cache=cache, **options)
    def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f'"{who(request)}"')

    return Starlette(routes=[Route("/a", page)])


def _behind_the_middleware(cache: Cache, **options: Any) -> Any:
    app = FastAPI()

    @app.get("/a")
    def page(user: Annotated[str, Depends(who)]) -> str:
        return user

    return CacheMiddleware(app, cache=cache, policy=Policy(ttl=60, cache_status="bb", **options))


def _as_a_middleware_of_the_application(cache: Cache, **options: Any) -> Any:
    app = FastAPI()

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[..., Any]) -> Response:
        try:
            who(request)
        except HTTPException as error:
            return Response(status_code=error.status_code)
        return await call_next(request)  # type: ignore[no-any-return]

    @app.get("/a")
    @cached_response(ttl=60, cache_status="bb", cache=cache, **options)
    def page(request: Request) -> str:
        return who(request)

    return app


PLACES = [
    _as_a_route,
    _in_the_function,
    _of_the_router,
    _in_starlette,
    _behind_the_middleware,
    _as_a_middleware_of_the_application,
]


def _said(replies: list[Reply]) -> list[str]:
    return [reply.text.strip('"') if reply.status == 200 else str(reply.status) for reply in replies]


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("place", PLACES)
async def test_a_guard_that_was_not_declared_lets_nobody_have_what_is_anothers(
    cache: Cache, place: Callable[..., Any], header: str
) -> None:
    app = place(cache)
    ada, emil = ("Bearer ada", "Bearer emil") if header == "authorization" else ("session=ada", "session=emil")
    asked = [ada, emil, "nobody", "", ada, emil, "", "nobody"]
    given = ["ada", "emil", "401", "401"] * 2
    one_by_one = [await ask(app, **({header: shown} if shown else {})) for shown in asked]
    assert _said(one_by_one) == given
    at_once = await asyncio.gather(*(ask(app, **({header: shown} if shown else {})) for shown in asked))
    assert _said(list(at_once)) == given
    with_credentials = [
        reply for reply, shown in zip(one_by_one + list(at_once), asked * 2, strict=True) if shown != ""
    ]
    assert not any("hit" in (reply["cache-status"] or "") for reply in with_credentials)
    assert not any("stored" in (reply["cache-status"] or "") for reply in with_credentials)


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("place", PLACES)
async def test_who_asks_is_told_apart_where_vary_on_names_it(
    cache: Cache, place: Callable[..., Any], header: str
) -> None:
    app = place(cache, vary_on=[header if header == "authorization" else "cookie:session"])
    ada, emil = ("Bearer ada", "Bearer emil") if header == "authorization" else ("session=ada", "session=emil")
    replies = [await ask(app, **{header: shown}) for shown in (ada, emil, ada, emil)]
    assert _said(replies) == ["ada", "emil"] * 2
    assert all("hit" in (reply["cache-status"] or "") for reply in replies[2:])
    assert (await ask(app)).status == 401
    assert (await ask(app, **{header: "nobody"})).status == 401
