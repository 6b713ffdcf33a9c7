"""Bytes on an asyncio transport: commands out, and replies in, each parsed in the very callback that brings it.

A task that reads from a stream is woken a tick after the bytes have come, and the stream has copied them once more. A
busy event loop has no such tick to spare when it is to hear that a copy is out of date (``docs/decisions/011``).
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
"""Bytes that are read at a time, at most."""
_PIECE: Final = 16 * 1024
"""Bytes that the parser is given at a time. For each reply that it gives it moves all that it holds behind it, so that
what comes as one large piece with many replies would be moved as many times."""
_KEPT_BUFFER: Final = 4 * 1024 * 1024
"""Bytes that the parser keeps for what comes next: memory got anew for each large reply costs more than the reply."""
_NOTHING: Final = object()


class End(Protocol):
    """Who takes what a link brings."""

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


class Link(asyncio.BufferedProtocol):
    """One connection's protocol.

    Args:
        end: takes what comes; another may take its place.
    """

    def __init__(self, end: End) -> None:
        self.end = end
        self.write: Callable[[bytes], None]
        """Send commands. It is there when the connection is made."""
        self._transport: asyncio.Transport | None = None
        self._failed = False
        self._reader = Reader(
            protocolError=redis.InvalidResponse, replyError=DefaultParser.parse_error, notEnoughData=_NOTHING
        )
        self._reader.setmaxbuf(_KEPT_BUFFER)
        self._buffer = bytearray(_READ)  # always the same memory
        self._view = memoryview(self._buffer)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Be ready to write."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self.write = self._transport.write

    def abort(self) -> None:
        """Disconnect, without goodbyes: those of TLS take a round trip, and the server may be gone."""
        if self._transport is not None:
            self._transport.abort()

    def shut_down(self) -> None:
        """Disconnect, where the loop was closed: the socket itself is freed with the transport."""
        connected: Any = self._transport and self._transport.get_extra_info("socket")
        if connected is not None:
            with suppress(OSError, TypeError):  # it has ended, or is uvloop's, which ends it with its loop
                connected.shutdown(socket.SHUT_RDWR)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        """Where to put what comes. With TLS, asyncio fills it in pieces: a slice has to be of the same memory."""
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """Take what has come."""
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
        """Tell who waits."""
        self._fail(redis.ConnectionError(str(exc or "the server closed it")))

    def pause_writing(self) -> None:
        """Commands come faster than the server reads."""
        self.end.hold()

    def resume_writing(self) -> None:
        """It has read."""
        self.end.go_on()

    def _fail(self, error: Exception) -> None:
        self._failed = True
        self.end.lost(error)
