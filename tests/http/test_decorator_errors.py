"""What `@cached_response` refuses, when the module with the route is imported, and what it says then."""

from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, Request, Security, WebSocket
from fastapi.responses import FileResponse, StreamingResponse
from fastapi.security import APIKeyCookie, APIKeyHeader, APIKeyQuery, HTTPBearer, OAuth2PasswordBearer
from sse_starlette import EventSourceResponse

from backburner import Cache, cached_response
from backburner.errors import ConfigError

door = cached_response(ttl=60, cache=Cache("memory://"))


async def read() -> int:
    return 1


def decorated(**options: Any) -> Callable[..., Any]:
    async def read(book_id: int = 1) -> int:
        return book_id

    return cached_response(**{"ttl": 60, "cache": Cache("memory://"), **options})(read)


def test_the_wrong_order() -> None:
    app = FastAPI()

    async def read() -> int:
        return 1

    app.get("/")(read)
    with pytest.raises(ConfigError, match=r"read\(\) is a route already.*put @cached_response below"):
        door(read)


def streamed() -> StreamingResponse:
    return StreamingResponse(iter(()))


def events() -> EventSourceResponse:
    return EventSourceResponse(iter(()))


async def pieces() -> AsyncIterator[bytes]:
    yield b""


async def socket(websocket: WebSocket) -> None: ...


class Page:
    async def get(self, request: Request) -> None: ...


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (streamed, "StreamingResponse, and streams are not cached"),
        (events, "EventSourceResponse, and streams are not cached"),
        (pieces, "yields a stream"),
        (socket, "answers a websocket, which cannot be cached"),
        (Page, "is for functions"),
        (door(read), "has a @cached_response already"),
    ],
)
def test_what_cannot_be_cached(function: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        door(function)


def test_a_stream_that_only_the_route_tells_of() -> None:
    app = FastAPI()
    with pytest.raises(ConfigError, match="StreamingResponse, and streams are not cached"):
        app.get("/", response_class=StreamingResponse)(door(read))
    app.get("/", response_class=FileResponse)(door(read))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ttl": "soon"}, "is no length of time"),
        ({"ttl": -1}, "must not be negative"),
        ({"tags": ["book:{"]}, "cannot be read"),
        ({"tags": ["book:{}"]}, "must name an argument"),
        ({"tags": ["{__import__('os')}"]}, "must name an argument"),
        ({"tags": "book"}, "tags='book' must be several"),
        ({"tags": [""]}, "must not be empty"),
        ({"vary_on": "accept language"}, "names of headers or cookies"),
        ({"vary_on": "cookie:"}, "names of headers or cookies"),
        ({"methods": frozenset({"PUT"})}, "only GET, HEAD, QUERY and POST"),
        ({"cache": "redis://"}, "give a Cache, or a function that gives one"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        decorated(**options)


def test_a_name_that_neither_the_function_nor_the_path_has() -> None:
    app, router = FastAPI(), APIRouter()
    function = decorated(tags=["shelf:{shelf}"])
    with pytest.raises(ConfigError, match=r"\{shelf\}, which is neither an argument.*'/books/\{book_id\}'"):
        app.get("/books/{book_id}")(function)
    router.get("/books/{book_id}")(function)  # the rest of its path may have it
    app.include_router(router, prefix="/{shelf}")
    with pytest.raises(ConfigError, match=r"\{shelf\}"):
        app.include_router(router, prefix="/red")


@pytest.mark.parametrize("method", ["post", "put", "delete"])
def test_methods_that_change_things(method: str) -> None:
    app = FastAPI()
    with pytest.raises(ConfigError, match=rf"read\(\) answers {method.upper()}, which @cached_response does not cache"):
        getattr(app, method)("/")(decorated())
    if method == "post":
        app.post("/")(decorated(methods=frozenset({"GET", "POST"})))


bearer, api_key, session = HTTPBearer(), APIKeyHeader(name="X-Key"), APIKeyCookie(name="Session")


def user(token: Annotated[Any, Depends(OAuth2PasswordBearer("/token"))]) -> str:
    return str(token)


def own(request: Request) -> str:
    return request.headers["x-own"]


GUARDS = {
    "scheme": (Depends(bearer), "authorization"),
    "below": (Depends(user), "authorization"),
    "security": (Security(user, scopes=["read"]), "authorization"),
    "header": (Depends(api_key), "x-key"),
    "cookie": (Depends(session), "cookie:Session"),
    "query": (Depends(APIKeyQuery(name="key")), None),
    "own": (Security(own), None),
}


def at_route(app: FastAPI, function: Any, guard: Any) -> None:
    app.get("/", dependencies=[guard])(function)


def at_router(app: FastAPI, function: Any, guard: Any) -> None:
    router = APIRouter(dependencies=[guard])
    router.get("/")(function)
    app.include_router(router)


def at_inclusion(app: FastAPI, function: Any, guard: Any) -> None:
    inner, outer = APIRouter(), APIRouter()
    inner.get("/inner")(function)
    outer.include_router(inner)
    app.include_router(outer, dependencies=[guard])


def at_app(_: FastAPI, function: Any, guard: Any) -> None:
    app, router = FastAPI(dependencies=[guard]), APIRouter()
    router.get("/router")(function)
    app.include_router(router)


@pytest.mark.parametrize("place", [at_route, at_router, at_inclusion, at_app])
@pytest.mark.parametrize("kind", GUARDS)
def test_security_that_a_hit_would_pass_by(place: Callable[..., None], kind: str) -> None:
    guard, named = GUARDS[kind]
    with pytest.raises(
        ConfigError, match=r"read\(\) at '/.*' has a security dependency.*after_dependencies=True"
    ) as error:
        place(FastAPI(), decorated(vary_on="accept-language"), guard)
    assert named is None or str(error.value).endswith(f"vary_on={named!r}")
    place(FastAPI(), decorated(after_dependencies=True), guard)
    place(FastAPI(), decorated(vary_on=own), guard)
    if named is not None:
        place(FastAPI(), decorated(vary_on=["accept-language", named]), guard)


@pytest.mark.parametrize("guard", [Security(own), Depends(user)])
def test_security_in_the_arguments_of_the_function_and_of_what_it_depends_on(guard: Any) -> None:
    async def below(user: str = guard) -> str:
        return user

    async def first(user: str = guard) -> int:
        return 1

    async def annotated(user: Annotated[str, guard]) -> int:
        return 1

    async def second(user: Annotated[str, Depends(below)]) -> int:
        return 1

    for function in (first, annotated, second):
        with pytest.raises(ConfigError, match="has a security dependency"):
            FastAPI().get("/")(door(function))


def test_what_is_refused_is_not_a_route() -> None:
    app = FastAPI()
    before = len(app.routes)
    with pytest.raises(ConfigError):
        app.get("/", dependencies=[Depends(bearer)])(door(read))
    assert len(app.routes) == before


@pytest.mark.anyio
async def test_security_that_comes_later_keeps_everybody_out() -> None:
    from tests.http.test_decorator import get

    app, router = FastAPI(), APIRouter()
    app.include_router(router, dependencies=[Depends(bearer)])
    router.get("/")(decorated())
    with pytest.raises(ConfigError, match="has a security dependency"):
        await get(app)


@pytest.mark.anyio
async def test_plain_starlette_has_no_dependencies() -> None:
    from starlette.applications import Starlette
    from starlette.routing import Route

    from tests.http.test_decorator import get

    async def page(request: Request) -> None: ...

    late = cached_response(after_dependencies=True, cache=Cache("memory://"))(page)
    with pytest.raises(ConfigError, match=r"page\(\) has no dependencies.*leave out after_dependencies"):
        await get(Starlette(routes=[Route("/", late)]))
