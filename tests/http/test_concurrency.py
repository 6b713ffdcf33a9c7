"""Several requests at once, and responses that come in pieces: one call for all who can share it, nothing held back
from those who cannot, and nobody harmed by another one's leaving."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import anyio
import pytest
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import StreamingResponse

from backburner import Cache
from backburner.http import CacheMiddleware, Policy
from tests.http.conftest import Clock
from tests.http.exchanges import Message, Origin, ask, respond

pytestmark = pytest.mark.anyio
Through = Callable[..., CacheMiddleware]


class Client:
    """A client whose messages a test looks at one by one."""

    def __init__(self, app: Any, target: str = "/a", **headers: str) -> None:
        self.inbox: asyncio.Queue[Message] = asyncio.Queue()
        self.inbox.put_nowait({"type": "http.request", "body": b"", "more_body": False})
        self.got: asyncio.Queue[Message] = asyncio.Queue()
        self.ready = asyncio.Event()
        self.ready.set()
        scope = {"type": "http", "method": "GET", "scheme": "http", "path": target, "query_string": b""}
        pairs = [(b"host", b"shop.example"), *((name.encode(), value.encode()) for name, value in headers.items())]
        self.task = asyncio.create_task(app({**scope, "headers": pairs}, self.inbox.get, self._send))

    async def _send(self, message: Message) -> None:
        await self.ready.wait()
        self.got.put_nowait(message)


async def test_the_application_is_called_once_for_all_who_ask_at_once(through: Through, origin: Origin) -> None:
    app = through()
    origin.gate = asyncio.Event()
    asking = [asyncio.create_task(ask(app)) for _ in range(100)]
    await origin.called(1)
    origin.gate.set()
    replies = await asyncio.gather(*asking)
    assert {reply.text for reply in replies} == {"/a 1"}
    assert {reply["cache-status"] for reply in replies} == {
        *("bb; fwd=uri-miss; fwd-status=200; stored", "bb; fwd=uri-miss; collapsed")
    }


async def test_two_processes_call_the_application_once(redis_url: str, origin: Origin) -> None:
    caches = [Cache(redis_url) for _ in range(2)]  # flights and copies of their own, as in two processes
    origin.gate = asyncio.Event()
    asking = [asyncio.create_task(ask(CacheMiddleware(origin, cache=cache))) for cache in caches for _ in range(10)]
    await origin.called(1)
    await asyncio.sleep(0.02)
    origin.gate.set()
    assert {(await reply).text for reply in asking} == {"/a 1"}
    for cache in caches:
        await cache.aclose()


@pytest.mark.parametrize("how", ["tag", "url", "write"])
@pytest.mark.parametrize("variants", [False, True])
async def test_who_asks_after_another_process_emptied_the_cache_gets_nothing_of_before(
    redis_url: str, origin: Origin, how: str, variants: bool
) -> None:
    here, there = (Cache(redis_url, l1=False) for _ in range(2))  # as in two processes
    app = CacheMiddleware(origin, cache=here, policy=Policy(tags=["books"]))
    elsewhere = CacheMiddleware(Origin(), cache=there)
    if variants:
        origin.headers["vary"] = "accept"
        await ask(app)
        await here.tags("books").aflush()
        origin.calls.clear()
    origin.gate = asyncio.Event()
    before = asyncio.create_task(ask(app))
    await origin.called(1)
    if how == "tag":
        await there.tags("books").aflush()
    elif how == "url":
        await elsewhere.responses.apurge(url="http://shop.example/a")
    else:
        await ask(elsewhere, method="PUT")
    after = asyncio.create_task(ask(app))
    await asyncio.sleep(0.02)  # it could wait now for the response of before
    origin.gate.set()
    assert (await before).text == "/a 1"
    assert (await after).text == "/a 2"
    for cache in (here, there):
        await cache.aclose()


async def test_a_response_that_another_process_finds_to_vary_is_gone_when_that_one_empties_the_cache(
    redis_url: str, origin: Origin
) -> None:
    here, there = (Cache(redis_url, l1=False) for _ in range(2))  # as in two processes
    app, elsewhere = (CacheMiddleware(origin, cache=cache) for cache in (here, there))
    origin.headers["vary"] = "accept-language"
    origin.gate = asyncio.Event()
    first = asyncio.create_task(ask(elsewhere, accept_language="en"))
    await origin.called(1)
    second = asyncio.create_task(ask(app, accept_language="de"))
    while not here._flights._under_way:  # noqa: ASYNC110  # nobody says when it has looked
        await asyncio.sleep(0.001)
    origin.gate.set()
    assert {(await first).text, (await second).text} == {"/a 1", "/a 2"}
    assert not here._flights._under_way
    await there.aflush()
    assert (await ask(app, accept_language="de")).text == "/a 3"
    for cache in (here, there):
        await cache.aclose()


async def test_who_asks_first_may_leave_without_harming_those_who_wait(through: Through, origin: Origin) -> None:
    app = through()
    origin.gate = asyncio.Event()
    first = asyncio.create_task(ask(app))
    await origin.called(1)
    second, third = (asyncio.create_task(ask(app)) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    third.cancel()
    await asyncio.wait([first, third])
    origin.gate.set()
    assert (await second).text == "/a 1"
    assert (await ask(app)).text == "/a 1"


async def test_what_turns_out_to_be_for_one_client_makes_the_others_ask_at_the_same_time(
    through: Through, origin: Origin
) -> None:
    app = through()
    origin.headers = {"cache-control": "private"}
    origin.gate = asyncio.Event()
    asking = [asyncio.create_task(ask(app)) for _ in range(10)]
    await origin.called(1)
    gate, origin.gate = origin.gate, asyncio.Event()
    gate.set()
    await origin.called(10)  # at once: none of them has been answered
    origin.gate.set()
    assert len({reply.text for reply in await asyncio.gather(*asking)}) == 10


async def test_an_error_of_the_application_reaches_all_and_the_next_asks_again(
    through: Through, origin: Origin
) -> None:
    app = through()

    async def fail() -> None:
        await asyncio.sleep(0.01)
        raise LookupError("no such book")

    origin.answer = lambda scope: fail()
    outcomes = await asyncio.gather(*(ask(app) for _ in range(5)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [LookupError] * 5
    assert len(origin.calls) == 1
    origin.answer = None
    assert (await ask(app)).text == "/a 2"


@pytest.mark.parametrize(("status", "raises"), [(500, False), (500, True), (429, False), (403, False)])
async def test_after_an_error_the_application_is_called_once_for_all_who_ask_at_once(
    through: Through, origin: Origin, status: int, raises: bool
) -> None:
    async def fail(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, status, {}, b"sorry")
        if raises:  # as frameworks do, for the server's log
            raise OSError("no database")

    app = through()
    app._app = fail
    with pytest.raises(OSError, match="no database") if raises else nullcontext():
        await ask(app)
    app._app = origin
    origin.gate = asyncio.Event()
    asking = [asyncio.create_task(ask(app)) for _ in range(5)]
    await origin.called(1)
    origin.gate.set()
    assert {reply.text for reply in await asyncio.gather(*asking)} == {"/a 1"}


async def test_those_who_wait_get_the_variant_that_is_theirs(through: Through, origin: Origin) -> None:
    app = through()
    origin.answer = lambda scope: by_language(scope, origin)
    asking = [asyncio.create_task(ask(app, accept_language=lang)) for lang in ("en", "de", "en", "de")]
    assert [(await reply).text for reply in asking] == ["en", "de", "en", "de"]


def by_language(scope: Message, origin: Origin) -> tuple[int, dict[str, str], bytes]:
    language = dict(scope["headers"])[b"accept-language"]
    return 200, {"cache-control": "max-age=60", "vary": "accept-language"}, language


@pytest.mark.parametrize("shown", [{"authorization": "Bearer alice"}, {"cookie": "session=alice"}])
async def test_who_shows_credentials_does_not_wait_for_others(
    through: Through, origin: Origin, shown: dict[str, str]
) -> None:
    app = through()
    origin.gate = asyncio.Event()
    asking = [asyncio.create_task(ask(app))]
    await origin.called(1)
    asking += [asyncio.create_task(ask(app, **headers)) for headers in (shown, {}, shown)]
    await origin.called(3)
    origin.gate.set()
    replies = [(await reply).text for reply in asking]
    assert len(set(replies)) == 3
    assert replies[0] == replies[2]


async def test_who_shows_credentials_and_leaves_keeps_nobody_waiting(through: Through, origin: Origin) -> None:
    app = through()
    origin.headers["cache-control"] = "public, max-age=60"
    origin.gate = asyncio.Event()
    with anyio.CancelScope() as scope:  # as some middleware has around a request: it cancels again with each await
        async with anyio.create_task_group() as group:
            group.start_soon(partial(ask, app, cookie="a=b"))
            await origin.called(1)
            scope.cancel()
    origin.gate.set()
    async with asyncio.timeout(5):
        assert (await ask(app)).text == "/a 2"


@pytest.mark.parametrize("control", ["max-age=60", "public, max-age=60"])
async def test_who_comes_after_one_with_credentials_shares_their_response_only_if_it_is_for_all(
    through: Through, origin: Origin, control: str
) -> None:
    app = through()
    origin.headers = {"cache-control": control}
    origin.gate = asyncio.Event()
    alice = asyncio.create_task(ask(app, cookie="session=alice"))
    await origin.called(1)
    others = [asyncio.create_task(ask(app)) for _ in range(3)]
    await asyncio.sleep(0.01)
    origin.gate.set()
    assert (await alice).text == "/a 1"
    assert {(await other).text for other in others} == {"/a 1" if "public" in control else "/a 2"}


async def streamed(app: CacheMiddleware, pieces: "asyncio.Queue[bytes | None]", **headers: str) -> None:
    """Make the application answer in pieces, until there is a ``None``."""

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": pairs})
        while (piece := await pieces.get()) is not None:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})

    app._app = stream


@pytest.mark.parametrize("control", ["no-store", "max-age=60"])
async def test_a_stream_reaches_its_client_piece_by_piece(through: Through, control: str) -> None:
    app = through()
    pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
    await streamed(app, pieces, cache_control=control)
    client = Client(app)
    for piece in (b"one", b"two"):
        pieces.put_nowait(piece)
        while (message := await client.got.get()).get("body") != piece:
            assert message["type"] == "http.response.start"
    pieces.put_nowait(None)
    await client.task
    assert client.got.get_nowait().get("more_body", False) is False
    if control != "no-store":
        assert (await ask(app)).body == b"onetwo"


async def test_of_a_stream_of_events_that_says_nothing_of_storing_each_client_gets_its_own(through: Through) -> None:
    app, end = through(ttl=60), asyncio.Event()

    async def events(scope: Any, receive: Any, send: Any) -> None:
        kind = (b"content-type", b"Text/Event-Stream; charset=utf-8")
        await send({"type": "http.response.start", "status": 200, "headers": [kind]})
        await send({"type": "http.response.body", "body": b"data: 1", "more_body": True})
        await end.wait()
        await send({"type": "http.response.body"})

    app._app = events
    clients = [Client(app) for _ in range(2)]
    for client in clients:
        assert [(await client.got.get()).get("body") for _ in range(2)] == [None, b"data: 1"]
    end.set()
    for client in clients:
        await client.task


async def test_a_stream_that_may_be_stored_is_stored_also_when_its_client_leaves(through: Through) -> None:
    app = through()
    pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
    await streamed(app, pieces, cache_control="max-age=60")
    client = Client(app)
    pieces.put_nowait(b"one")
    await client.got.get()
    second = asyncio.create_task(ask(app))
    await asyncio.sleep(0.01)
    client.task.cancel()
    await asyncio.wait([client.task])
    pieces.put_nowait(b"two")
    pieces.put_nowait(None)
    assert (await second).body == b"onetwo"


async def test_a_stream_for_one_client_ends_with_that_client(through: Through) -> None:
    app = through()
    ended = asyncio.Event()

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"no-store")]})
        try:
            assert (await receive())["type"] == "http.disconnect"
        finally:
            ended.set()

    app._app = stream
    client = Client(app)
    await client.got.get()
    client.inbox.put_nowait({"type": "http.disconnect"})
    await asyncio.wait_for(ended.wait(), 5)
    await client.task


async def test_a_stream_for_one_client_keeps_no_other_process_waiting(redis_url: str) -> None:
    caches = [Cache(redis_url) for _ in range(2)]
    gate = asyncio.Event()

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await gate.wait()
        await send({"type": "http.response.body"})

    clients = []
    for cache in caches:
        clients.append(Client(CacheMiddleware(stream, cache=cache)))
        while (await asyncio.wait_for(clients[-1].got.get(), 5)).get("body") != b"first":
            pass
    gate.set()
    for client, cache in zip(clients, caches, strict=True):
        await client.task
        await cache.aclose()


async def test_an_application_is_told_when_the_only_client_of_its_stream_has_gone(through: Through) -> None:
    app = through()
    told: asyncio.Queue[Exception] = asyncio.Queue()

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"more", "more_body": True})
        except OSError as error:
            told.put_nowait(error)
            raise

    app._app = stream
    client = Client(app)
    await client.got.get()
    client.ready.clear()
    await asyncio.sleep(0)
    client.task.cancel()
    assert "has gone" in str(await asyncio.wait_for(told.get(), 5))


async def test_an_application_that_streams_to_one_client_goes_no_faster_than_that_client_takes_it(
    through: Through,
) -> None:
    app = through(max_body_bytes=1000)
    sent = 0

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"max-age=60")]})
        for _ in range(100):
            await send({"type": "http.response.body", "body": b"x" * 100, "more_body": True})
            sent += 1
        await send({"type": "http.response.body"})

    app._app = stream
    client = Client(app)
    client.ready.clear()
    await asyncio.sleep(0.02)
    assert sent <= 11  # what may be kept, and no more
    client.ready.set()
    await client.task
    body = b"".join(client.got.get_nowait().get("body", b"") for _ in range(client.got.qsize()))
    assert body == b"x" * 10_000


async def test_what_is_too_large_to_keep_is_called_for_by_each(through: Through, origin: Origin) -> None:
    app = through(max_body_bytes=3)
    assert [(await ask(app)).text for _ in range(2)] == ["/a 1", "/a 2"]


@pytest.mark.parametrize("shown", [{}, {"cookie": "session=alice"}])
async def test_what_the_application_does_after_answering_belongs_to_the_request_and_delays_no_answer(
    through: Through, shown: dict[str, str]
) -> None:
    app = through()
    done = []
    got: asyncio.Queue[Message] = asyncio.Queue()

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, 200, {"cache-control": "public, max-age=60", "content-length": "8"}, b"answered")
        async with asyncio.timeout(2):
            while got.qsize() < 2:  # noqa: ASYNC110  # a queue has no event for that
                await asyncio.sleep(0.001)
        done.append(scope["path"])
        raise RuntimeError("the mail server is gone")

    app._app = answer
    client = Client(app, **shown)
    client.got = got
    with pytest.raises(RuntimeError, match="mail server"):
        await client.task
    assert done == ["/a"]
    assert got.qsize() == 2
    assert (await ask(app)).body == b"answered"


@pytest.mark.parametrize("before", [[], ["half"]])
@pytest.mark.parametrize("vary", [{}, {"vary": "accept"}])
@pytest.mark.parametrize("shown", [{}, {"cookie": "session=alice"}])
async def test_a_stream_that_breaks_off_and_is_ended_by_a_middleware_as_if_it_were_whole_is_not_kept(
    through: Through, shown: dict[str, str], vary: dict[str, str], before: list[str]
) -> None:
    whole = False

    async def pieces() -> AsyncIterator[str]:
        for part in before:
            yield part
        if not whole:
            raise OSError("the database is gone")
        yield "whole"

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        headers = {"cache-control": "public, max-age=60", **vary}
        await StreamingResponse(pieces(), headers=headers)(scope, receive, send)

    async def dispatch(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    app = through()
    app._app = BaseHTTPMiddleware(answer, dispatch)
    with pytest.raises(OSError, match="database"):
        await ask(app, **shown)
    whole = True
    assert (await ask(app, **shown)).text.endswith("whole")
    whole = False
    assert (await ask(app, **shown)).text.endswith("whole")  # what is whole is kept


@pytest.mark.parametrize("shown", [{}, {"cookie": "session=alice"}])
@pytest.mark.parametrize("says_so", [False, True])
async def test_a_stale_response_stands_in_where_the_application_raises_whoever_asks(
    through: Through, origin: Origin, clock: Clock, says_so: bool, shown: dict[str, str]
) -> None:
    origin.headers = {"cache-control": "public, max-age=60, stale-if-error=30"}
    app = through()
    await ask(app)
    clock.pass_(70)

    async def fail(scope: Any, receive: Any, send: Any) -> None:
        if says_so:  # as frameworks do: first the answer, then the error for the server's log
            await respond(send, 500, {}, b"sorry")
        raise OSError("no database")

    app._app = fail
    client = Client(app, **shown)
    await asyncio.wait([client.task])
    assert isinstance(client.task.exception(), OSError if says_so else type(None))
    start, body = client.got.get_nowait(), client.got.get_nowait()
    assert (start["status"], body["body"]) == (200, b"/a 1")


async def test_a_change_empties_what_it_names_also_if_its_client_leaves_meanwhile(
    redis_url: str, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(redis_url, timeout=5)
    app = CacheMiddleware(origin, cache=cache)
    origin.headers = {"cache-control": "max-age=60", "cache-groups": '"books"', "cache-group-invalidation": '"books"'}
    assert (await ask(app)).text == (await ask(app)).text == "/a 1"
    engine = cache._aengine()
    forget = engine.forget
    with anyio.CancelScope() as scope:  # it cancels again with each await

        async def leave(keys: Any) -> int:
            scope.cancel()
            return await forget(keys)

        monkeypatch.setattr(engine, "forget", leave)
        await ask(app, "/b", "POST")
    assert scope.cancelled_caught
    monkeypatch.undo()
    assert (await ask(app)).text == "/a 3"
    await cache.aclose()


async def test_those_with_credentials_who_ask_at_once_make_nobody_else_ask(through: Through, origin: Origin) -> None:
    app = through()
    origin.headers = {"cache-control": "public, max-age=60"}
    origin.gate = asyncio.Event()
    asking = [asyncio.create_task(ask(app, cookie="session=alice")) for _ in range(2)]
    await origin.called(2)
    origin.gate.set()
    etags = {(await reply)["etag"] for reply in asking}
    assert len(etags) == 2
    await app.responses.apurge(url="http://shop.example/a")
    assert (await ask(app, cookie="session=alice"))["cache-status"] == "bb; fwd=uri-miss; fwd-status=200; stored"


async def test_responses_with_trailers_pass_through(through: Through) -> None:
    app = through()
    calls = []

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        calls.append(scope)
        headers = [(b"cache-control", b"max-age=60")]
        await send({"type": "http.response.start", "status": 200, "headers": headers, "trailers": True})
        await send({"type": "http.response.body", "body": b"body"})
        await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"1")]})

    app._app = answer
    for number in (1, 2):
        client = Client(app)
        await client.task
        kinds = [client.got.get_nowait()["type"] for _ in range(client.got.qsize())]
        assert kinds == ["http.response.start", "http.response.body", "http.response.trailers"]
        assert len(calls) == number


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
async def test_what_is_not_http_goes_to_the_application(through: Through, kind: str) -> None:
    app = through()
    seen = []

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, receive, send))

    app._app = answer
    given = ({"type": kind, "path": "/a"}, object(), object())
    await app(*given)
    assert seen == [given]


async def test_a_layer_further_out_that_changes_messages_changes_nobody_elses(through: Through, origin: Origin) -> None:
    app = through()

    async def marked(scope: Any, receive: Any, send: Any) -> None:
        async def mark(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((b"x-user", scope["query_string"]))
            await send(message)

        await app(scope, receive, mark)

    assert [(await ask(marked))["x-user"] for _ in range(3)] == [""] * 3
    assert len(origin.calls) == 1
