"""redis-py's asyncio connections, reading and writing through a `Link` instead of asyncio streams.

Everything else remains redis-py's: options, login, database, certificates, Sentinels, and the classes for them. Only
public methods are overridden, and no private attribute is used (``docs/decisions/011``).
"""

import asyncio
import socket
from collections import deque
from collections.abc import Iterable
from functools import cache
from typing import Any

import redis
import redis.asyncio
from hiredis import PushNotification
from redis.asyncio.connection import AbstractConnection

from backburner.redis.link import End, Link

__all__ = ["LinkedConnection", "linked"]


class LinkedConnection(AbstractConnection):
    """What all of them have in common. `linked` puts it behind a connection class of redis-py's, before its base."""

    _link: Link | None = None
    _handshake: "_Handshake"

    @property
    def is_connected(self) -> bool:
        """Whether there is a link; it may be about to end."""
        return self._link is not None

    async def connect_check_health(self, *_: Any, **__: Any) -> None:
        """Connect and log in, once; `connect` calls this.

        Raises:
            redis.RedisError: that failed.
        """
        if self._link is not None:
            return
        try:
            await self._open()
            await self.on_connect()
        except BaseException:
            await self.disconnect()
            raise

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], *_: Any, **__: Any) -> None:
        """Send a command of the handshake."""
        if self._link is None:
            raise redis.ConnectionError(f"the connection to {self._place} was closed")
        if isinstance(command, str):
            command = command.encode()
        self._link.write(command if isinstance(command, bytes) else b"".join(command))

    async def read_response(self, *_: Any, **__: Any) -> Any:
        """The next reply of the handshake, unconverted.

        Raises:
            redis.RedisError: the reply is an error, did not come in time, or the connection has ended.
        """
        try:
            async with asyncio.timeout(self.socket_timeout):
                reply = await self._handshake.replies.get()
        except TimeoutError:
            raise redis.TimeoutError(f"{self._place} did not answer within {self.socket_timeout} s") from None
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def disconnect(self, *_: Any, **__: Any) -> None:
        """Close the connection, at once."""
        link, self._link = self._link, None
        if link is not None:
            link.abort()

    def hand_over(self, end: End) -> Link:
        """Hand the link to its user after the handshake: `end` receives what arrives from now on.

        Raises:
            redis.RedisError: the connection has ended in the meantime, or has brought a reply that nobody asked for.
        """
        if self._link is None:
            raise redis.ConnectionError(f"the connection to {self._place} was closed")
        self._link.end = end
        while not self._handshake.replies.empty():
            end.give(self._handshake.replies.get_nowait())
        return self._link

    async def _open(self) -> None:
        self._handshake = _Handshake(self._place)
        self._link = link = Link(self._handshake)
        try:
            async with asyncio.timeout(self.socket_connect_timeout):
                await self._make(link)
        except TimeoutError:
            raise redis.TimeoutError(f"no connection to {self._place} in {self.socket_connect_timeout} s") from None
        except (OSError, ValueError) as error:  # refusals, certificates, names that are none
            raise redis.ConnectionError(f"no connection to {self._place}: {error}") from error

    async def _make(self, link: Link) -> None:
        loop = asyncio.get_running_loop()
        server: Any = self  # what redis-py's class for the kind of server has, this one does not know of
        if isinstance(server, redis.asyncio.UnixDomainSocketConnection):
            await loop.create_unix_connection(lambda: link, server.path)
            return
        tls = server.ssl_context.get() if isinstance(server, redis.asyncio.SSLConnection) else None
        transport, _ = await loop.create_connection(lambda: link, server.host, server.port, ssl=tls)
        if server.socket_keepalive:
            _keep_alive(transport.get_extra_info("socket"), server.socket_keepalive_options)

    @property
    def _place(self) -> str:
        pieces: dict[str, Any] = dict(self.repr_pieces())  # type: ignore[no-untyped-call]  # untyped there
        return str(pieces.get("path") or f"{pieces['host']}:{pieces['port']}")


class _Handshake:
    """The end of a link while redis-py logs in, sending one command at a time."""

    full = False

    def __init__(self, place: str) -> None:
        self._place = place
        self.sent: deque[asyncio.Future[Any]] = deque()
        self.replies: asyncio.Queue[Any] = asyncio.Queue()

    def give(self, reply: Any) -> None:
        if reply.__class__ is not PushNotification:  # nobody has asked for any yet
            self.replies.put_nowait(reply)

    def lost(self, error: Exception) -> None:
        self.replies.put_nowait(redis.ConnectionError(f"the connection to {self._place} ended: {error}"))

    def make_room(self) -> None: ...

    def hold(self) -> None: ...

    def go_on(self) -> None: ...


def _keep_alive(connected: Any, options: Any) -> None:
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in options.items():
        connected.setsockopt(socket.IPPROTO_TCP, option, value)


@cache
def linked(kind: type[Any]) -> type[LinkedConnection]:
    """A subclass of redis-py's connection class that uses a link."""
    return type(f"Linked{kind.__name__}", (kind, LinkedConnection), {})
