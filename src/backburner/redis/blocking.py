"""Automatic pipelining for threads: they share one connection, and what they ask for while it is busy leaves in one
write.

Threads of one interpreter pay for each other's system calls. So the thread that finds the connection free sends and
reads for all that wait by then, hands out their replies, and leaves the connection to the next that has come meanwhile
(flat combining). Nobody waits to be joined by others: a thread that is alone has its reply in one round trip. redis-py
still connects, logs in, speaks TLS, asks Sentinels and parses.

Nothing is retried, nothing is sent twice. Commands that block in the server (BLPOP, SUBSCRIBE, MULTI) do not belong
here: everybody would wait for them.
"""

import os
from _thread import allocate_lock
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, Literal

import redis

from backburner.redis.client import connect
from backburner.redis.command import Pipeline, again, packed
from backburner.redis.push import ReadAheadParser, read_ahead
from backburner.redis.url import ServerURL

__all__ = ["BlockingClient"]

_UNPROVEN: Final = 0.05
"""Seconds after which an unused connection is looked at before it is used: the server may have closed it."""
_QUEUED: Final = 2
"""Budgets in which a caller that waits for another thread has its reply: the one under way, and its own."""


class BlockingClient:
    """The part of `redis.Redis` that a store needs, for all threads of a process and its forked children.

    It connects at the first command, and again at the first one after a connection was lost. A connection that fails
    fails what it carried and what waits for it, and is closed; which of these commands the server has carried out,
    nobody knows.

    Args:
        url: any URL that `ServerURL` understands; with Sentinel, the current master is asked for at each connection.
        timeout: seconds for each step of connecting, and for each reply; twice that where another thread is in between.
        name: what CLIENT LIST shows.

    Raises:
        ConfigError: the URL is no server's.
    """

    def __init__(self, url: str, *, timeout: float = 0.25, name: str = "backburner") -> None:
        self._server = ServerURL.parse(url).masked
        self._timeout = timeout
        self._client = connect(url, timeout=timeout, name=name)  # kept: a Sentinel's pool lives as long as it does
        self._begin()

    def __repr__(self) -> str:
        return f"<BlockingClient {self._server}>"

    @property
    def crowd(self) -> int:
        """How many callers the last write was for."""
        return self._line.crowd

    def execute_command(self, *command: Any) -> Any:
        """Send a command, each word an argument of its own; the reply is as the server gives it.

        Raises:
            redis.RedisError: as from redis-py.
        """
        return self._send(packed(command), 1)[0]

    def pipeline(self, *, transaction: Literal[False] = False) -> Pipeline[list[Any]]:  # noqa: ARG002  # as redis-py
        """Collect commands that are sent together."""
        return Pipeline(lambda commands: self._send(b"".join(commands), len(commands)))

    def patience(self) -> float:
        """Seconds that a caller waits for another thread, which has the connection, and then for its own reply."""
        return self._timeout * _QUEUED

    def close(self) -> None:
        """Close the connection, once it has brought what was asked for. The client can be used again; it connects
        anew."""
        self._leave_connection()
        self._client.close()

    def _leave_connection(self) -> None:
        line = self._line
        self._begin()
        line.close()

    def _begin(self) -> None:
        self._line = _Line(self._client.connection_pool, self._server)
        self._pid = os.getpid()  # last: another thread that sees it takes the line for this process's

    def _send(self, commands: bytes, count: int) -> list[Any]:
        if self._pid != os.getpid():
            self._begin()  # the parent's connection is the parent's, and its threads are not here
        replies = self._line.ask(_Request(commands, count), self.patience()) if count else []
        for reply in replies:
            if isinstance(reply, redis.ResponseError):
                if isinstance(reply, redis.ReadOnlyError):
                    # A master that became a replica. Its name or its Sentinels may know the new one by now.
                    self._leave_connection()
                raise reply
        return replies


class _Request:
    """What one caller asks for in one write, and what became of it."""

    __slots__ = ("commands", "count", "done", "failure", "leads", "replies", "turn")

    def __init__(self, commands: bytes, count: int) -> None:
        self.commands = commands
        self.count = count
        self.replies: list[Any] = []
        """In the order of the commands; an error of the server's is one of them."""
        self.failure: Exception | None = None
        self.done = False
        self.leads = False
        """Its caller has the connection, and must pass it on."""
        self.turn = allocate_lock()
        """Held while its caller waits."""

    def end(self, failure: Exception | None = None) -> None:
        """Let its caller have what there is. A second time does nothing."""
        if not self.done:
            self.failure = failure
            self.done = True
        if self.turn.locked():
            self.turn.release()


class _Line:
    """A connection, and those who wait for it.

    An exception may come from a signal's handler, after any call. Whoever has the connection passes it on in any case,
    or nobody would ever have it again: so no call lies between the steps that take it, nor between those that pass it
    on.
    """

    def __init__(self, pool: Any, server: str) -> None:
        self._pool = pool
        self._server = server
        self._connection: Any = None  # of who leads, as are these four
        self._wait: Callable[[], None] = lambda: None
        self._arrived: Callable[[], Any] = lambda: None
        self._nothing: Any = None
        self._used_at = 0.0
        self.crowd = 0
        """How many callers the last write was for."""
        self._lock = allocate_lock()  # over the rest
        self._busy = False
        self._closed = False
        self._waiting: list[_Request] = []

    def ask(self, request: _Request, patience: float) -> list[Any]:
        """Send a request, by this thread or, within seconds, by another that leads. The replies."""
        try:
            with self._lock:
                if self._busy:
                    request.turn.acquire()
                    self._waiting.append(request)
                else:
                    self._busy = request.leads = True
            if not request.leads and not request.turn.acquire(timeout=patience):
                raise redis.TimeoutError(f"{self._server} did not answer within {patience:.2f} s")
            if request.leads:
                self._lead(request)
        finally:
            try:
                self._leave(request)
            finally:
                if request.leads:
                    self._leave(request)
        if request.failure is not None:
            raise request.failure
        return request.replies

    def close(self) -> None:
        """Close the connection when nobody needs it any more."""
        with self._lock:
            self._closed = True
            if not self._busy:
                self._disconnect()

    def _lead(self, request: _Request) -> None:
        """Send and read for all that wait."""
        batch = [request]
        try:
            with self._lock:
                batch, self._waiting = [request, *self._waiting], []
            self.crowd = len(batch)
            connection = self._connected()
            connection.send_packed_command((b"".join([one.commands for one in batch]),), check_health=False)
            self._wait()  # mostly this brings all of it, for less than `read_response` takes
            for one in batch:
                self._read(one)
                one.end()
        except (redis.RedisError, OSError) as error:
            self._disconnect()
            with self._lock:
                batch, self._waiting = batch + self._waiting, []
            for one in batch:
                one.end(error if one is request else again(error))
        except BaseException:
            self._disconnect()
            for one in batch:
                one.end(redis.ConnectionError(f"the thread that read from {self._server} was interrupted"))
            raise

    def _leave(self, request: _Request) -> None:
        with self._lock:
            if request.leads:
                request.leads = False
                if self._waiting:
                    heir = self._waiting[0]
                    del self._waiting[0]
                    heir.leads = True
                    heir.turn.release()
                else:
                    self._busy = False
                    if self._closed:
                        self._disconnect()
            elif not request.done:  # it gives up
                self._waiting = [other for other in self._waiting if other is not request]

    def _connected(self) -> Any:
        if self._connection is not None and monotonic() - self._used_at > _UNPROVEN and _is_over(self._connection):
            self._disconnect()
        if self._connection is None:
            options = self._pool.connection_kwargs | {"parser_class": ReadAheadParser}
            self._connection = self._pool.connection_class(**options)
            self._connection.connect()
            self._wait, self._arrived, self._nothing = read_ahead(self._connection)
        return self._connection

    def _read(self, request: _Request) -> None:
        connection, arrived, nothing = self._connection, self._arrived, self._nothing
        for _ in range(request.count):
            if (reply := arrived()) is nothing:
                try:
                    reply = connection.read_response()
                except redis.ResponseError as error:
                    reply = error
            request.replies.append(reply)
        self._used_at = monotonic()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()


def _is_over(connection: Any) -> bool:
    # Nothing was asked, so what has come is the end, or belongs to nobody.
    try:
        return bool(connection.can_read(0))
    except redis.ConnectionError:
        return True
