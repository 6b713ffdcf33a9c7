"""Connections that one caller has to itself: to send a command now and read its reply later, or to skip what redis-py
does around each command.

Nothing is retried. For a connection that threads share, see `BlockingClient`.
"""

import os
from collections.abc import Callable
from typing import Any

import redis

from backburner.redis.command import packed
from backburner.redis.push import ReadAheadParser, Reader


class SpareConnections:
    """Connections with the options of one of redis-py's pools; none is taken from the pool itself. For all threads of a
    process and its forked children.

    A connection whose reply is never read is closed when it is garbage-collected.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._pid = os.getpid()
        self._free: list[tuple[Any, Reader]] = []

    def ask(self, *command: Any) -> Callable[[], Any]:
        """Send a command. Returns a function that reads the reply.

        Raises:
            redis.RedisError: the command could not be sent; the function returned raises as redis-py does.
        """
        replies = self.ask_all(packed(command), 1)

        def reply() -> Any:
            [found] = replies()
            if isinstance(found, redis.ResponseError):
                raise found
            return found

        return reply

    def ask_all(self, commands: bytes, count: int) -> Callable[[], list[Any]]:
        """Send so many commands, packed. What is returned reads the replies; what the server refuses has its error for
        a reply.

        Raises:
            redis.RedisError: they could not be sent; or, on reading, the connection was lost.
        """
        if self._pid != os.getpid():
            self._pid, self._free = os.getpid(), []  # the parent's connections are the parent's
        try:
            connection, reader = self._free.pop()
        except IndexError:
            connection, reader = self._connected()
        try:
            connection.send_packed_command((commands,))
        except BaseException:
            connection.disconnect()
            raise

        def replies() -> list[Any]:
            try:
                reader.wait()
                found = reader.read(count)
            except BaseException:
                connection.disconnect()
                raise
            if any(isinstance(each, redis.ReadOnlyError) for each in found):
                connection.disconnect()  # a master that became a replica; a new connection finds the new one
            else:
                self._free.append((connection, reader))
            return found

        return replies

    def close(self) -> None:
        """Close the connections that are not in use."""
        while self._free:
            connection, _ = self._free.pop()
            connection.disconnect()

    def _connected(self) -> tuple[Any, Reader]:
        connection = self._pool.connection_class(**self._pool.connection_kwargs | {"parser_class": ReadAheadParser})
        try:
            connection.connect()
            return connection, Reader(connection)
        except BaseException:
            connection.disconnect()
            raise
