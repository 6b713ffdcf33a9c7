"""TLS to a real server whose certificate an authority of our own has signed: what works through it, and what is said of
a certificate that is not trusted."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
import redis

from backburner import Cache
from backburner.errors import StoreUnavailable
from backburner.events import BreakerOpened
from backburner.redis.pipelined import PipelinedClient
from backburner.redis.tracking import Tracking
from tests.conftest import Eventually
from tests.faults.callers import CALLERS
from tests.faults.certificates import Certificates
from tests.processes import free_port
from tests.servers import answers, redis_server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module", params=["no", "yes"], ids=["anonymous clients", "client certificates"])
def url(
    request: pytest.FixtureRequest,
    certificates: Certificates,
    tmp_path_factory: pytest.TempPathFactory,
    eventually: Eventually,
) -> Iterator[str]:
    """Of a server that speaks nothing but TLS."""
    port = free_port()
    options = ["--port", "0", "--tls-port", str(port), "--tls-auth-clients", request.param]
    options += ["--tls-cert-file", certificates.certificate("server"), "--tls-key-file", certificates.key("server")]
    options += ["--tls-ca-cert-file", certificates.certificate("ca")]
    query = {"ssl_ca_certs": certificates.certificate("ca")}
    if request.param == "yes":
        query |= {"ssl_certfile": certificates.certificate("client"), "ssl_keyfile": certificates.key("client")}
    url = f"rediss://127.0.0.1:{port}/0?{urlencode(query, safe='/')}"
    with redis_server(tmp_path_factory.mktemp("tls"), *options), redis.Redis.from_url(url) as client:
        eventually(lambda: answers(client), timeout=20)
        yield url


def test_the_cache_works_blocking_and_asyncio_alike_and_keeps_copies(url: str, eventually: Eventually) -> None:
    cache = Cache(url, prefix="tls:", strict=True, timeout=2.0)
    assert cache.put("key", {"large": "x" * 1_000_000})
    assert cache.tags("books").remember("tagged", 60, lambda: [1, 2]) == [1, 2]

    async def main() -> None:
        assert await cache.aget("key") == {"large": "x" * 1_000_000}
        assert await cache.aremember("tagged", 60, lambda: 0) == [1, 2]
        await cache.tags("books").aflush()
        assert await cache.amissing("tagged")
        async with cache.lock("import"):
            assert not cache.lock("import").acquire(blocking=False)
        await cache.aclose()

    eventually(lambda: cache.stats().tracking == "tracking")
    asyncio.run(main())


@pytest.mark.parametrize("kind", CALLERS)
def test_many_callers_share_one_connection(url: str, kind: str) -> None:
    callers = CALLERS[kind](url, 5.0)
    callers.ask_together([("SET", f"key:{n}", f"{n}:" + "x" * 20_000) for n in range(300)])
    replies, _ = callers.ask_together([("GET", f"key:{n}") for n in range(300)])
    assert [reply.partition(b":")[0] for reply in replies] == [b"%d" % n for n in range(300)]
    with redis.Redis.from_url(url, decode_responses=True) as observer:
        assert len([client for client in observer.client_list() if client["name"] == "ours"]) == 1
    callers.end()


def test_a_lost_idle_connection_costs_blocking_callers_no_error(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backburner.redis.blocking._UNPROVEN", 0.0)
    callers = CALLERS["threads"](url, 2.0)
    callers.ask("PING")
    with redis.Redis.from_url(url) as other:
        other.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    assert callers.ask("ECHO", "here") == b"here"
    callers.end()


def test_push_messages_and_invalidations_come_through(url: str, eventually: Eventually) -> None:
    heard: list[bytes] = []
    tracking = Tracking(url, "tls:", "tls:changes", on_invalidated=lambda names: heard.extend(names or ()), timeout=2.0)
    tracking.start()
    eventually(lambda: tracking.trusted)
    assert tracking.mode == "tracking"
    pushed: list[Any] = []

    async def main() -> None:
        client = PipelinedClient(url, timeout=2.0, on_push=pushed.append)
        await client.execute_command("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "tls:")
        await client.execute_command("SET", "tls:key", 1)
        await client.execute_command("PING")
        await client.aclose()

    asyncio.run(main())
    eventually(lambda: heard == [b"tls:key"])
    assert pushed == [[b"invalidate", [b"tls:key"]]]
    tracking.stop()


@pytest.mark.parametrize("verb", ["get", "aget"])
def test_a_certificate_of_a_stranger_is_refused_and_the_message_says_so(
    url: str, verb: str, certificates: Certificates
) -> None:
    stranger = url.replace(certificates.certificate("ca"), certificates.certificate("stranger"))
    cache = Cache(stranger, prefix="tls:", strict=True, l1=False, timeout=2.0)
    seen: list[Any] = []
    cache.events.subscribe(seen.append, BreakerOpened)
    with pytest.raises(StoreUnavailable, match=r"(?i)certificate.verify.failed"):
        _call(cache, verb)
    assert len(seen) == 1


@pytest.mark.parametrize("url", ["yes"], indirect=True, ids=["client certificates"])
def test_a_server_that_wants_a_certificate_serves_nobody_without(url: str) -> None:
    bare, separator, _ = url.partition("&ssl_certfile")
    assert separator
    cache = Cache(bare, prefix="tls:", strict=True, l1=False, timeout=2.0)
    with pytest.raises(StoreUnavailable, match=r"(?i)certificate|alert|closed|reset|EOF"):
        cache.get("key")


def _call(cache: Cache, verb: str) -> Any:
    if not verb.startswith("a"):
        return getattr(cache, verb)("key")

    async def main() -> Any:
        call: Callable[..., Any] = getattr(cache, verb)
        try:
            return await call("key")
        finally:
            await cache.aclose()
            await asyncio.sleep(0.01)  # asyncio closes the socket of a failed handshake a moment later

    return asyncio.run(main())
