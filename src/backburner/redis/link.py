"""How a stream reads and writes, once redis-py has connected, logged in, and spoken TLS.

By what redis-py makes public, a task reads: it wakes once for all replies that came together, since its coroutines are
begun by hand, and most end without waiting. By the transport below, replies are parsed in the very callback that brings
them: a tick earlier, which a busy event loop needs to hear of changes in time, and without copying large ones once
more. That is the way that is taken, where the transport is to be found (see ``docs/decisions/011``).
"""

import asyncio
import logging
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from typing import Any, Final, Protocol, cast

import redis
import redis.asyncio
from hiredis import Reader

__all__ = ["READ", "Link", "PublicLink", "TransportLink", "link_of"]

log = logging.getLogger("backburner.cache")

READ: Final = 64 * 1024
"""Bytes that are read at a time, at most."""
_PIECE: Final = 16 * 1024
"""Bytes that the parser is given at a time. For each reply that it gives it moves all that it holds behind it, so that
what comes as one large piece with many replies would be moved as many times."""
_KEPT_BUFFER: Final = 4 * 1024 * 1024
"""Bytes that the parser keeps for what comes next: memory got anew for each large reply costs more than the reply."""
_NOTHING: Final = object()


class End(Protocol):
    """Who reads and writes."""

    full: bool

    @property
    def sent(self) -> "deque[asyncio.Future[Any]]":
        """Who waits, in order."""
        ...

    def give(self, reply: Any) -> None:
        """Take a reply, an error or a push message.

        Raises:
            redis.RedisError: the connection is to end.
        """
        ...

    def make_room(self) -> None:
        """Replies were taken while it was full."""
        ...

    def hold(self) -> None:
        """Write nothing for now: what was written is not read yet."""
        ...

    def go_on(self) -> None:
        """Write what was held."""
        ...

    def lost(self, error: Exception) -> None:
        """The connection has ended."""
        ...


class Link(Protocol):
    """A connection that is made."""

    async def read(self) -> None:
        """Give what comes to the end that reads, until the connection ends.

        Raises:
            redis.RedisError, OSError: why it ended.
        """
        ...

    def write(self, commands: bytes) -> None:
        """Send commands."""
        ...

    async def close(self) -> None:
        """Disconnect, without waiting for a server that may be gone."""
        ...


def link_of(connection: Any, parser: Any, end: End) -> Link:
    """The faster way of the two that a connection allows."""
    reader = getattr(connection, "_reader", None)
    transport = getattr(getattr(connection, "_writer", None), "transport", None)
    if isinstance(reader, asyncio.StreamReader) and hasattr(transport, "set_protocol"):
        transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        return TransportLink(connection, transport, reader, parser, end)
    log.debug("the transport of redis-py %s is not where it was: replies cost more", redis.__version__)
    return PublicLink(connection, parser, end)


class TransportLink(asyncio.BufferedProtocol):
    """In place of redis-py's protocol on the transport."""

    def __init__(
        self, connection: Any, transport: asyncio.Transport, unread: asyncio.StreamReader, parser: Any, end: End
    ) -> None:
        self._connection = connection
        self._transport = transport
        self._unread = unread
        self._end = end
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._failed = False
        self._reader = Reader(
            protocolError=redis.InvalidResponse, replyError=parser.parse_error, notEnoughData=_NOTHING
        )
        self._reader.setmaxbuf(_KEPT_BUFFER)
        self._buffer = bytearray(READ)  # always the same memory
        self._view = memoryview(self._buffer)
        self.write: Callable[[bytes], None] = transport.write
        transport.set_protocol(self)
        unread.feed_eof()  # so that reading gives what is there, at once

    async def read(self) -> None:
        if unread := await self._unread.read():
            self._parse(unread, len(unread))
        await self._over

    async def close(self) -> None:
        await self._connection.disconnect(nowait=True)
        if self._transport.get_extra_info("ssl_object") is not None:
            # The goodbyes of TLS take a round trip, and the loop may end before they are over.
            self._transport.abort()

    # What the transport calls

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        """Where to put what comes. With TLS, asyncio fills it in pieces: a slice has to be of the same memory."""
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """Take what has come."""
        self._parse(self._buffer, nbytes)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who waits."""
        self._fail(redis.ConnectionError(str(exc or "the server closed it")))

    def pause_writing(self) -> None:
        """Commands come faster than the server reads."""
        self._end.hold()

    def resume_writing(self) -> None:
        """It has read."""
        self._end.go_on()

    def _parse(self, data: bytes | bytearray, size: int) -> None:
        if self._failed:
            return
        feed: Callable[[Any, int, int], None] = self._reader.feed  # of any bytes, whatever its types say
        gets, sent = self._reader.gets, self._end.sent
        next_future = sent.popleft
        try:
            for begin in range(0, size, _PIECE):
                feed(data, begin, min(_PIECE, size - begin))
                while (reply := gets()) is not _NOTHING:
                    if reply.__class__ is bytes and sent:
                        future = next_future()
                        if not future.done():  # else the caller was cancelled; the next reply is the next caller's
                            future.set_result(reply)
                    else:
                        self._end.give(reply)
        except redis.RedisError as error:
            self._fail(error)
        if self._end.full:
            self._end.make_room()

    def _fail(self, error: Exception) -> None:
        self._failed = True
        self._end.lost(error)


class PublicLink:
    """By the public calls of redis-py alone."""

    def __init__(self, connection: Any, parser: Any, end: End) -> None:
        self._connection = connection
        self._parser = parser
        self._end = end
        self._writing: asyncio.Task[None] | None = None

    async def read(self) -> None:
        read, end = self._parser.read_response, self._end
        reply = await read(push_request=True)
        while True:
            end.give(reply)
            if end.full:
                end.make_room()
            reading = read(push_request=True)
            try:
                waits_for = reading.send(None)
            except StopIteration as came_with_the_last:
                reply = came_with_the_last.value
            else:
                reply = await _rest(reading, waits_for)

    def write(self, commands: bytes) -> None:
        writing = self._connection.send_packed_command(commands, check_health=False)
        try:
            waits_for = writing.send(None)
        except StopIteration:
            pass  # nearly always
        except (redis.RedisError, OSError) as error:
            self._end.lost(error)
        else:
            self._end.hold()
            self._writing = asyncio.create_task(self._finish(_rest(writing, waits_for)), name="backburner commands")

    async def close(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
        # The goodbyes of TLS again: here they can only be waited for.
        wait = isinstance(self._connection, redis.asyncio.SSLConnection)
        with suppress(redis.TimeoutError):
            await self._connection.disconnect(nowait=not wait)

    async def _finish(self, writing: Coroutine[Any, Any, None]) -> None:
        try:
            await writing
        except (redis.RedisError, OSError) as error:
            self._end.lost(error)
        else:
            self._end.go_on()


@types.coroutine
def _rest(coroutine: Coroutine[Any, Any, Any], waits_for: Any) -> Generator[Any, Any, Any]:
    """What is left of a coroutine that was begun by hand and now waits."""
    try:
        yield waits_for
        return (yield from coroutine.__await__())
    finally:
        coroutine.close()
