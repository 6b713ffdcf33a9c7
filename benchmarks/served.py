"""The applications that are put under load: a shop's list of books, behind each contender, and bodies of any size.

`wrk.Served` runs one of them in a process of its own, and says by the environment which: BENCH_CONTENDER, BENCH_URL
(the server's), BENCH_COMPUTE (seconds that a page takes beyond its validation) and BENCH_FILL (of `SIZED`: how many
URLs are stored before the first request).

Each contender is set up as its documentation has it, with three exceptions in its favour: fastapi-cache2 gets a key
builder, since its own never finds again what depends on an object; pools are as large as the load; and no peer logs.
"""

import asyncio
import atexit
import logging
import os
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import date, datetime
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import cashews
import fastapi_cachex
import redis.asyncio
import redis_fastapi
from fastapi import Depends, FastAPI, Request, Response
from fastapi_cache import FastAPICache
from fastapi_cache.backends.inmemory import InMemoryBackend
from fastapi_cache.backends.redis import RedisBackend
from fastapi_cache.decorator import cache as fastapi_cache
from fastapi_cachex.backends import AsyncRedisCacheBackend, MemoryBackend
from harness import book
from hishel import AsyncRedisStorage, AsyncSqliteStorage
from hishel.asgi import ASGICacheMiddleware
from pydantic import BaseModel, TypeAdapter

from backburner import Cache, cached_response
from backburner.http import CacheMiddleware
from backburner.redis.url import ServerURL

HOST = "shop.test"
"""What requests call the server, so that one URL is one key on whatever port."""
BOOKS = 20
MOST_URLS = 200_000
CONNECTIONS = 1_000
TTL = 3600
FRESH = f"max-age={TTL}"

ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]
Endpoint = Callable[..., Awaitable[Any]]


class Book(BaseModel):
    """As `harness.book` has it, but for a shorter description: 20 make 11 KB."""

    id: int
    title: str
    author: str
    isbn: str
    price: float
    pages: int
    in_stock: bool
    sold_out_since: date | None
    subjects: list[str]
    published: date
    added_at: datetime
    description: str


ROWS = [{**book(number), "description": book(number)["description"][:232]} for number in range(BOOKS)]
PAGE = TypeAdapter(list[Book]).dump_json([Book(**row) for row in ROWS])
COMPUTE = float(os.environ.get("BENCH_COMPUTE", "0"))


async def database() -> AsyncIterator[list[dict[str, Any]]]:
    yield ROWS


async def reader(request: Request) -> str:
    return request.headers.get("user-agent", "")


def shop(decorate: Callable[[Endpoint], Endpoint] = lambda endpoint: endpoint, *dependencies: Any) -> FastAPI:
    """A route with two dependencies and a response model, and one that tells how often the first was called."""
    api = FastAPI(openapi_url=None)
    calls = 0

    async def read_books(
        response: Response,
        rows: Annotated[list[dict[str, Any]], Depends(database)],
        who: Annotated[str, Depends(reader)],  # noqa: ARG001  # costs what a dependency costs
        page: int = 1,  # noqa: ARG001  # tells URLs apart
    ) -> list[Book]:
        nonlocal calls
        calls += 1
        if COMPUTE:
            await asyncio.sleep(COMPUTE)
        response.headers["cache-control"] = FRESH
        return [Book(**row) for row in rows]

    async def tell_calls() -> int:
        return calls

    api.get("/books", response_model=list[Book], dependencies=list(dependencies))(decorate(read_books))
    api.get("/calls")(tell_calls)
    return api


async def constant(scope: Any, receive: Any, send: Any) -> None:
    """The same bytes, and nothing done for them: what no cache can surpass."""
    if scope["type"] == "lifespan":
        await told_to_live(receive, send)
        return
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(PAGE))]
    await send({"type": "http.response.start", "status": 200, "headers": [*headers, (b"cache-control", b"max-age=60")]})
    await send({"type": "http.response.body", "body": PAGE})


async def told_to_live(receive: Any, send: Any) -> None:
    """The lifespan protocol, for who has nothing to do then."""
    for event in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{event}.complete"})


def client(url: str) -> Any:
    return redis.asyncio.Redis.from_url(url, max_connections=CONNECTIONS)


def fastapi_cache2(backend: Any) -> FastAPI:
    def key(_: Any, namespace: str = "", *, request: Request, **__: Any) -> str:
        return f"{namespace}:{request.url.path}:{request.query_params}"

    FastAPICache.init(backend, prefix="fastapi-cache2")
    return shop(fastapi_cache(expire=TTL, key_builder=key))


def with_cashews(url: str, **options: Any) -> FastAPI:
    theirs = cashews.Cache()
    theirs.setup(url, **options)
    return shop(theirs(ttl=f"{TTL}s", key="books:{page}"))


def cachex(backend: Any, **options: Any) -> FastAPI:
    fastapi_cachex.BackendProxy.set(backend)
    return shop(fastapi_cachex.cache(ttl=TTL, **options))


def cachex_redis(url: str, **options: Any) -> FastAPI:
    place = ServerURL.parse(url)
    return cachex(
        AsyncRedisCacheBackend(host=place.host, port=place.port, max_connections=CONNECTIONS, socket_timeout=5.0),
        **options,
    )


def redis_sdk(url: str) -> FastAPI:
    settings = redis_fastapi.get_settings()
    settings.url, settings.max_connections = url, CONNECTIONS
    api = shop(lambda endpoint: endpoint, Depends(redis_fastapi.cache(ttl=TTL)))
    redis_fastapi.FastAPIRedis(api).lifespan().caching()
    return api


def hishel_sqlite(_: str) -> ASGIApp:
    directory = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return ASGICacheMiddleware(shop(), storage=AsyncSqliteStorage(database_path=directory / "responses.db"))


def added(url: str) -> FastAPI:
    """The usual way, which puts it behind the framework's error handler."""
    api = shop()
    api.add_middleware(CacheMiddleware, cache=ours(url, prefix="added:"))
    return api


def at_route(url: str, prefix: str, **options: Any) -> FastAPI:
    return shop(cached_response(ttl=TTL, cache=ours(url, prefix=prefix), **options))


def ours(url: str, **options: Any) -> Cache:
    return Cache(url, timeout=5, l1_items=MOST_URLS, l1_bytes="1GB", **options)


CONSTANT = "constant response, raw ASGI"
MEMORY = "Backburner, memory"
COPIES = "Backburner, copies in memory"
SERVER = "Backburner, server only"
IN_MEMORY = f"memory://?max_items={MOST_URLS}&max_bytes=1GB"

SHOPS: dict[str, Callable[[str], ASGIApp]] = {
    CONSTANT: lambda _: constant,
    "no cache": lambda _: shop(),
    MEMORY: lambda _: CacheMiddleware(shop(), cache=ours(IN_MEMORY)),
    COPIES: lambda url: CacheMiddleware(shop(), cache=ours(url, prefix="copies:")),
    "Backburner, copies, by add_middleware": added,
    SERVER: lambda url: CacheMiddleware(shop(), cache=ours(url, prefix="server:", l1=False)),
    "Backburner, copies, at the route": lambda url: at_route(url, "route:"),
    "Backburner, copies, after dependencies": lambda url: at_route(url, "after:", after_dependencies=True),
    "fastapi-cache2, memory": lambda _: fastapi_cache2(InMemoryBackend()),
    "fastapi-cache2, Redis": lambda url: fastapi_cache2(RedisBackend(client(url))),
    "cashews, memory": lambda _: with_cashews("mem://"),
    "cashews, Redis": lambda url: with_cashews(url, max_connections=CONNECTIONS),
    "fastapi-cachex, memory": lambda _: cachex(MemoryBackend()),
    "fastapi-cachex, Redis": cachex_redis,
    "fastapi-redis-sdk": redis_sdk,
    "hishel, SQLite": hishel_sqlite,
    "hishel, Redis": lambda url: ASGICacheMiddleware(shop(), storage=AsyncRedisStorage(client(url))),
}
COALESCING: dict[str, Callable[[str], ASGIApp]] = {
    "fastapi-cachex, Redis, coalesce=True": lambda url: cachex_redis(url, coalesce=True),
}
"""With what a peer offers against stampedes, where that is not the default."""


@lru_cache(maxsize=64)
def body(size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    headers = [
        (b"content-type", b"application/octet-stream"),
        (b"content-length", b"%d" % size),
        (b"cache-control", FRESH.encode()),
    ]
    return (
        {"type": "http.response.start", "status": 200, "headers": headers},
        {"type": "http.response.body", "body": random.Random(size).randbytes(size)},
    )


async def sized(scope: Any, receive: Any, send: Any) -> None:
    """``/bodies/SIZE/NUMBER`` is a body of so many bytes, which cannot be compressed."""
    if scope["type"] == "lifespan":
        await told_to_live(receive, send)
        return
    start, content = body(int(scope["path"].split("/")[2]))
    await send({**start, "headers": [*start["headers"]]})
    await send(content)


SIZED: dict[str, Callable[[str], ASGIApp]] = {
    "constant, sized": lambda _: sized,
    f"{MEMORY}, sized": lambda _: CacheMiddleware(sized, cache=ours(IN_MEMORY)),
    f"{COPIES}, sized": lambda url: CacheMiddleware(sized, cache=ours(url, prefix="sized-copies:")),
    f"{SERVER}, sized": lambda url: CacheMiddleware(sized, cache=ours(url, prefix="sized-server:", l1=False)),
}


def filled(app: ASGIApp, urls: int) -> ASGIApp:
    """The same, with so many URLs of 1 KB stored before it says that it started."""

    async def nothing(_: Any = None) -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    def asked(number: int) -> Awaitable[None]:
        path = f"/bodies/1000/{number}"
        scope = {"type": "http", "http_version": "1.1", "method": "GET", "scheme": "http", "path": path}
        rest = {"raw_path": path.encode(), "query_string": b"", "headers": [(b"host", HOST.encode())]}
        return app({**scope, **rest}, nothing, nothing)

    async def fill_and_serve(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for first in range(1, urls + 1, 500):
                await asyncio.gather(*(asked(number) for number in range(first, min(first + 500, urls + 1))))
        await app(scope, receive, send)

    return fill_and_serve


def application() -> ASGIApp:
    """What the environment names."""
    contender = os.environ["BENCH_CONTENDER"]
    if not contender.startswith("Backburner"):
        logging.disable()  # hishel writes a traceback for each of many who store at once
    app = {**SHOPS, **COALESCING, **SIZED}[contender](os.environ["BENCH_URL"])
    urls = int(os.environ.get("BENCH_FILL", "0"))
    return filled(app, urls) if urls else app
