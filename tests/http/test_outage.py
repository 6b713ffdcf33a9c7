"""A server that is gone, or holds rubbish: responses are computed, nothing breaks, and `Cache-Status` says why."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import redis
from fastapi import FastAPI, Request, Response
from starlette.applications import Starlette
from starlette.routing import Route

from backburner import Cache, cached_response
from backburner.cache.entry import Entry
from backburner.events import BreakerOpened, Degraded, Event, Miss, Undecodable
from backburner.http import CacheMiddleware, Policy
from backburner.redis.embedded import EmbeddedServer
from backburner.redis.url import ServerURL
from backburner.testing import FaultProxy
from tests.http.exchanges import Origin, ask

pytestmark = pytest.mark.anyio


def _behind_the_middleware(cache: Cache, origin: Any) -> Any:
    return CacheMiddleware(origin, cache=cache, policy=Policy(cache_status="bb"))


def _at_a_route(cache: Cache, origin: Origin, **options: Any) -> Any:
    @cached_response(cache=cache, cache_status="bb", **options)
    async def endpoint(request: Request) -> Response:
        origin.calls.append(request.scope)
        text = f"{request.url.path} {len(origin.calls)}"
        return Response(text, headers=origin.headers)

    # In any case for changes, which are none of the cache's business there.
    async def change(request: Request) -> Response:
        return Response("changed")

    return Starlette(routes=[Route("/{rest:path}", endpoint), Route("/{rest:path}", change, methods=["DELETE"])])


def _after_dependencies(cache: Cache, origin: Origin) -> Any:
    app = FastAPI()

    @app.get("/a")
    @cached_response(cache=cache, cache_status="bb", after_dependencies=True)
    async def endpoint(request: Request) -> Response:
        origin.calls.append(request.scope)
        return Response(f"{request.url.path} {len(origin.calls)}", headers=origin.headers)

    @app.delete("/a")
    async def change() -> str:
        return "changed"

    return app


DOORS = [_behind_the_middleware, _at_a_route, _after_dependencies]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("fault", ["refuse", "stall", "slow", "cut"])
async def test_without_its_server_the_cache_calls_the_application_once_for_all_who_ask_at_once_and_says_why(
    valkey: EmbeddedServer, origin: Origin, fault: str, door: Callable[..., Any]
) -> None:
    url = ServerURL.parse(valkey.url)
    with FaultProxy(url.host, url.port) as proxy:
        cache = Cache(proxy.url, timeout=0.1)
        app = door(cache, origin)
        match fault:
            case "slow":
                proxy.delay(1)
            case "cut":
                proxy.cut(2)
            case mode:
                getattr(proxy, mode)()
        replies = await asyncio.gather(*(ask(app) for _ in range(10)))
        assert {reply.status for reply in replies} == {200}
        assert len(origin.calls) == 1
        assert {str(reply["cache-status"]).partition("detail=")[2] for reply in replies} == {"store-unavailable"}
        again = await ask(app)
        assert str(again["cache-status"]).endswith("; detail=store-unavailable")
        assert (await ask(app, method="DELETE")).status == 200
        await cache.aclose()


async def test_a_server_that_is_gone_is_asked_for_a_response_once_and_for_the_turn_to_compute_it_once(
    valkey: EmbeddedServer, origin: Origin
) -> None:
    url = ServerURL.parse(valkey.url)
    told: list[Event] = []

    async def app(*request: Any) -> None:
        assert [type(event) for event in told] == [BreakerOpened, Degraded, Miss, Degraded]
        await origin(*request)

    with FaultProxy(url.host, url.port) as proxy:
        cache = Cache(proxy.url, l1=False)
        cache.events.subscribe(told.append)
        proxy.refuse()
        await ask(_behind_the_middleware(cache, app))
        await cache.aclose()
    assert len(origin.calls) == 1


@pytest.mark.parametrize("door", DOORS)
async def test_rubbish_under_a_key_is_a_miss_with_an_event_and_a_word_about_it(
    redis_url: str, origin: Origin, door: Callable[..., Any]
) -> None:
    cache = Cache(redis_url, l1=False)
    told: list[Event] = []
    cache.events.subscribe(told.append, Undecodable)
    app = door(cache, origin)
    assert (await ask(app))["cache-status"] == "bb; fwd=uri-miss; fwd-status=200; stored"
    with redis.Redis.from_url(redis_url) as client:
        (key,) = client.keys("*/a*")
        whole = client.get(key)
        for rubbish in (b"\xbb", whole[: len(whole) // 2], whole[:-1] + b"?", b"J1\n", bytes(100)):
            client.set(key, rubbish)
            told.clear()
            calls = len(origin.calls)
            reply = await ask(app)
            assert reply.status == 200
            assert len(origin.calls) == calls + 1
            assert told
            assert reply["cache-status"] == "bb; fwd=uri-miss; fwd-status=200; stored; detail=unreadable"
            assert (await ask(app))["cache-status"] == "bb; hit; ttl=60"
        entry = Entry.unpack(whole, client_key := "http:\x01http://shop.example/a?" + key.rpartition(b"?")[2].decode())
        client.set(key, replace(entry, payload=b"no response").pack(client_key))  # whole, but of something else
        assert str((await ask(app))["cache-status"]).endswith("detail=unreadable")
    await cache.aclose()


async def test_a_value_of_the_cache_is_no_response_and_a_response_no_value(redis_url: str, origin: Origin) -> None:
    cache = Cache(redis_url)
    app = CacheMiddleware(origin, cache=cache)
    await ask(app)
    with pytest.raises(ValueError, match="control characters"):
        await cache.aget("http:\x01http://shop.example/a?")
    await cache.aclose()
