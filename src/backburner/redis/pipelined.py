"""Automatic pipelining for asyncio: the coroutines of an event loop share one connection, and commands issued in one
tick leave in one write.

With a connection pool, every command costs a write, a read, a timer and two wake-ups. A `Stream` collects commands
until the tick ends, completes their futures in order, and has one watchdog for all of them. This module decides which
stream is used, and when a new one begins.

Nothing is retried, and nothing pauses between attempts to connect: that is up to the breaker. Commands that block in
the server (BLPOP, SUBSCRIBE, MULTI) do not belong here: everybody else would have to wait for them.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Literal

import redis
import redis.asyncio

from backburner.redis.client import aconnect
from backburner.redis.cluster import meaning_of_errors
from backburner.redis.command import Pipeline, again, packed
from backburner.redis.linked import linked
from backburner.redis.stream import Abandoned, Stream
from backburner.redis.url import ServerURL

__all__ = ["PipelinedClient"]

log = logging.getLogger("backburner.cache")


class PipelinedClient:
    """The part of `redis.asyncio.Redis` that a store needs, for the event loop that first uses it.

    It connects at the first command, and again at the first one after a connection was lost. When a connection is lost,
    its commands fail at once; when the server does not answer, all pending commands fail once the oldest has waited for
    `timeout` seconds. Whether the server has executed them is unknown.

    Args:
        url: any URL that `ServerURL` understands; with Sentinel, the current master is asked for at each connection.
        timeout: seconds for each step of connecting, and for each reply.
        name: the client name, as CLIENT LIST shows it.
        on_push: called with each push message, such as an invalidation; the connection then speaks RESP3.
        client: a redis-py client whose connection options to use instead of those of the URL.

    Raises:
        ConfigError: the URL is not that of a server.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 0.25,
        name: str = "backburner",
        on_push: Callable[[list[Any]], None] | None = None,
        client: "redis.asyncio.Redis | None" = None,
    ) -> None:
        server = ServerURL.parse(url)
        self._server = server.masked
        self._meaning = meaning_of_errors(server.slot)
        self._timeout = timeout
        self._on_push = on_push
        # Kept: a Sentinel's pool lives as long as it does.
        self._client = client or aconnect(url, timeout=timeout, name=name)
        self._stream: Stream | None = None
        self._abandoned: Abandoned | None = None
        self._asked_for: list[bytes] = []

    def __repr__(self) -> str:
        return f"<PipelinedClient {self._server}>"

    def execute_command(self, *command: Any) -> Awaitable[Any]:
        """Send a command, each word as an argument of its own. The reply is the server's, unconverted.

        Cancelling the wait drops the reply; the command may still be executed.

        Raises:
            redis.RedisError: as from redis-py.
        """
        stream = self._stream or self._connect()
        return stream.send_later(packed(command)) if stream.full else stream.send(packed(command))

    @property
    def is_idle(self) -> bool:
        """Whether it is connected, and no reply is outstanding."""
        return self._stream is not None and self._stream.is_idle

    def execute_now(self, *command: Any) -> Awaitable[Any]:
        """As `execute_command`, but sent at once and not at the end of the tick; for use when it `is_idle`."""
        return (self._stream or self._connect()).send_now(packed(command))

    def pipeline(self, *, transaction: Literal[False] = False) -> Pipeline[Awaitable[list[Any]]]:  # noqa: ARG002  # as redis-py
        """Collect commands to be sent together, on one connection."""
        return Pipeline(self._send_all)

    def hear(self, prefix: str, on_push: Callable[[list[Any]], None]) -> None:
        """Have the server announce changes of keys under a prefix on this connection, and on those that follow it. So a
        reader on the event loop learns of a change before it reads anything newer, and without waiting for another
        thread. A refusal is ignored: whether all changes are heard is for `Tracking` to say."""
        self._on_push = on_push
        # Not at the handshake, which would fail where RESP3 is refused.
        self._asked_for = [packed(("HELLO", 3)), packed(("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", prefix))]
        if self._stream is not None:
            self._stream.on_push = on_push
            self._ask(self._stream)

    def _ask(self, stream: Stream) -> None:
        for command in self._asked_for:
            stream.send(command).add_done_callback(self._answered)

    def _answered(self, reply: asyncio.Future[Any]) -> None:
        if not reply.cancelled() and (error := reply.exception()) is not None:
            log.debug("%s does not tell of changes on this connection: %s", self._server, error)

    async def aclose(self) -> None:
        """Close the connection; pending commands fail. The client can be used again; it reconnects."""
        if self._stream is not None:
            await self._stream.close()
        await self._client.aclose()

    def retire(self) -> None:
        """Close the connection as soon as no reply is outstanding on it. May be called from any thread."""
        if (stream := self._stream) is not None:
            stream.retire()

    async def _send_all(self, commands: Sequence[bytes]) -> list[Any]:
        if not commands:
            return []
        futures: list[asyncio.Future[Any]] = []
        stream = self._stream or self._connect()
        try:
            for command in commands:
                if stream.full:
                    await stream.room()
                futures.append(stream.send(command))
            with suppress(redis.RedisError):
                await futures[-1]  # replies come in order: then all have come, or never will
            return [future.result() for future in futures]
        finally:
            for future in futures:
                if not future.cancel() and not future.cancelled():
                    future.exception()  # the first one is raised; the others are no news then

    def _connect(self) -> Stream:
        task = asyncio.current_task()
        if self._abandoned is not None and task is not None and task.cancelling():
            # The loop ends, and this task with it: nobody would close another connection.
            raise again(self._abandoned)
        self._abandoned = None
        pool: Any = self._client.connection_pool
        options = dict(pool.connection_kwargs)
        if self._on_push is not None and not self._asked_for:
            options["protocol"] = 3
        self._stream = Stream(
            linked(pool.connection_class)(**options),
            self._server,
            self._timeout,
            on_push=self._on_push,
            on_end=self._disconnected,
            meaning=self._meaning,
        )
        self._ask(self._stream)
        return self._stream

    def _disconnected(self, error: Exception) -> None:
        self._stream = None
        self._abandoned = error if isinstance(error, Abandoned) else None
