"""Bytes on an asyncio transport: commands go out, and replies are parsed in the very callback that brings them.

A task that reads from an asyncio stream wakes up one tick after the bytes have arrived, and the stream has copied them
once more. A busy event loop that must learn that a copy is outdated has no tick to spare (``docs/decisions/011``).
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Protocol, cast

import redis
from hiredis import Reader
from redis.asyncio.connection import DefaultParser

__all__ = ["End", "Link"]

_READ: Final = 64 * 1024
"""Bytes read at a time, at most."""
_PIECE: Final = 16 * 1024
"""Bytes that the parser is fed at a time. For each reply that it returns, it moves everything behind it: a large piece
with many replies would be moved as many times."""
_KEPT_BUFFER: Final = 4 * 1024 * 1024
"""Size of the buffer that the parser keeps: allocating one for each large reply would cost more than the reply."""
_NOTHING: Final = object()


class End(Protocol):
    """Receives what a link brings."""

    full: bool

    @property
    def sent(self) -> "deque[asyncio.Future[Any]]":
        """The futures of commands whose replies are outstanding, in order."""
        ...

    def give(self, reply: Any) -> None:
        """Take a reply, an error or a push message.

        Raises:
            redis.RedisError: the connection must end.
        """
        ...

    def make_room(self) -> None:
        """Called when replies have arrived while it was `full`."""
        ...

    def hold(self) -> None:
        """Stop writing for now: the server has yet to read what was written."""
        ...

    def go_on(self) -> None:
        """Resume writing."""
        ...

    def lost(self, error: Exception) -> None:
        """The connection has ended."""
        ...


class Link(asyncio.BufferedProtocol):
    """One connection's protocol.

    Args:
        end: receives what arrives; may be replaced.
    """

    def __init__(self, end: End) -> None:
        self.end = end
        self.write: Callable[[bytes], None]
        """Send commands. Set when the connection is made."""
        self._transport: asyncio.Transport | None = None
        self._failed = False
        self._reader = Reader(
            protocolError=redis.InvalidResponse, replyError=DefaultParser.parse_error, notEnoughData=_NOTHING
        )
        self._reader.setmaxbuf(_KEPT_BUFFER)
        self._buffer = bytearray(_READ)  # always the same memory
        self._view = memoryview(self._buffer)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the connection is there."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self.write = self._transport.write

    def abort(self) -> None:
        """Disconnect at once. TLS's closing handshake would take a round trip, and the server may be gone."""
        if self._transport is not None:
            self._transport.abort()

    def shut_down(self) -> None:
        """Disconnect after the event loop was closed; the socket is freed together with the transport."""
        connected: Any = self._transport and self._transport.get_extra_info("socket")
        if connected is not None:
            with suppress(OSError, TypeError):  # it has ended, or is uvloop's, which ends it with its loop
                connected.shutdown(socket.SHUT_RDWR)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        """asyncio: where to put incoming bytes. It must always be the same memory: with TLS, it is filled in pieces."""
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """asyncio: bytes have arrived."""
        if self._failed:
            return
        feed: Callable[[Any, int, int], None] = self._reader.feed  # of any bytes, whatever its types say
        gets, end = self._reader.gets, self.end
        sent = end.sent
        next_future = sent.popleft
        try:
            for begin in range(0, nbytes, _PIECE):
                feed(self._buffer, begin, min(_PIECE, nbytes - begin))
                while (reply := gets()) is not _NOTHING:
                    if reply.__class__ is bytes and sent:
                        future = next_future()
                        if not future.done():  # else the caller was cancelled; the next reply is the next caller's
                            future.set_result(reply)
                    else:
                        end.give(reply)
        except redis.RedisError as error:
            self._fail(error)
        if end.full:
            end.make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection has ended."""
        self._fail(redis.ConnectionError(str(exc or "the server closed it")))

    def pause_writing(self) -> None:
        """asyncio: commands are written faster than the server reads."""
        self.end.hold()

    def resume_writing(self) -> None:
        """asyncio: the server has caught up."""
        self.end.go_on()

    def _fail(self, error: Exception) -> None:
        self._failed = True
        self.end.lost(error)
