"""A memo for each request: within it a key is read once; and it is gone afterwards, whoever still runs."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from httpx2 import ASGITransport, AsyncClient

from backburner import Cache, cached
from backburner.http import MemoMiddleware

Handler = Callable[..., Any]


@pytest.fixture
def cache() -> Cache:
    cache = Cache("memory://")
    cache.put("key", ["value"], ttl=60)
    return cache


@pytest.fixture
def reads(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys that were looked up in the cache itself."""
    seen: list[str] = []
    hit = cache._hit

    def noted(key: str) -> object:
        seen.append(key)
        return hit(key)

    monkeypatch.setattr(cache, "_hit", noted)
    return seen


def served(handler: Handler) -> FastAPI:
    app = FastAPI()
    app.add_middleware(MemoMiddleware)
    app.add_api_route("/", handler, response_model=None)
    return app


def get(handler: Handler) -> Any:
    with TestClient(served(handler)) as client:
        response = client.get("/")
        assert response.status_code == 200
        return response.json()


async def aget(app: FastAPI, times: int = 1) -> list[Any]:
    async with AsyncClient(transport=ASGITransport(app), base_url="http://shop") as client:
        responses = await asyncio.gather(*[client.get("/") for _ in range(times)])
    return [response.json() for response in responses]


def test_a_key_is_read_once_per_request_by_dependencies_in_threads_and_handlers_alike(
    cache: Cache, reads: list[str]
) -> None:
    memo = cache.memo()

    def dependency() -> Any:
        return memo.get("key")

    async def handler(found: Annotated[Any, Depends(dependency)]) -> bool:
        return found is await memo.aget("key") is await memo.aremember("key", 60, list)

    app = served(handler)
    with TestClient(app) as client:
        assert client.get("/").json() is True
        assert reads == ["key"]
        client.get("/")
        assert reads == ["key", "key"]


def test_requests_at_the_same_time_share_nothing(cache: Cache) -> None:
    memo = cache.memo()
    both: list[Any] = []
    arrived = asyncio.Event()

    async def handler() -> None:
        both.append(await memo.aget("key"))
        if len(both) == 2:
            arrived.set()
        await arrived.wait()
        assert await memo.aget("key") in both

    asyncio.run(aget(served(handler), times=2))
    assert both[0] == both[1]
    assert both[0] is not both[1]


def test_a_function_under_cached_gives_the_same_object_all_through_a_request(cache: Cache) -> None:
    @cached(key="list:{name}", cache=cache.memo())
    def load(name: str) -> list[str]:
        return [name]

    def handler() -> list[bool]:
        return [load("a") is load("a"), load("a") is load("b")]

    assert load("a") is not load("a")
    assert get(handler) == [True, False]


def test_the_memo_ends_before_background_tasks_begin(cache: Cache) -> None:
    memo = cache.memo()
    seen: list[Any] = []

    def in_background() -> None:
        seen.append(memo.get("key"))
        seen.append(memo.get("key"))

    def handler(tasks: BackgroundTasks) -> None:
        seen.append(memo.get("key"))
        tasks.add_task(in_background)

    get(handler)
    assert len({id(value) for value in seen}) == 3


def test_a_task_that_outlives_the_request_reads_for_itself(cache: Cache) -> None:
    memo = cache.memo()
    answered = asyncio.Event()
    tasks: list[asyncio.Task[Any]] = []

    async def later() -> Any:
        within = await memo.aget("key")
        await answered.wait()
        return within, await memo.aget("key")

    async def handler() -> None:
        tasks.append(asyncio.create_task(later()))
        await asyncio.sleep(0)

    async def main() -> None:
        await aget(served(handler))
        cache.put("key", "new", ttl=60)
        answered.set()
        assert await tasks[0] == (["value"], "new")

    asyncio.run(main())


def test_the_memo_lasts_while_a_response_is_streamed(cache: Cache) -> None:
    memo = cache.memo()

    async def handler() -> StreamingResponse:
        first = await memo.aget("key")

        async def body() -> Any:
            yield "["
            yield "true" if await memo.aget("key") is first else "false"
            yield "]"

        return StreamingResponse(body())

    assert get(handler) == [True]


def test_a_handler_that_fails_leaves_nothing_behind(cache: Cache) -> None:
    memo = cache.memo()
    seen: list[Any] = []

    async def handler() -> None:
        seen.append(await memo.aget("key"))
        raise LookupError

    client = TestClient(served(handler), raise_server_exceptions=False)
    assert [client.get("/").status_code for _ in range(2)] == [500, 500]
    assert seen[0] is not seen[1]


def test_websockets_and_start_up_have_no_memo(cache: Cache) -> None:
    memo = cache.memo()
    app = served(lambda: None)

    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_json(await memo.aget("key") is await memo.aget("key"))
        await websocket.close()

    with TestClient(app) as client, client.websocket_connect("/socket") as connection:
        assert connection.receive_json() is False
