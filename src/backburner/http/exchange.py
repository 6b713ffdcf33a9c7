"""One call of the application: its response is collected to be stored, or passed on to the client as it comes.

A response that may be stored is collected, up to a maximum size; all who wait get it once it is complete and stored.
Any other goes to the one client it is for, message by message, as fast as that client reads: streams, server-sent
events, large responses. A response that may be stored but arrives in pieces is both passed on and collected.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from enum import Enum, auto
from typing import Any, Protocol

from backburner.http.headers import Headers

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Any, Receive, Send], Awaitable[None]]


class Way(Enum):
    """What is done with a response."""

    KEEP = auto()
    PASS = auto()
    DROP = auto()
    """Something else was sent in its place."""


class Keeper(Protocol):
    """Decides about the response of a call."""

    def judge(self, status: int, headers: Headers) -> Way:
        """Decide what is done with a response that starts like this."""
        ...

    async def keep(self, status: int, headers: Headers, body: bytes) -> None:
        """Take a complete response that was collected."""
        ...

    def passed(self) -> None:
        """Learn that the response will not be kept after all, or was not to be kept."""
        ...


class Exchange:
    """Receives what the application sends, in place of the client.

    Args:
        most: bytes of content that are collected at most.
    """

    def __init__(self, keeper: Keeper, most: int) -> None:
        self._keeper = keeper
        self._most = most
        self._way: Way | None = None
        self._collected: list[Message] = []
        self._forwarded = 0
        self._size = 0

    @property
    def passing(self) -> bool:
        """Whether the application's messages go to the client and nowhere else."""
        return self._way is Way.PASS

    @property
    def streamed(self) -> bool:
        """Whether the client has already got messages."""
        return self._forwarded > 0 or self.passing

    def let_pass(self) -> None:
        """Declare beforehand that the response is for one client only."""
        self._way = Way.PASS

    async def forward(self, message: Message) -> None:
        """Send a message to the client."""
        raise NotImplementedError

    async def send(self, message: Message) -> None:
        """Take a message from the application."""
        kind = message["type"]
        if kind == "http.response.start":
            message["headers"] = [(bytes(name).lower(), bytes(value)) for name, value in message.get("headers", ())]
            if self._way is None:
                trailers = message.get("trailers", False)
                self._way = Way.PASS if trailers else self._keeper.judge(message["status"], message["headers"])
                if self._way is Way.PASS:
                    self._keeper.passed()
        if self._way is Way.KEEP:
            await self._collect(message)
        elif self._way is not Way.DROP:
            await self.forward(message)

    async def _collect(self, message: Message) -> None:
        self._collected.append(message)
        if message["type"] == "http.response.start":
            return
        self._size += len(message.get("body", b""))
        if message["type"] != "http.response.body" or self._size > self._most:
            self._way = Way.PASS
            self._keeper.passed()
        elif not message.get("more_body", False):
            start, *rest = self._collected
            body = b"".join(part.get("body", b"") for part in rest)
            await self._keeper.keep(start["status"], start["headers"], body)
            if not self._forwarded:
                return  # the client gets what was kept
        while self._forwarded < len(self._collected):
            self._forwarded += 1
            await self.forward(self._collected[self._forwarded - 1])
        if self._way is Way.PASS:
            self._collected.clear()


class Direct(Exchange):
    """An exchange for one client, which waits inside the call."""

    def __init__(self, keeper: Keeper, most: int, send: Send) -> None:
        super().__init__(keeper, most)
        self._send = send

    async def forward(self, message: Message) -> None:
        await self._send(message)


class Shared(Exchange):
    """An exchange for several clients, any of which may leave. The call runs in a task of its own; a response that is
    not kept goes to the first client.

    Args:
        receive: the first client's.
        body: of the request, if it was read already.
    """

    def __init__(self, keeper: Keeper, most: int, receive: Receive, body: bytes) -> None:
        super().__init__(keeper, most)
        self._receive = receive
        self._body: bytes | None = body
        self._queue: deque[Message] = deque()
        self.abandoned = False
        """The client that messages go to has left, or there never was one."""
        self._settled = False
        self._changed = asyncio.Event()
        self._taken = asyncio.Event()
        self._connected = asyncio.Event()

    async def receive(self) -> Message:
        """The application's `receive`. Until it is known that the response is for one client only, the application does
        not hear of that client's leaving."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._connected.wait()
        if self.abandoned:
            return {"type": "http.disconnect"}
        while (message := await self._receive())["type"] == "http.request":
            pass  # the body, which the application already has
        return message

    async def send(self, message: Message) -> None:
        await super().send(message)
        if self.passing:
            self._connected.set()

    async def forward(self, message: Message) -> None:
        if self.abandoned:
            if self.passing:
                raise ConnectionResetError("the client that this response is for has gone")
            return
        self._queue.append(message)
        self._changed.set()
        while self.passing and self._queue and not self.abandoned:
            self._connected.set()
            self._taken.clear()
            await self._taken.wait()

    def settle(self) -> None:
        """Let the first client, too, have what was kept, or what is sent in its place."""
        self._settled = True
        self._changed.set()

    async def relay(self, send: Send, task: "asyncio.Task[None]") -> None:
        """Send the first client its messages, until `settle` or the end of the task that calls the application."""
        task.add_done_callback(lambda _: self._changed.set())
        try:
            while True:
                self._changed.clear()
                while self._queue:
                    await send(self._queue[0])
                    self._queue.popleft()
                    if not self._queue:
                        self._taken.set()
                if task.done() or (self._settled and not self.streamed):
                    return
                await self._changed.wait()
        except BaseException:
            self.abandoned = True
            self._taken.set()
            self._connected.set()
            raise
