"""Automatic pipelining for asyncio: the coroutines of an event loop share one connection, and what they ask for in one
tick leaves in one write.

A pool pays a write, a read, a timer and two wake-ups for every command. Here commands are collected until the tick
ends, replies complete their futures in order, and one watchdog looks after all of them. redis-py still connects, logs
in, speaks TLS, asks Sentinels and parses.

Nothing is retried, and nothing pauses between attempts to connect: that is the breaker's business. Commands that block
in the server (BLPOP, SUBSCRIBE, MULTI) do not belong here: everybody would wait for them.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Any, Final, Literal

import redis
import redis.asyncio.connection
from hiredis import PushNotification

from backburner.redis.client import aconnect
from backburner.redis.command import Pipeline, again, packed
from backburner.redis.push import AsyncPushParser
from backburner.redis.url import ServerURL

__all__ = ["PipelinedClient"]

log = logging.getLogger("backburner.cache")

MAX_PENDING: Final = 10_000
"""Commands that may wait for their replies on one connection; further callers wait for half of it to be free."""
MAX_UNSENT_BYTES: Final = 16 * 1024 * 1024
"""Bytes of commands that may wait for the server to read; the same holds."""
_SECOND_LOOK: Final = 0.01
"""Seconds. If the loop was busy, the reply may be there already and only waits to be read."""


class PipelinedClient:
    """The part of `redis.asyncio.Redis` that a store needs, for the event loop that first uses it.

    It connects at the first command, and again at the first one after a connection was lost. A lost connection fails
    what it carried at once; a server that does not answer fails everything that waits once the oldest command has
    waited for `timeout` seconds. Which of these commands the server has carried out, nobody knows.

    Args:
        url: any URL that `ServerURL` understands; with Sentinel, the current master is asked for at each connection.
        timeout: seconds for each step of connecting, and for each reply.
        name: what CLIENT LIST shows.
        on_push: is given push messages, such as invalidations, as they come; the connection then speaks RESP3.

    Raises:
        ConfigError: the URL is no server's.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 0.25,
        name: str = "backburner",
        on_push: Callable[[list[Any]], None] | None = None,
    ) -> None:
        self._server = ServerURL.parse(url).masked
        self._timeout = timeout
        self._on_push = on_push
        self._client = aconnect(url, timeout=timeout, name=name)  # kept: a Sentinel's pool lives as long as it does
        self._stream: _Stream | None = None

    def __repr__(self) -> str:
        return f"<PipelinedClient {self._server}>"

    def execute_command(self, *command: Any) -> Awaitable[Any]:
        """Send a command, each word an argument of its own; the reply is as the server gives it.

        Cancelling the wait drops the reply; the command may still be carried out.

        Raises:
            redis.RedisError: as from redis-py.
        """
        return self._send(packed(command))

    def pipeline(self, *, transaction: Literal[False] = False) -> Pipeline[Awaitable[list[Any]]]:  # noqa: ARG002 - as redis-py
        """Collect commands that are sent together."""
        return Pipeline(self._send_all)

    async def aclose(self) -> None:
        """Close the connection; what waits for a reply fails. The client can be used again; it connects anew."""
        if self._stream is not None:
            await self._stream.close()
        await self._client.aclose()

    async def _send_all(self, commands: Sequence[bytes]) -> list[Any]:
        replies = await asyncio.gather(*map(self._send, commands), return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
        return replies

    def _send(self, command: bytes) -> Awaitable[Any]:
        stream = self._stream or self._connect()
        return stream.send_later(command) if stream.full else stream.send(command)

    def _connect(self) -> "_Stream":
        pool = self._client.connection_pool
        options = dict(pool.connection_kwargs)
        if self._on_push is not None:
            options |= {"protocol": 3, "parser_class": AsyncPushParser}
        connection = pool.connection_class(**options)
        self._stream = _Stream(connection, self._server, self._timeout, self._on_push, self._disconnected)
        return self._stream

    def _disconnected(self) -> None:
        self._stream = None


class _Stream:
    """The life of one connection. It ends once, with everything it carried.

    A command is unsent until its tick is over and the connection is made, then sent until its reply has come.
    """

    def __init__(
        self,
        connection: Any,
        server: str,
        timeout: float,
        on_push: Callable[[list[Any]], None] | None,
        on_end: Callable[[], None],
    ) -> None:
        self.full = False
        """Too much is waiting: use `send_later`."""
        self._connection = connection
        self._server = server
        self._timeout = timeout
        self._on_push = on_push
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._connected = False
        self._failure: Exception | None = None
        self._unsent: list[bytes] = []
        self._unsent_futures: list[asyncio.Future[Any]] = []
        self._unsent_bytes = 0
        self._unsent_since = 0.0
        self._sent: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._work: asyncio.Future[None] = self._loop.create_future()
        self._room = asyncio.Event()
        self._watchdog: asyncio.TimerHandle | None = None
        self._suspect: float | None = None
        self._task = self._loop.create_task(self._live(), name=f"backburner pipeline to {server}")

    def send(self, command: bytes) -> asyncio.Future[Any]:
        """Send a command at the end of the tick. The future is given its reply."""
        future = self._loop.create_future()
        if not self._unsent:
            self._unsent_since = monotonic()  # not the loop's time, which stands still in uvloop while a task is busy
            if not self._work.done():
                self._work.set_result(None)
            if self._watchdog is None:
                self._watchdog = self._loop.call_later(self._timeout, self._watch)
        self._unsent.append(command)
        self._unsent_futures.append(future)
        self._unsent_bytes += len(command)
        if self._unsent_bytes >= MAX_UNSENT_BYTES or self._pending >= MAX_PENDING:
            self.full = True
            self._room.clear()
        return future

    async def send_later(self, command: bytes) -> Any:
        """As `send`, once there is room."""
        while self.full:
            await self._room.wait()
        if self._failure is not None:
            raise again(self._failure)
        return await self.send(command)

    async def close(self) -> None:
        """End, and wait until the connection is closed."""
        self._end(redis.ConnectionError(f"the connection to {self._server} was closed while a reply was awaited"))
        await asyncio.wait([self._task])

    @property
    def _pending(self) -> int:
        return len(self._unsent_futures) + len(self._sent)

    async def _live(self) -> None:
        reader: asyncio.Task[None] | None = None
        try:
            await self._connection.connect()
            # From here on the watchdog measures time, once for all commands instead of once for each.
            self._connection.socket_timeout = None
            self._connected = True
            reader = self._loop.create_task(self._read(), name=f"backburner replies from {self._server}")
            await self._write()
        except (redis.RedisError, OSError) as error:
            self._end(error)
        finally:
            # No-op where it has ended; else the loop is ending, and cancels all its tasks.
            self._end(redis.ConnectionError(f"the connection to {self._server} was abandoned"))
            if reader is not None:
                reader.cancel()
            await self._connection.disconnect(nowait=True)

    async def _write(self) -> None:
        while True:
            if not self._unsent:
                # Woken in the next round of the loop: everything else that this round sends is in the batch then.
                self._work = self._loop.create_future()
                await self._work
            batch, self._unsent = self._unsent, []
            futures, self._unsent_futures = self._unsent_futures, []
            self._unsent_bytes = 0
            now = monotonic()
            self._sent.extend([(now, future) for future in futures])
            commands = batch[0] if len(batch) == 1 else b"".join(batch)
            await self._connection.send_packed_command(commands, check_health=False)

    async def _read(self) -> None:
        try:
            await self._complete_futures()
        except (redis.RedisError, OSError) as error:
            self._end(error)
        finally:
            self._end(redis.ConnectionError(f"replies from {self._server} are no longer read"))

    async def _complete_futures(self) -> None:
        read, sent, wants_push = self._connection.read_response, self._sent, self._on_push is not None
        while True:
            error: redis.ResponseError | None = None
            reply: Any = None
            try:
                reply = await read(push_request=wants_push)
            except redis.ResponseError as refusal:
                error = refusal
            if reply.__class__ is PushNotification:
                self._pushed(reply)
                continue
            if not sent:
                raise redis.InvalidResponse(f"{self._server} sent a reply that nothing had asked for")
            _, future = sent.popleft()
            if self.full and self._pending <= MAX_PENDING // 2 and self._unsent_bytes < MAX_UNSENT_BYTES // 2:
                self._make_room()
            if future.done():
                continue  # the caller was cancelled; its reply is dropped, and the next one is the next caller's
            if error is None:
                future.set_result(reply)
                continue
            future.set_exception(error)
            if isinstance(error, redis.ReadOnlyError):
                # A master that became a replica. Its name or its Sentinels may know the new one by now.
                raise redis.ConnectionError(f"{self._server} is no longer a master: {error}")

    def _pushed(self, message: list[Any]) -> None:
        if self._on_push is None:
            return
        try:
            self._on_push(message)
        except Exception:
            log.exception("the receiver of push messages failed on %r", message)

    def _make_room(self) -> None:
        self.full = False
        self._room.set()

    def _watch(self) -> None:
        """Fail what has waited for too long; runs only while something waits."""
        self._watchdog = None
        suspect, self._suspect = self._suspect, None
        if self._sent:
            waiting_since = self._sent[0][0]
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
            if self._connected:
                self._end(error)
            else:
                # Callers have waited long enough, but a handshake of many steps may still succeed, for the next ones.
                self._fail_all(error)

    def _end(self, error: Exception) -> None:
        if self._failure is not None:
            return
        self._failure = error
        self._on_end()
        if self._pending == 0:
            log.debug("connection to %s ended: %s", self._server, error)
        self._fail_all(error)
        if self._watchdog is not None:
            self._watchdog.cancel()
        if asyncio.current_task(self._loop) is not self._task:
            self._task.cancel()

    def _fail_all(self, error: Exception) -> None:
        futures = [future for _, future in self._sent] + self._unsent_futures
        self._sent.clear()
        self._unsent.clear()
        self._unsent_futures.clear()
        self._unsent_bytes = 0
        self._make_room()
        for future in futures:
            if not future.done():
                future.set_exception(again(error))
