"""Connections that one caller has for himself: to send, do something else, and read later, or to be rid of what
redis-py does around each command.

Nothing is retried. Who shares a connection with others wants `BlockingClient`.
"""

import os
from collections.abc import Callable
from typing import Any

import redis

from backburner.redis.command import packed


class SpareConnections:
    """Of a pool of redis-py's, which gives its options only. For all threads of a process and its forked children.

    A connection that is not given back, for whatever reason, is closed by being forgotten.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._pid = os.getpid()
        self._free: list[Any] = []

    def ask(self, *command: Any) -> Callable[[], Any]:
        """Send a command. What is returned reads the reply.

        Raises:
            redis.RedisError: it could not be sent; or, on reading, as from redis-py.
        """
        if self._pid != os.getpid():
            self._pid, self._free = os.getpid(), []  # the parent's connections are the parent's
        try:
            connection = self._free.pop()
        except IndexError:
            connection = self._pool.connection_class(**self._pool.connection_kwargs)
        try:
            connection.send_packed_command((packed(command),))
        except BaseException:
            connection.disconnect()
            raise

        def reply() -> Any:
            try:
                found = connection.read_response()
            except redis.ReadOnlyError:
                connection.disconnect()  # a master that became a replica; a new connection finds the new one
                raise
            except redis.ResponseError:
                self._free.append(connection)
                raise
            except BaseException:
                connection.disconnect()
                raise
            self._free.append(connection)
            return found

        return reply

    def close(self) -> None:
        """Close those that nobody has."""
        while self._free:
            self._free.pop().disconnect()
