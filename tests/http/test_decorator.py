"""`@cached_response` on routes: where it answers, what is kept by what, and for whom."""

import asyncio
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import anyio
import httpx2 as httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, Cookie, Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Mount, Route

from backburner import Cache, cached_response, set_default_cache
from backburner.http import CacheMiddleware, Policy
from tests.conftest import Eventually
from tests.processes import free_port, running

pytestmark = pytest.mark.anyio


@pytest.fixture
def cache() -> Cache:
    return Cache("memory://")


@pytest.fixture
def app() -> FastAPI:
    return FastAPI()


class Calls(list[Any]):
    """What was called, in order."""

    def __call__(self, what: Any) -> int:
        self.append(what)
        return len(self)


@pytest.fixture
def calls() -> Calls:
    return Calls()


async def get(app: Any, path: str = "/", method: str = "GET", **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop.example") as client:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return await client.request(method, path, headers=sent)


# Where it answers


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_a_hit_runs_neither_dependencies_nor_the_function(
    app: FastAPI, cache: Cache, calls: Calls, kind: str
) -> None:
    def session() -> int:
        return calls("session")

    if kind == "def":

        @app.get("/books/{book_id}")
        @cached_response(ttl=60, tags=["book:{book_id}"], cache=cache)
        def read(book_id: int, session: Annotated[int, Depends(session)]) -> dict[str, int]:
            return {"id": book_id, "call": calls("read")}
    else:

        @app.get("/books/{book_id}")
        @cached_response(ttl=60, tags=["book:{book_id}"], cache=cache)
        async def read(book_id: int, session: Annotated[int, Depends(session)]) -> dict[str, int]:
            return {"id": book_id, "call": calls("read")}

    first, again = await get(app, "/books/5"), await get(app, "/books/5")
    assert first.json() == again.json() == {"id": 5, "call": 2}
    assert calls == ["session", "read"]
    assert again.headers["age"] == "0"
    assert (await get(app, "/books/5", if_none_match=first.headers["etag"])).status_code == 304
    await cache.tags("book:5").aflush()
    assert (await get(app, "/books/5")).json()["call"] == 4
    assert (await get(app, "/books/six")).status_code == 422


def direct(app: FastAPI, read: Any) -> Any:
    app.get("/in/{shelf}/books/{book_id}")(read)
    return app


def included(app: FastAPI, read: Any) -> Any:
    books, shelves = APIRouter(prefix="/books"), APIRouter()
    books.get("/{book_id}")(read)
    shelves.include_router(books)
    app.include_router(shelves, prefix="/in/{shelf}")
    return app


def late(app: FastAPI, read: Any) -> Any:
    books = APIRouter()
    app.include_router(books, prefix="/in/{shelf}")
    books.get("/books/{book_id}")(read)
    return app


def mounted(app: FastAPI, read: Any) -> Any:
    app.get("/{shelf}/books/{book_id}")(read)
    outer = FastAPI()
    outer.mount("/in", app)
    return outer


def plain(_: FastAPI, read: Any) -> Any:
    @wraps(read.__wrapped__)
    async def answered(request: Request) -> Response:
        return JSONResponse(await read.__wrapped__(int(request.path_params["book_id"])))

    door = cached_response(ttl=60, tags=["book:{book_id}", "shelf:{shelf}"], cache=read.cache)
    del answered.__wrapped__  # the signature is its own
    answered.__dict__.clear()
    return Starlette(routes=[Mount("/in/{shelf}", routes=[Route("/books/{book_id}", door(answered))])])


@pytest.mark.parametrize("place", [direct, included, late, mounted, plain])
async def test_it_answers_wherever_the_route_is(
    app: FastAPI, cache: Cache, calls: Calls, place: Callable[..., Any]
) -> None:
    @cached_response(ttl=60, tags=["book:{book_id}", "shelf:{shelf}"], cache=cache)
    async def read(book_id: int) -> dict[str, int]:
        return {"id": book_id, "call": calls("read")}

    read.cache = cache  # type: ignore[attr-defined]
    asked = place(app, read)
    for tag in (None, "book:5", "shelf:red", "book:6"):
        if tag:
            await cache.tags(tag).aflush()
        for _ in range(2):
            assert (await get(asked, "/in/red/books/5")).json()["id"] == 5
    assert len(calls) == 3  # the last flush was of another book
    await get(asked, "/in/blue/books/5")
    assert len(calls) == 4


async def test_one_function_may_be_several_routes(app: FastAPI, cache: Cache, calls: Calls) -> None:
    @app.get("/a/{name}")
    @app.get("/b/{name}")
    @cached_response(ttl=60, tags=["{name}"], cache=cache)
    async def read(name: str) -> int:
        return calls(name)

    assert [(await get(app, path)).json() for path in ("/a/x", "/b/x", "/a/x", "/b/x")] == [1, 2, 1, 2]


async def test_what_stands_between_keeps_the_door_and_is_cached_too(app: FastAPI, cache: Cache, calls: Calls) -> None:
    def logged(function: Any) -> Any:
        @wraps(function)
        async def logging(**keywords: Any) -> Any:
            calls("logged")
            return await function(**keywords)

        return logging

    @app.get("/")
    @logged
    @cached_response(ttl=60, cache=cache)
    async def read() -> int:
        return calls("read")

    assert [(await get(app)).json() for _ in range(2)] == [2, 2]
    assert calls == ["logged", "read"]


async def test_it_works_in_routes_of_a_class_of_ones_own(app: FastAPI, cache: Cache, calls: Calls) -> None:
    class Timed(APIRoute):
        def get_route_handler(self) -> Any:
            handler = super().get_route_handler()

            async def timed(request: Request) -> Response:
                calls("timed")
                return await handler(request)

            return timed

    router = APIRouter(route_class=Timed)

    @router.get("/")
    @cached_response(ttl=60, cache=cache)
    async def read() -> int:
        return calls("read")

    app.include_router(router)
    assert [(await get(app)).json() for _ in range(2)] == [2, 2]


async def test_without_a_cache_it_is_the_default_one_without_parentheses_the_response_decides(
    app: FastAPI, cache: Cache, calls: Calls
) -> None:
    @app.get("/")
    @cached_response
    async def read(response: Response, age: int = 0) -> int:
        response.headers["cache-control"] = f"max-age={age}"
        return calls("read")

    before = set_default_cache(cache)
    try:
        assert [(await get(app, path)).json() for path in ("/?age=9", "/?age=9", "/", "/")] == [1, 1, 2, 3]
    finally:
        set_default_cache(before)


async def test_the_function_can_be_called_as_before(cache: Cache) -> None:
    @cached_response(ttl=60, tags=["book:{book_id}"], cache=cache)
    async def read(book_id: int, size: int = 2) -> list[int]:
        return [book_id] * size

    @cached_response(ttl=60, after_dependencies=True, cache=cache)
    def count(book_id: int) -> int:
        return book_id

    assert await read(5) == await read(book_id=5, size=2) == [5, 5]
    assert await count(5) == 5  # type: ignore[misc]


# What is kept, and how long


class Book(BaseModel):
    title: str
    secret: str = "x"


class Shown(BaseModel):
    title: str


@pytest.mark.parametrize("after", [False, True])
async def test_responses_of_every_kind_are_as_without_the_cache(
    app: FastAPI, cache: Cache, calls: Calls, after: bool
) -> None:
    bare = FastAPI()

    def model() -> Any:
        return Book(title="Emma")

    async def listed() -> list[Book]:
        return [Book(title="Emma"), Book(title="Emil")]

    def made() -> Response:
        return PlainTextResponse("Emma", headers={"x-made": "1"})

    async def set_(response: Response) -> dict[str, str]:
        response.headers["x-set"] = "1"
        response.status_code = 203
        return {"title": "Emma"}

    def missing() -> None:
        raise HTTPException(404, "no such book", headers={"x-why": "gone"})

    routes: dict[str, tuple[Any, dict[str, Any]]] = {
        "/model": (model, {"response_model": Shown, "status_code": 203}),
        "/list": (listed, {"response_model_exclude": {"secret"}}),
        "/made": (made, {}),
        "/set": (set_, {}),
        "/missing": (missing, {}),
        "/text": (lambda: "Emma", {"response_class": PlainTextResponse}),
        "/none": (lambda: None, {"status_code": 204}),
    }
    for path, (function, options) in routes.items():
        door = cached_response(ttl=60, after_dependencies=after, cache=cache, cache_status="bb")
        app.get(path, **options)(door(function))
        bare.get(path, **options)(function)
    for path in routes:
        wanted = await get(bare, path)
        for what in ("fwd=uri-miss", "hit"):
            got = await get(app, path)
            assert what in got.headers["cache-status"], path
            assert (got.status_code, got.content) == (wanted.status_code, wanted.content)
            assert wanted.headers.items() <= got.headers.items()


@pytest.mark.parametrize("after", [False, True])
async def test_background_tasks_run_when_the_function_does_and_cookies_are_never_kept(
    app: FastAPI, cache: Cache, calls: Calls, after: bool
) -> None:
    @app.get("/task")
    @cached_response(ttl=60, after_dependencies=after, cache=cache)
    async def task(tasks: BackgroundTasks) -> int:
        tasks.add_task(calls, "task")
        return 1

    @app.get("/cookie")
    @cached_response(ttl=60, after_dependencies=after, cache=cache)
    async def cookie(response: Response) -> int:
        response.set_cookie("a", "b")
        return calls("cookie")

    for _ in range(2):
        await get(app, "/task")
    assert calls == ["task"]
    for number in (2, 3):
        got = await get(app, "/cookie")
        assert (got.json(), got.headers["set-cookie"]) == (number, "a=b; Path=/; SameSite=lax")


async def test_what_the_response_says_wins(app: FastAPI, cache: Cache, calls: Calls) -> None:
    @app.get("/")
    @cached_response(ttl=60, cache=cache)
    def read(response: Response) -> int:
        response.headers["cache-control"] = "no-store"
        return calls("read")

    assert [(await get(app)).json() for _ in range(2)] == [1, 2]


async def test_other_methods_are_the_applications_business(app: FastAPI, cache: Cache, calls: Calls) -> None:
    @app.get("/get")
    @cached_response(ttl=60, cache=cache)
    def read() -> int:
        return calls("get")

    @app.api_route("/both", methods=["GET", "HEAD"])
    @cached_response(ttl=60, cache=cache)
    def read_both() -> int:
        return calls("both")

    @app.api_route("/search", methods=["QUERY"])
    @cached_response(ttl=60, cache=cache, methods=frozenset({"GET", "HEAD", "QUERY"}))
    async def search(request: Request) -> str:
        calls("search")
        return (await request.body()).decode()

    await get(app, "/get")
    assert (await get(app, "/get", "HEAD")).status_code == 405
    assert (await get(app, "/get", "PUT")).status_code == 405
    await get(app, "/both")
    head = await get(app, "/both", "HEAD")
    assert (head.content, head.headers["content-length"], calls) == (b"", "1", ["get", "both"])
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop.example") as client:
        found = [(await client.request("QUERY", "/search", content=text)).json() for text in ("a", "b", "a")]
    assert (found, calls) == (["a", "b", "a"], ["get", "both", "search", "search"])


# Tags


async def test_tags_are_of_what_the_function_gets_not_of_what_was_typed(
    app: FastAPI, cache: Cache, calls: Calls
) -> None:
    async def author(book_id: int) -> dict[str, str]:
        return {"name": f"author of {book_id}"}

    @app.get("/books/{book_id}")
    @cached_response(ttl=60, tags=["book:{book_id}", "size:{size}", "{author[name]}"], namespace="b{size}", cache=cache)
    def read(book_id: int, author: Annotated[dict[str, str], Depends(author)], size: int = 3) -> int:
        return calls("read")

    for number, tag in enumerate(("book:7", "size:3", "author of 7", "http:b3"), 1):
        assert (await get(app, "/books/007")).json() == number
        assert (await get(app, "/books/007")).json() == number
        await cache.tags(tag).aflush()
    assert (await get(app, "/books/007")).json() == 5


@pytest.mark.parametrize("when", ["dependency", "function", "plain function"])
async def test_a_flush_while_a_response_is_made_is_not_missed(
    app: FastAPI, cache: Cache, calls: Calls, when: str
) -> None:
    async def flush_first() -> None:
        if when == "dependency":
            await cache.tags("book:5").aflush()

    if when == "plain function":

        @app.get("/books/{book_id}", dependencies=[Depends(flush_first)])
        @cached_response(ttl=60, tags=["book:{book_id}"], cache=cache)
        def read(book_id: int) -> int:
            cache.tags("book:5").flush()
            return calls("read")
    else:

        @app.get("/books/{book_id}", dependencies=[Depends(flush_first)])
        @cached_response(ttl=60, tags=["book:{book_id}"], cache=cache)
        async def read(book_id: int) -> int:
            if when == "function":
                await cache.tags("book:5").aflush()
            return calls("read")

    path = "/books/5" if when == "dependency" else "/books/05"
    assert [(await get(app, path)).json() for _ in range(2)] == [1, 2]


async def test_cached_routes_may_call_each_other_as_functions(app: FastAPI, cache: Cache, calls: Calls) -> None:
    @app.get("/a/{name}")
    @cached_response(ttl=60, tags=["{name}"], cache=cache)
    def inner(name: str) -> int:
        return calls(name)

    @app.get("/b/{number}")
    @cached_response(ttl=60, tags=["{number}"], cache=cache)
    async def outer(number: int) -> int:
        return inner(name=str(number))

    assert [(await get(app, path)).json() for path in ("/b/5", "/b/5", "/a/5")] == [1, 1, 2]


async def test_tags_may_hold_whatever_a_url_can(app: FastAPI, cache: Cache, calls: Calls) -> None:
    @app.get("/{name}")
    @cached_response(ttl=60, tags=["{name}", "{q}"], cache=cache)
    def read(name: str, q: str = "") -> int:
        return calls("read")

    for path in ("/%00%0a", f"/{'x' * 3000}", "/%f0%9f%98%80?q=%01", "/%ff"):
        assert (await get(app, path)).json() == (await get(app, path)).json()
    assert len(calls) == 4


async def test_they_are_emptied_by_url_and_by_namespace(app: FastAPI, cache: Cache, calls: Calls) -> None:
    @app.get("/books/{book_id}")
    @cached_response(ttl=60, namespace="books", cache=cache)
    def read(book_id: int) -> int:
        return calls("read")

    responses = CacheMiddleware(app, cache=cache).responses
    assert (await get(app, "/books/5")).json() == 1
    assert await responses.apurge(url="http://shop.example/books/5")
    assert (await get(app, "/books/5")).json() == 2
    assert await responses.aexpire("http://shop.example/books/5")
    assert (await get(app, "/books/5")).json() == 3
    await responses.apurge(namespace="books")
    assert (await get(app, "/books/5")).json() == 4


# For whom


async def test_responses_vary_on_headers_and_cookies_that_are_named(app: FastAPI, cache: Cache, calls: Calls) -> None:
    @app.get("/language")
    @cached_response(ttl=60, vary_on="Accept-Language", cache=cache)
    def language() -> int:
        return calls("language")

    @app.get("/theme")
    @cached_response(ttl=60, vary_on=["cookie:theme"], cache=cache)
    def theme() -> int:
        return calls("theme")

    assert [(await get(app, "/language", accept_language=one)).json() for one in ("en", "de", "en")] == [1, 2, 1]
    # Who shows credentials may be known to the function by them, though a header is named.
    shown = {"accept_language": "en", "authorization": "Bearer a"}
    assert [(await get(app, "/language", **shown)).json() for _ in range(2)] == [3, 4]
    assert [(await get(app, "/language", accept_language="en", cookie="a=b")).json() for _ in range(2)] == [5, 6]
    cookies = ("theme=dark", "a=b; theme=dark", "theme=light", "mytheme=dark", "theme=dark")
    assert [(await get(app, "/theme", cookie=one)).json() for one in cookies] == [7, 7, 8, 9, 7]


async def test_header_parameters_that_are_declared_count_without_being_named(
    app: FastAPI, cache: Cache, calls: Calls
) -> None:
    def tenant(x_tenant: Annotated[str, Header()] = "") -> str:
        return x_tenant

    @app.get("/")
    @cached_response(ttl=60, cache=cache)
    def read(tenant: Annotated[str, Depends(tenant)], token: Annotated[str, Header(alias="X-Token")] = "") -> str:
        calls("read")
        return tenant + token

    asked = [{"x_tenant": "a"}, {"x_tenant": "b"}, {"x_token": "a"}, {"x_tenant": "a"}, {}]
    assert [(await get(app, **headers)).json() for headers in asked] == ["a", "b", "a", "a", ""]
    assert len(calls) == 4


async def test_requests_with_credentials_share_nothing_unless_who_asks_is_named(
    app: FastAPI, cache: Cache, calls: Calls
) -> None:
    @app.get("/")
    @cached_response(ttl=60, cache=cache)
    def read(session: Annotated[str, Cookie()] = "") -> int:
        return calls("read")

    assert [(await get(app, cookie=one)).json() for one in ("session=a", "session=a", "session=b")] == [1, 2, 3]
    assert [(await get(app)).json() for _ in range(2)] == [4, 4]


@pytest.mark.parametrize("after", [False, True])
async def test_a_dependency_may_say_who_asks(app: FastAPI, cache: Cache, calls: Calls, after: bool) -> None:
    def token(authorization: Annotated[str, Header()] = "") -> str:
        if not authorization:
            raise HTTPException(401)
        return authorization

    async def current_user_id(token: Annotated[str, Depends(token)], shop: str) -> int:
        calls("who")
        return {"a": 1, "b": 2}[token]

    @app.get("/{shop}")
    @cached_response(ttl=60, vary_on=current_user_id, after_dependencies=after, cache=cache)
    def read(user: Annotated[int, Depends(current_user_id)]) -> dict[str, int]:
        calls("read")
        return {"user": user}

    for who, user in (("a", 1), ("b", 2), ("a", 1), ("b", 2)):
        assert (await get(app, "/shop", authorization=who)).json() == {"user": user}
    assert calls.count("read") == 2
    assert (await get(app, "/shop")).status_code == 401
    app.dependency_overrides[current_user_id] = lambda: 3
    assert (await get(app, "/shop", authorization="a")).json() == {"user": 3}


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_in_plain_starlette_a_function_of_the_request_says_who_asks(
    cache: Cache, calls: Calls, kind: str
) -> None:
    def who(request: Request) -> str:
        return request.headers["authorization"]

    async def awho(request: Request) -> str:
        return who(request)

    @cached_response(ttl=60, vary_on=who if kind == "def" else awho, cache=cache)
    def read(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(calls("read")))

    app = Starlette(routes=[Route("/", read)])
    assert [(await get(app, authorization=one)).text for one in ("a", "b", "a")] == ["1", "2", "1"]


class Masked(str):
    """Stays out of logs."""

    def __repr__(self) -> str:
        return "***"


class MaskedNumber(int):
    def __repr__(self) -> str:
        return "***"


@pytest.mark.parametrize("kind", [Masked, MaskedNumber, lambda text: (0, Masked(text))])
async def test_identities_that_mask_themselves_are_told_apart(cache: Cache, kind: Callable[[str], object]) -> None:
    def who(request: Request) -> object:
        return kind(request.headers["authorization"])

    @cached_response(ttl=60, vary_on=who, cache=cache)
    def read(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.headers["authorization"])

    app = Starlette(routes=[Route("/", read)])
    assert [(await get(app, authorization=one)).text for one in ("1", "2", "1")] == ["1", "2", "1"]


async def test_an_identity_that_tells_nobody_apart_is_refused(app: FastAPI, cache: Cache) -> None:
    @app.get("/")
    @cached_response(ttl=60, vary_on=object, cache=cache)
    def read() -> int:
        return 1

    with pytest.raises(TypeError, match=r"read\(\): vary_on gave a object.*give its id"):
        await get(app)


# After dependencies


async def test_after_dependencies_they_run_on_every_request(app: FastAPI, cache: Cache, calls: Calls) -> None:
    def admitted(response: Response, authorization: Annotated[str, Header()] = "") -> str:
        calls("admitted")
        if not authorization:
            raise HTTPException(401)
        response.headers["x-left"] = str(len(calls))
        return authorization

    @app.get("/", dependencies=[Depends(admitted)])
    @cached_response(ttl=60, after_dependencies=True, vary_on=lambda: "all", cache=cache)
    def read(response: Response) -> int:
        response.headers["x-read"] = "1"
        return calls("read")

    first, again = await get(app, authorization="a"), await get(app, authorization="a")
    assert calls == ["admitted", "read", "admitted"]
    assert first.json() == again.json() == 2
    assert first.headers["x-read"] == again.headers["x-read"] == "1"
    assert (first.headers["x-left"], again.headers["x-left"]) == ("1", "3")  # each its own, and neither of them kept
    assert (await get(app)).status_code == 401


async def test_a_renewal_after_dependencies_has_dependencies_of_its_own(cache: Cache, calls: Calls) -> None:
    now = 1_800_000_000.0
    cache = Cache("memory://", clock=lambda: now)
    app = FastAPI()
    renewed = asyncio.Event()

    async def session() -> Any:
        state = ["open"]
        try:
            yield state
        finally:
            state[0] = "closed"

    @app.get("/")
    @cached_response(ttl=10, stale_while_revalidate=60, after_dependencies=True, cache=cache)
    async def read(session: Annotated[list[str], Depends(session)]) -> str:
        if calls(session) == 2:
            await asyncio.sleep(0)
            renewed.set()
        return f"{session[0]} {len(calls)}"

    assert (await get(app)).json() == "open 1"
    now += 20
    assert (await get(app)).json() == "open 1"
    await renewed.wait()
    while (found := (await get(app)).json()) == "open 1":  # noqa: ASYNC110  # until it is stored; the time limit is the end
        await asyncio.sleep(0)
    assert found == "open 2"


@pytest.mark.parametrize("by", ["task", "scope"])
async def test_dependencies_last_as_long_as_others_wait_for_their_call(
    app: FastAPI, cache: Cache, calls: Calls, by: str
) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def session() -> Any:
        state = ["open"]
        try:
            yield state
        finally:
            state[0] = "closed"

    @app.get("/")
    @cached_response(ttl=10, after_dependencies=True, cache=cache)
    async def read(session: Annotated[list[str], Depends(session)]) -> str:
        calls("read")
        asked.set()
        await go.wait()
        return session[0]

    scope = anyio.CancelScope()

    async def lead() -> None:
        with scope:  # as some middleware has around a request: it cancels again with each await
            await get(app)

    leader = asyncio.create_task(lead())
    await asked.wait()
    follower = asyncio.create_task(get(app))
    await asyncio.sleep(0.01)  # the follower gets as far as it can
    (leader if by == "task" else scope).cancel()
    await asyncio.sleep(0.01)
    go.set()
    assert (await follower).json() == "open"
    assert calls == ["read"]


# Together


@pytest.mark.parametrize("after", [False, True])
async def test_many_cold_requests_call_the_function_once(app: FastAPI, cache: Cache, calls: Calls, after: bool) -> None:
    go = asyncio.Event()

    @app.get("/")
    @cached_response(ttl=60, after_dependencies=after, cache=cache)
    async def read() -> int:
        await go.wait()
        return calls("read")

    asking = [asyncio.create_task(get(app)) for _ in range(50)]
    while not calls:
        go.set()
        await asyncio.sleep(0)
    assert {(await reply).json() for reply in asking} == {1}


@pytest.mark.parametrize("after", [False, True])
async def test_it_works_behind_the_middleware_with_the_same_cache(
    app: FastAPI, cache: Cache, calls: Calls, after: bool
) -> None:
    @app.get("/books/{book_id}")
    @cached_response(ttl=60, tags=["book:{book_id}"], after_dependencies=after, cache=cache)
    async def read(book_id: int, response: Response) -> int:
        response.headers["cache-control"] = "max-age=60"
        return calls("read")

    @app.put("/books/{book_id}")
    async def write(book_id: int) -> None: ...

    both = CacheMiddleware(app, cache=cache, policy=Policy(ttl=60))
    assert [(await get(both, "/books/5")).json() for _ in range(2)] == [1, 1]
    await cache.tags("book:5").aflush()  # of which the middleware knows nothing
    assert [(await get(both, "/books/5")).json() for _ in range(2)] == [2, 2]
    await get(both, "/books/5", "PUT")
    assert [(await get(both, "/books/5")).json() for _ in range(2)] == [3, 3]


@pytest.mark.slow
def test_five_hundred_cold_clients_of_a_real_server_call_the_function_once(
    redis_url: str, tmp_path: Path, eventually: Eventually
) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    port = free_port()
    command = f"uvicorn shop:app --host 127.0.0.1 --port {port}"
    with running(command, cwd=tmp_path, env={"REDIS_URL": redis_url, "CACHE_TIMEOUT": "10"}) as server:
        eventually(lambda: server.says("startup complete"), timeout=30)
        answers = asyncio.run(rush(port, clients=500))
    assert {answer.partition(b"\r\n\r\n")[2] for answer in answers} == {b'{"call":1}'}


SHOP = """
import asyncio
from fastapi import FastAPI
from backburner import Cache, Settings, cached_response

app = FastAPI()
cache = Cache.from_settings(Settings())
calls = []


@app.get("/books")
@cached_response(ttl=60, cache=cache)
async def read() -> dict[str, int]:
    calls.append(1)
    await asyncio.sleep(0.5)
    return {"call": len(calls)}
"""


async def rush(port: int, clients: int) -> list[bytes]:
    opened = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(clients)))
    for _, writer in opened:
        writer.write(b"GET /books HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n")
    answers = await asyncio.gather(*(reader.read() for reader, _ in opened))
    for _, writer in opened:
        writer.close()
    return answers
