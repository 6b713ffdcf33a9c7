"""Cached responses on real ASGI servers, one body of tests for all: hits, streams, clients that leave."""

import asyncio
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import httpx2 as httpx
import pytest

from backburner.redis.embedded import EmbeddedServer
from tests.conftest import Eventually
from tests.processes import Program, free_port, running

pytestmark = pytest.mark.slow  # servers take a second to start

SERVERS = {
    "uvicorn": "uvicorn shop:application --host 127.0.0.1 --port {port} --log-level warning",
    "granian": "granian shop:application --interface asgi --host 127.0.0.1 --port {port} --log-level warning",
}
SHOP = """
import asyncio

from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse

from backburner import Cache, Settings, cached_response
from backburner.http import CacheMiddleware, Policy

cache = Cache.from_settings(Settings())
app = FastAPI()
calls: list[str] = []
ended: list[str] = []
gates: dict[str, asyncio.Event] = {}


def gate(name: str) -> asyncio.Event:
    return gates.setdefault(name, asyncio.Event())


@app.get("/books/{book}")
async def read_book(book: str, response: Response) -> str:
    calls.append(book)
    response.headers["Cache-Control"] = "max-age=60"
    return f"{book}, call {calls.count(book)}"


@app.put("/books/{book}")
async def change_book(book: str) -> None:
    pass


@app.get("/shelves/{shelf}")
@cached_response(ttl=60, tags=["shelf:{shelf}"], cache=cache, cache_status="route")
def read_shelf(shelf: str) -> str:
    calls.append(shelf)
    return f"{shelf}, call {calls.count(shelf)}"


@app.post("/shelves/{shelf}/flush")
async def flush_shelf(shelf: str) -> None:
    await cache.tags(f"shelf:{shelf}").aflush()


@app.get("/slow/{name}")
async def slowly(name: str, response: Response) -> str:
    calls.append(name)
    await gate(name).wait()
    response.headers["Cache-Control"] = "max-age=60"
    return f"{name}, call {calls.count(name)}"


@app.get("/streams/{name}")
async def stream(name: str, kind: str, control: str) -> StreamingResponse:
    async def pieces():
        try:
            yield b"data: first\\n\\n"
            await gate(name).wait()
            yield b"data: second\\n\\n"
        finally:
            ended.append(name)

    calls.append(name)
    return StreamingResponse(pieces(), media_type=kind, headers={"Cache-Control": control})


@app.get("/large")
async def large(response: Response) -> Response:
    calls.append("large")
    return Response(bytes(3_000_000), headers={"Cache-Control": "max-age=60"})


@app.post("/gates/{name}")
async def open_gate(name: str) -> None:
    gate(name).set()


@app.get("/state/{name}")
async def state(name: str) -> dict[str, int]:
    return {"calls": calls.count(name), "ended": ended.count(name)}


application = CacheMiddleware(app, cache=cache, policy=Policy(cache_status="front"))
"""
_names = map("n{}".format, count())


@pytest.fixture(scope="module", params=SERVERS)
def shop(
    request: pytest.FixtureRequest,
    valkey: EmbeddedServer,
    tmp_path_factory: pytest.TempPathFactory,
    eventually: Eventually,
) -> Iterator[httpx.Client]:
    folder: Path = tmp_path_factory.mktemp(request.param)
    (folder / "shop.py").write_text(SHOP)
    port = free_port()
    command = SERVERS[request.param].format(port=port)
    env = {"REDIS_URL": valkey.url, "CACHE_PREFIX": f"{request.param}:"}
    with running(command, cwd=folder, env=env) as server:
        eventually(lambda: _listens(server, port), timeout=30)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            yield client


def _listens(server: Program, port: int) -> bool:
    server.says("")  # fails if it has ended
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def name() -> str:
    """One of its own for each test, since they share a server."""
    return next(_names)


def _state(shop: httpx.Client, name: str) -> dict[str, int]:
    return shop.get(f"/state/{name}").json()  # type: ignore[no-any-return]


@pytest.mark.parametrize(("path", "signed"), [("/books", "front"), ("/shelves", "route")])
def test_a_hit_does_not_reach_the_application(shop: httpx.Client, name: str, path: str, signed: str) -> None:
    first, second = shop.get(f"{path}/{name}"), shop.get(f"{path}/{name}")
    assert first.json() == second.json() == f"{name}, call 1"
    assert first.headers["etag"] == second.headers["etag"]
    assert f"{signed}; fwd=uri-miss; fwd-status=200; stored" in first.headers["cache-status"]
    assert f"{signed}; hit; ttl=" in second.headers["cache-status"]
    assert int(second.headers["age"]) < 60
    assert _state(shop, name)["calls"] == 1


def test_conditions_ranges_and_head_are_answered_from_what_is_stored(shop: httpx.Client, name: str) -> None:
    whole = shop.get(f"/books/{name}")
    same = shop.get(f"/books/{name}", headers={"If-None-Match": whole.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")
    assert same.headers["etag"] == whole.headers["etag"]
    part = shop.get(f"/books/{name}", headers={"Range": "bytes=1-2"})
    assert (part.status_code, part.content) == (206, whole.content[1:3])
    head = shop.head(f"/books/{name}")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.content))
    assert _state(shop, name)["calls"] == 1


def test_changes_and_flushes_empty_it(shop: httpx.Client, name: str) -> None:
    assert [shop.get(f"/books/{name}").json() for _ in range(2)] == [f"{name}, call 1"] * 2
    assert shop.put(f"/books/{name}").status_code == 200
    assert shop.get(f"/books/{name}").json() == f"{name}, call 2"
    assert [shop.get(f"/shelves/{name}s").json() for _ in range(2)] == [f"{name}s, call 1"] * 2
    shop.post(f"/shelves/{name}s/flush")
    assert shop.get(f"/shelves/{name}s").json() == f"{name}s, call 2"


@pytest.mark.parametrize("kind", ["text/plain", "text/event-stream"])
@pytest.mark.parametrize("control", ["no-store", "max-age=60"])
def test_a_stream_comes_piece_by_piece(shop: httpx.Client, name: str, kind: str, control: str) -> None:
    # That the second piece has to be asked for proves that the first one did not wait for it.
    url = f"/streams/{name}?kind={kind}&control={control}"
    with shop.stream("GET", url) as response:
        assert response.headers["content-type"].startswith(kind)
        pieces = response.iter_raw()
        assert next(pieces) == b"data: first\n\n"
        assert _state(shop, name) == {"calls": 1, "ended": 0}
        shop.post(f"/gates/{name}")
        assert b"".join(pieces) == b"data: second\n\n"
    again = shop.get(url)
    assert again.text == "data: first\n\ndata: second\n\n"
    assert ("hit" in again.headers["cache-status"]) == (control != "no-store")  # stored on its way, where it may be


def test_a_stream_that_nobody_reads_any_more_ends(shop: httpx.Client, name: str, eventually: Eventually) -> None:
    with shop.stream(
        "GET", f"/streams/{name}", params={"kind": "text/event-stream", "control": "no-store"}
    ) as response:
        assert next(response.iter_raw()) == b"data: first\n\n"
    eventually(lambda: _state(shop, name)["ended"])


def test_one_call_answers_all_and_a_leader_who_leaves_harms_nobody(
    shop: httpx.Client, name: str, eventually: Eventually
) -> None:
    asked = f"GET /slow/{name} HTTP/1.1\r\nHost: {shop.base_url.netloc.decode()}\r\nConnection: close\r\n\r\n".encode()
    with ThreadPoolExecutor(20) as pool:
        with socket.create_connection((shop.base_url.host, shop.base_url.port)) as leader:
            leader.sendall(asked)
            eventually(lambda: _state(shop, name)["calls"])
            others = [pool.submit(shop.get, f"/slow/{name}") for _ in range(20)]
        shop.post(f"/gates/{name}")
        assert {other.result().json() for other in others} == {f"{name}, call 1"}
    assert "hit" in shop.get(f"/slow/{name}").headers["cache-status"]


def test_what_is_too_large_to_keep_passes_through(shop: httpx.Client) -> None:
    before = _state(shop, "large")["calls"]
    assert [len(shop.get("/large").content) for _ in range(2)] == [3_000_000] * 2
    assert _state(shop, "large")["calls"] == before + 2


def test_many_at_once_get_what_they_asked_for(shop: httpx.Client, name: str) -> None:
    async def rush() -> list[str]:
        async with httpx.AsyncClient(base_url=shop.base_url, timeout=20) as client:
            paths = [f"/books/{name}-{number % 10}" for number in range(200)]
            return [reply.json() for reply in await asyncio.gather(*map(client.get, paths))]

    assert asyncio.run(rush()) == [f"{name}-{number % 10}, call 1" for number in range(200)]
