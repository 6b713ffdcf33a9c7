"""The result backend's client. In jobs of the asyncio pool it waits on the loop, and all jobs share one connection, on
which their commands are sent together; elsewhere it is redis-py's.

Transactions that watch keys, and anything else that needs a connection of its own, run in a thread.
"""

from collections.abc import Iterable
from functools import cached_property, partial
from typing import Any, Final, cast

import redis
import redis.asyncio
import redis.client

from backburner.queue.pool import bridge
from backburner.redis.pipelined import PipelinedClient

_TIMEOUT: Final = 5.0
_KINDS: Final[dict[Any, Any]] = {
    redis.Connection: redis.asyncio.Connection,
    redis.SSLConnection: redis.asyncio.SSLConnection,
    redis.UnixDomainSocketConnection: redis.asyncio.UnixDomainSocketConnection,
}
_OPTIONS: Final = {"host", "port", "path", "db", "username", "password", "credential_provider", "protocol"}


class Client(redis.Redis):
    """A `redis.Redis` that waits in the way that suits its caller."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """As redis-py's."""
        if not bridge.is_here():
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        if self._shared is None:
            return bridge.in_thread(partial(super().execute_command, *args, **options))
        reply = bridge.wait_for(self._shared.execute_command(*_words(args)))
        return self.parsed(reply, args[0], options)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> "_Pipeline":
        """As redis-py's."""
        pipeline = _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        pipeline.whose = self
        return pipeline

    def parsed(self, reply: Any, command: Any, options: dict[str, Any]) -> Any:
        """A reply as redis-py would return it."""
        options.pop("keys", None)
        callbacks: Any = self.response_callbacks
        callback = callbacks.get(command)
        return reply if callback is None else callback(reply, **options)

    def execute_all(self, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
        """Send several commands in one write. A reply may be an error.

        Raises:
            redis.RedisError: the server cannot be reached.
        """
        if self._shared is None:
            raise NotImplementedError
        futures = [self._shared.execute_command(*_words(command)) for command in commands]
        replies: list[Any] = []
        for future in futures:
            try:
                replies.append(bridge.wait_for(future))
            except redis.ResponseError as error:
                replies.append(error)
        return replies

    @property
    def is_shared(self) -> bool:
        """Whether `execute_all` can be used here."""
        return bridge.is_here() and self._shared is not None

    @cached_property
    def _shared(self) -> PipelinedClient | None:
        pool = self.connection_pool
        kind = next((twin for own, twin in _KINDS.items() if issubclass(pool.connection_class, own)), None)
        if kind is None or "Sentinel" in pool.connection_class.__name__:
            return None
        given = pool.connection_kwargs
        options = {name: value for name, value in given.items() if name in _OPTIONS or name.startswith("ssl_")}
        timeout = given.get("socket_timeout") or _TIMEOUT
        twin = redis.asyncio.ConnectionPool(
            connection_class=kind, socket_timeout=timeout, socket_connect_timeout=timeout, **options
        )
        url = f"unix://{given['path']}" if "path" in given else f"redis://{given['host']}:{given['port']}"
        return PipelinedClient(url, timeout=timeout, client=redis.asyncio.Redis(connection_pool=twin))


class _Pipeline(redis.client.Pipeline):
    whose: Client

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        if not bridge.is_here():
            return super().execute(raise_on_error)
        simple = not (self.scripts or self.watching or self.explicit_transaction)
        if not simple or not self.whose.is_shared:
            return bridge.in_thread(super().execute, raise_on_error)
        stack, whole = list(self.command_stack), bool(cast("Any", self).transaction)
        self.reset()
        if not stack:
            return []
        commands = [command for command, _ in stack]
        if whole:
            # Nothing comes in between: commands sent in one write stay together on the connection.
            *queued, replies = self.whose.execute_all([("MULTI",), *commands, ("EXEC",)])
            if isinstance(replies, redis.ResponseError):
                raise next((error for error in queued if isinstance(error, redis.ResponseError)), replies)
        else:
            replies = self.whose.execute_all(commands)
        for reply in replies:
            if raise_on_error and isinstance(reply, redis.ResponseError):
                raise reply
        return [
            reply if isinstance(reply, Exception) else self.whose.parsed(reply, command[0], options)
            for reply, (command, options) in zip(replies, stack, strict=True)
        ]


def _words(command: tuple[Any, ...]) -> tuple[Any, ...]:
    name, *rest = command
    return (*name.split(), *rest) if isinstance(name, str) and " " in name else command
