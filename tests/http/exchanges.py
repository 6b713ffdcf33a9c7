"""An application whose answers a test chooses, and a client that sees what comes through the cache in front of it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]


@dataclass
class Reply:
    """What a client got."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def __getitem__(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key == name]
        return ", ".join(found) if found else None

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass
class Origin:
    """An ASGI application that counts its calls and answers ``<path> <call>`` with the headers it is told."""

    headers: dict[str, str] = field(default_factory=lambda: {"cache-control": "max-age=60"})
    status: int = 200
    body: bytes | None = None
    answer: Callable[[Message], Any] | None = None
    """In place of all of the above."""
    gate: asyncio.Event | None = None
    """Awaited before answering."""
    calls: list[Message] = field(default_factory=list)

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        self.calls.append(scope)
        if self.answer is not None:
            outcome = self.answer(scope)
            if isinstance(outcome, Awaitable):
                await outcome
                return
            await respond(send, *outcome)
            return
        body = self.body if self.body is not None else f"{scope['path']} {len(self.calls)}".encode()
        if self.gate is not None:
            await self.gate.wait()
        await respond(send, self.status, self.headers, body)

    async def called(self, times: int) -> None:
        """Wait until there were so many calls; the test's time limit is the end."""
        while len(self.calls) < times:  # noqa: ASYNC110  # calls may come from several event loops
            await asyncio.sleep(0.001)

    def asked(self, name: str) -> str | None:
        """A request header of the last call."""
        return dict(self.calls[-1]["headers"]).get(name.encode(), b"").decode() or None


async def respond(send: Any, status: int, headers: dict[str, str], body: bytes) -> None:
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


async def ask(
    app: Any,
    target: str = "/a",
    method: str = "GET",
    *,
    host: str | None = "shop.example",
    body: bytes = b"",
    lines: list[tuple[bytes, bytes]] | None = None,
    raw_path: bytes | None = None,
    scheme: str = "http",
    **headers: str,
) -> Reply:
    """Send one request, its headers written with underscores for hyphens."""
    path, _, query = target.partition("?")
    pairs = [(b"host", host.encode())] if host is not None else []
    pairs += [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    if body:
        pairs.append((b"content-length", b"%d" % len(body)))
    scope = {
        "type": "http",
        "method": method,
        "scheme": scheme,
        "path": path,
        "raw_path": path.encode() if raw_path is None else raw_path,
        "query_string": query.encode(),
        "headers": pairs + (lines or []),
    }
    inbox = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Message] = []

    async def receive() -> Message:
        if inbox:
            return inbox.pop()
        return await asyncio.Future()

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    start, *rest = sent
    assert start["type"] == "http.response.start"
    assert not rest[-1].get("more_body")
    found = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in start["headers"]]
    return Reply(start["status"], found, b"".join(part.get("body", b"") for part in rest))
