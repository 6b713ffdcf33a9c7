"""A server that is gone, or holds rubbish: responses are computed, nothing breaks, and `Cache-Status` says why."""

import asyncio

import pytest
import redis

from backburner import Cache
from backburner.events import Event, Undecodable
from backburner.http import CacheMiddleware, Policy
from backburner.redis.embedded import EmbeddedServer
from backburner.redis.url import ServerURL
from backburner.testing import FaultProxy
from tests.http.exchanges import Origin, ask

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("fault", ["refuse", "stall"])
async def test_without_its_server_the_cache_calls_the_application_once_for_all_who_ask_at_once(
    valkey: EmbeddedServer, origin: Origin, fault: str
) -> None:
    url = ServerURL.parse(valkey.url)
    with FaultProxy(url.host, url.port) as proxy:
        cache = Cache(proxy.url, timeout=0.1)
        app = CacheMiddleware(origin, cache=cache, policy=Policy(cache_status="bb"))
        getattr(proxy, fault)()
        replies = await asyncio.gather(*(ask(app) for _ in range(10)))
        assert {reply.status for reply in replies} == {200}
        assert any("detail=store-unavailable" in (reply["cache-status"] or "") for reply in replies)
        assert len(origin.calls) == 1
        assert (await ask(app, method="DELETE")).status == 200
        await cache.aclose()


async def test_rubbish_under_a_key_is_a_miss_with_an_event(redis_url: str, origin: Origin) -> None:
    cache = Cache(redis_url, l1=False)
    told: list[Event] = []
    cache.events.subscribe(told.append, Undecodable)
    app = CacheMiddleware(origin, cache=cache)
    await ask(app)
    with redis.Redis.from_url(redis_url) as client:
        (key,) = client.keys("*/a*")
        whole = client.get(key)
        for rubbish in (b"", b"\xbb", whole[: len(whole) // 2], whole[:-1] + b"?", b"J1\n", bytes(100)):
            client.set(key, rubbish)
            told.clear()
            calls = len(origin.calls)
            assert (await ask(app)).status == 200
            assert len(origin.calls) == calls + 1
            assert told
    await cache.aclose()


async def test_a_value_of_the_cache_is_no_response_and_a_response_no_value(redis_url: str, origin: Origin) -> None:
    cache = Cache(redis_url)
    app = CacheMiddleware(origin, cache=cache)
    await ask(app)
    with pytest.raises(ValueError, match="control characters"):
        await cache.aget("http:\x01http://shop.example/a?")
    await cache.aclose()
