"""A reverse proxy to put a cache in: an ASGI application that asks one origin, and the server it runs in.

It keeps every header, every duplicate and the raw path, and rewrites nothing; only the fields that end at each hop
(RFC 9110 section 7.6.1) stay behind. An origin that gives no answer is an exception for the cache to deal with, and
502 for the client if the cache has nothing. No connection is used twice, and no trailer is passed on.
"""

import argparse
import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import closing
from pydoc import locate
from typing import Any
from urllib.parse import urlsplit

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

Headers = list[tuple[bytes, bytes]]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

INTERIM = "http.response.interim"
"""A message of our own, for ASGI knows no 1xx response: `status` and `headers`, before the response starts."""

_HOP_BY_HOP = {
    *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authentication-info", b"proxy-authorization"),
    *(b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"),
}
_CHUNK = 65536


class ReverseProxy:
    """The application behind the cache. Raises `OSError` or `EOFError` when the origin gives no response."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        reader, writer = await asyncio.open_connection(self.host, self.port)
        with closing(writer):
            writer.write(await _request(scope, receive))
            status, headers = await _head(reader)
            while status < 200:
                await send({"type": INTERIM, "status": status, "headers": _end_to_end(headers)})
                status, headers = await _head(reader)
            await send({"type": "http.response.start", "status": status, "headers": _end_to_end(headers)})
            if scope["method"] != "HEAD" and status not in {204, 304}:
                async for data in _body(reader, dict(headers)):
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _request(scope: Message, receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    query = b"?" + scope["query_string"] if scope["query_string"] else b""
    headers = [(name, value) for name, value in _end_to_end(scope["headers"]) if name != b"content-length"]
    if body or scope["method"] in {"POST", "PUT", "PATCH"}:
        headers.append((b"content-length", b"%d" % len(body)))
    lines = [b"%s %s HTTP/1.1" % (scope["method"].encode(), scope["raw_path"] + query)]
    lines += [b"%s: %s" % header for header in headers]
    return b"\r\n".join([*lines, b"connection: close", b"", body])


async def _head(reader: asyncio.StreamReader) -> tuple[int, Headers]:
    status_line, *fields = (await reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
    pairs = (field.partition(b":") for field in fields)
    return int(status_line.split()[1]), [(name.lower(), value.strip()) for name, _, value in pairs]


async def _body(reader: asyncio.StreamReader, headers: dict[bytes, bytes]) -> AsyncIterator[bytes]:
    """The body's pieces, its length found as in RFC 9112 section 6.3."""
    coding = headers.get(b"transfer-encoding", b"").lower()
    if coding.endswith(b"chunked"):
        while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
            yield (await reader.readexactly(size + 2))[:-2]
    elif b"content-length" in headers and not coding:
        yield await reader.readexactly(int(headers[b"content-length"]))
    else:
        while data := await reader.read(_CHUNK):
            yield data


def _end_to_end(headers: Headers) -> Headers:
    listed = b",".join(value for name, value in headers if name == b"connection").lower().split(b",")
    dropped = _HOP_BY_HOP.union(name.strip() for name in listed)
    return [(name, value) for name, value in headers if name not in dropped]


def bad_gateway(app: App) -> App:
    """Answer 502 where `app` raises because it could not ask the origin, and has sent nothing."""

    async def answer(scope: Message, receive: Receive, send: Send) -> None:
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await app(scope, receive, watch)
        except (OSError, EOFError):
            if started:
                raise
            await send({"type": "http.response.start", "status": 502, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})

    return answer


class InterimProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, and interim responses."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app = self._with_interim(self.app)

    def _with_interim(self, app: Any) -> Any:
        async def answer(scope: Message, receive: Receive, send: Send) -> None:
            async def forward(message: Message) -> None:
                if message["type"] == INTERIM:
                    response = h11.InformationalResponse(status_code=message["status"], headers=message["headers"])
                    self.transport.write(self.conn.send(response))
                else:
                    await send(message)

            await app(scope, receive, forward)

        return answer


def no_cache(app: App) -> App:
    """The proxy alone: what the suite finds missing here, no cache can mend."""
    return app


def backburner(app: App) -> App:
    """Our middleware, as one would put it before foreign origins."""
    from backburner import Cache  # here, so that another cache can be measured where ours is not installed
    from backburner.http import CacheMiddleware, Policy

    return CacheMiddleware(app, cache=Cache(os.environ.get("CACHE_URL", "memory://")), policy=Policy.gateway())


def main() -> None:
    """Serve: ``python -m tests.http.conformance.proxy --origin URL --port N --cache module.function``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--origin", required=True, help="the URL of the suite's server")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument(
        "--cache", default=f"{__spec__.name}.backburner", help="puts a cache around an ASGI application"
    )
    options = parser.parse_args()
    origin = urlsplit(options.origin)
    app: Any = locate(options.cache)(ReverseProxy(origin.hostname or "", origin.port or 80))
    uvicorn.run(
        bad_gateway(app),
        port=options.port,
        http=InterimProtocol,
        lifespan="off",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
    )


if __name__ == "__main__":
    main()
