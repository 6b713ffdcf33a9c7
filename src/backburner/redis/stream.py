"""One connection of an event loop, from when it is made until it ends: commands out, replies in, and a watchdog.

redis-py connects, logs in, speaks TLS and asks Sentinels. Then its transport is taken over: what arrives is parsed
here, and all replies that have come complete their futures in one go. redis-py's own way is a coroutine for each reply;
it is gone where the transport cannot be had (see ``docs/decisions/011``).

Nothing is retried or sent twice. When to connect, and what a command is, is not decided here.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, cast

import redis
from hiredis import PushNotification, Reader

from backburner.redis.command import again

__all__ = ["Stream"]

log = logging.getLogger("backburner.cache")

MAX_PENDING: Final = 10_000
"""Commands that may wait for their replies on one connection; further callers wait for half of it to be free."""
MAX_UNSENT_BYTES: Final = 16 * 1024 * 1024
"""Bytes of commands that may wait for the server to read; the same holds."""
_SECOND_LOOK: Final = 0.01
"""Seconds. If the loop was busy, the reply may be there already and only waits to be read."""
_KEPT_BUFFER: Final = 4 * 1024 * 1024
"""Bytes that the parser keeps for what comes next: memory got anew for each large reply costs more than the reply."""
_NOTHING: Final = object()
_READ: Final = 64 * 1024
"""Bytes that are read at a time, always into the same memory."""
_PIECE: Final = 16 * 1024
"""Bytes that the parser is given at a time. For each reply that it gives it moves all that it holds behind it, so that
what comes as one large piece with many replies would be moved as many times."""


class Stream(asyncio.BufferedProtocol):
    """The life of one connection. It ends once, with everything it carried.

    A command is unsent until its tick is over and the connection is made, then sent until its reply has come.

    Args:
        connection: one of redis-py's, not connected yet.
        server: what errors call it.
        timeout: seconds that the oldest command waits at most.
        on_push: is given push messages.
        on_end: is called when it has ended.
        error_of: makes an error of the text that the server sends. A `redis.ConnectionError` ends the connection.
    """

    def __init__(
        self,
        connection: Any,
        server: str,
        timeout: float,
        *,
        on_push: Callable[[list[Any]], None] | None,
        on_end: Callable[[], None],
        error_of: Callable[[str], Exception],
    ) -> None:
        self.full = False
        """Too much is waiting: use `send_later`."""
        self._connection = connection
        self._server = server
        self._timeout = timeout
        self.on_push = on_push
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._new_future = self._loop.create_future
        self._transport: asyncio.Transport | _Relay | None = None
        self._held = True  # unsent commands are: until the connection is made, and while the server does not read
        self._failure: Exception | None = None
        self._unsent: list[bytes] = []
        self._unsent_futures: list[asyncio.Future[Any]] = []
        self._unsent_bytes = 0
        self._unsent_since = 0.0
        self._sent: deque[asyncio.Future[Any]] = deque()
        self._sent_count = 0
        self._writes: deque[tuple[int, float]] = deque()
        """When commands were sent, and `_sent_count` behind the last of them, of each write that is not answered."""
        self._room = asyncio.Event()
        self._watchdog: asyncio.TimerHandle | None = None
        self._suspect: float | None = None
        self._reader = Reader(protocolError=redis.InvalidResponse, replyError=error_of, notEnoughData=_NOTHING)
        self._reader.setmaxbuf(_KEPT_BUFFER)
        self._buffer = bytearray(_READ)
        self._view = memoryview(self._buffer)
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._task = self._loop.create_task(self._live(), name=f"backburner pipeline to {server}")

    def send(self, command: bytes) -> asyncio.Future[Any]:
        """Send a command at the end of the tick. The future is given its reply."""
        future = self._new_future()
        if not self._unsent:
            self._unsent_since = monotonic()  # not the loop's time, which stands still in uvloop while a task is busy
            if not self._held:
                # In the next round of the loop: everything else that this round sends is in the batch then.
                self._loop.call_soon(self._flush)
            if self._watchdog is None:
                self._watchdog = self._loop.call_later(self._timeout, self._watch)
        self._unsent.append(command)
        self._unsent_futures.append(future)
        self._unsent_bytes += len(command)
        if self._unsent_bytes >= MAX_UNSENT_BYTES or len(self._unsent) + len(self._sent) >= MAX_PENDING:
            self.full = True
            self._room.clear()
        return future

    async def send_later(self, command: bytes) -> Any:
        """As `send`, once there is room."""
        await self.room()
        return await self.send(command)

    async def room(self) -> None:
        """Wait until there is room.

        Raises:
            redis.RedisError: the connection has ended meanwhile.
        """
        while self.full:
            await self._room.wait()
        if self._failure is not None:
            raise again(self._failure)

    async def close(self) -> None:
        """End, and wait until the connection is closed."""
        self.end(redis.ConnectionError(f"the connection to {self._server} was closed while a reply was awaited"))
        await asyncio.wait([self._task])

    @property
    def pending(self) -> int:
        """Commands that wait for their replies."""
        return len(self._unsent) + len(self._sent)

    async def _live(self) -> None:
        try:
            await self._connection.connect()
            # From here on the watchdog measures time, once for all commands instead of once for each.
            self._connection.socket_timeout = None
            await self._take_over()
            self.resume_writing()
            await self._over
        except (redis.RedisError, OSError) as error:
            self.end(error)
        finally:
            # No-op where it has ended; else the loop is ending, and cancels all its tasks.
            self.end(redis.ConnectionError(f"the connection to {self._server} was abandoned"))
            transport = self._transport
            if isinstance(transport, _Relay):
                transport.close()
                transport = None
            await self._connection.disconnect(nowait=True)
            if transport is not None and transport.get_extra_info("ssl_object") is not None:
                # The goodbyes of TLS take a round trip, and the loop may end before they are over.
                transport.abort()

    async def _take_over(self) -> None:
        found = _transport_of(self._connection)
        if found is None:
            log.debug("the transport of redis-py %s is not where it was: replies cost more", redis.__version__)
            self._transport = _Relay(self._connection, self, wants_push=self.on_push is not None)
            return
        self._transport, reader = found
        self._transport.set_protocol(self)
        reader.feed_eof()  # so that reading gives what is there, at once
        if unread := await reader.read():
            self._parse(unread, len(unread))

    def _flush(self) -> None:
        if self._held or not self._unsent or self._transport is None:
            return
        commands, self._unsent = self._unsent, []
        futures, self._unsent_futures = self._unsent_futures, []
        self._unsent_bytes = 0
        self._sent.extend(futures)
        self._sent_count += len(futures)
        self._forget_answered_writes()
        self._writes.append((self._sent_count, monotonic()))
        self._transport.write(commands[0] if len(commands) == 1 else b"".join(commands))

    def _forget_answered_writes(self) -> None:
        answered = self._sent_count - len(self._sent)
        while self._writes and self._writes[0][0] <= answered:
            self._writes.popleft()

    # What the transport calls

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        """Where to put what comes. With TLS, asyncio fills it in pieces: a slice has to be of the same memory."""
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """Take what has come."""
        self._parse(self._buffer, nbytes)

    def _parse(self, data: bytes | bytearray, size: int) -> None:
        """Replies that are complete go to their callers."""
        if self._failure is not None:
            return
        feed: Callable[[Any, int, int], None] = self._reader.feed  # of any bytes, whatever its types say
        gets, sent = self._reader.gets, self._sent
        next_future = sent.popleft
        try:
            for begin in range(0, size, _PIECE):
                feed(data, begin, min(_PIECE, size - begin))
                while (reply := gets()) is not _NOTHING:
                    if reply.__class__ is bytes and sent:
                        future = next_future()
                        if not future.done():
                            future.set_result(reply)
                    else:
                        self._give(reply)
        except redis.RedisError as error:
            self.end(error)
        if self.full:
            self._make_room()

    def reply(self, reply: Any) -> None:
        """Take a reply, an error or a push message that was parsed elsewhere.

        Raises:
            redis.RedisError: the connection is to end.
        """
        self._give(reply)
        if self.full:
            self._make_room()

    def _give(self, reply: Any) -> None:
        if reply.__class__ is PushNotification:
            self._pushed(reply)
            return
        if isinstance(reply, redis.ConnectionError):
            raise reply
        if not self._sent:
            raise redis.InvalidResponse(f"{self._server} sent a reply that nothing had asked for")
        future = self._sent.popleft()
        if not isinstance(reply, Exception):
            if not future.done():  # else the caller was cancelled; the next reply is the next caller's
                future.set_result(reply)
            return
        if not future.done():
            future.set_exception(reply)
        if isinstance(reply, redis.ReadOnlyError):
            # A master that became a replica. Its name or its Sentinels may know the new one by now.
            raise redis.ConnectionError(f"{self._server} is no longer a master: {reply}")

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what waits."""
        self.end(redis.ConnectionError(f"the connection to {self._server} was lost: {exc or 'the server closed it'}"))

    def pause_writing(self) -> None:
        """Hold commands: they come faster than the server reads."""
        self._held = True

    def resume_writing(self) -> None:
        """Send what was held."""
        self._held = False
        self._flush()

    def _pushed(self, message: list[Any]) -> None:
        if self.on_push is None:
            return
        try:
            self.on_push(message)
        except Exception:
            log.exception("the receiver of push messages failed on %r", message)

    def _make_room(self) -> None:
        if self.pending <= MAX_PENDING // 2 and self._unsent_bytes < MAX_UNSENT_BYTES // 2:
            self.full = False
            self._room.set()

    def _watch(self) -> None:
        """Fail what has waited for too long; runs only while something waits."""
        self._watchdog = None
        suspect, self._suspect = self._suspect, None
        self._forget_answered_writes()
        if self._writes:
            waiting_since = self._writes[0][1]
        elif self._unsent:
            waiting_since = self._unsent_since
        else:
            return
        remaining = waiting_since + self._timeout - monotonic()
        if remaining > 0:
            self._watchdog = self._loop.call_later(remaining, self._watch)
        elif suspect != waiting_since:
            self._suspect = waiting_since
            self._watchdog = self._loop.call_later(_SECOND_LOOK, self._watch)
        else:
            error = redis.TimeoutError(f"{self._server} did not answer within {self._timeout} s")
            if self._transport is not None:
                self.end(error)
            else:
                # Callers have waited long enough, but a handshake of many steps may still succeed, for the next ones.
                self._fail_all(error)

    def end(self, error: Exception) -> None:
        """Fail what waits, and close the connection. A second time does nothing."""
        if self._failure is not None:
            return
        self._failure = error
        self._on_end()
        if self.pending == 0:
            log.debug("connection to %s ended: %s", self._server, error)
        self._fail_all(error)
        if self._watchdog is not None:
            self._watchdog.cancel()
        if asyncio.current_task(self._loop) is not self._task:
            self._task.cancel()

    def _fail_all(self, error: Exception) -> None:
        futures = [*self._sent, *self._unsent_futures]
        self._sent.clear()
        self._writes.clear()
        self._unsent.clear()
        self._unsent_futures.clear()
        self._unsent_bytes = 0
        self._make_room()
        for future in futures:
            if not future.done():
                future.set_exception(again(error))


def _transport_of(connection: Any) -> tuple[asyncio.Transport, asyncio.StreamReader] | None:
    """The transport of a connection of redis-py's, and who has read from it, if they are where they are expected."""
    reader = getattr(connection, "_reader", None)
    transport = getattr(getattr(connection, "_writer", None), "transport", None)
    if not isinstance(reader, asyncio.StreamReader) or not hasattr(transport, "set_protocol"):
        return None
    return cast("asyncio.Transport", transport), reader  # uvloop's is no subclass


class _Relay:
    """In place of a transport: only what redis-py makes public, at the cost of a coroutine for each reply."""

    def __init__(self, connection: Any, stream: Stream, *, wants_push: bool) -> None:
        self._connection = connection
        self._stream = stream
        self._wants_push = wants_push
        self._reading = asyncio.create_task(self._read(), name="backburner replies")
        self._writing: asyncio.Task[None] | None = None

    def write(self, data: bytes) -> None:
        """Send commands; more are to be held until they are sent."""
        self._stream.pause_writing()
        self._writing = asyncio.create_task(self._write(data), name="backburner commands")

    def close(self) -> None:
        """Leave the connection."""
        self._reading.cancel()
        if self._writing is not None:
            self._writing.cancel()

    async def _write(self, data: bytes) -> None:
        try:
            await self._connection.send_packed_command(data, check_health=False)
        except (redis.RedisError, OSError) as error:
            self._stream.end(error)
        else:
            self._stream.resume_writing()

    async def _read(self) -> None:
        try:
            while True:
                try:
                    reply = await self._connection.read_response(push_request=self._wants_push)
                except redis.ResponseError as error:
                    reply = error
                self._stream.reply(reply)
        except (redis.RedisError, OSError) as error:
            self._stream.end(error)
