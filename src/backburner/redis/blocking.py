"""Automatic pipelining for threads: they share one connection, and commands issued while it is busy leave in one write.

Threads of one interpreter pay for each other's system calls. So the thread that finds the connection free sends and
reads for everyone waiting at that moment, hands out the replies, and passes the connection to the next thread that has
arrived meanwhile (flat combining). Nobody waits to be joined by others: a thread that is alone has its reply in one
round trip. redis-py still connects, logs in, speaks TLS, asks Sentinels and parses.

Nothing is retried, and nothing is sent twice. Commands that block in the server (BLPOP, SUBSCRIBE, MULTI) do not belong
here: everybody else would have to wait for them.
"""

import os
from _thread import allocate_lock
from time import monotonic
from typing import Any, Final, Literal

import redis

from backburner.redis.client import connect
from backburner.redis.command import Pipeline, again, packed
from backburner.redis.push import ReadAheadParser, Reader
from backburner.redis.url import ServerURL

__all__ = ["BlockingClient"]

_UNPROVEN: Final = 0.05
"""Seconds of disuse after which a connection is checked before it is used: the server may have closed it."""
_QUEUED: Final = 2
"""How many time budgets a caller may wait if another thread has the connection: that thread's, and its own."""


class BlockingClient:
    """The part of `redis.Redis` that a store needs, for all threads of a process and its forked children.

    It connects at the first command, and again at the first one after a connection was lost. When a connection fails,
    so do the commands that it carried and those that wait for it; whether the server has executed them is unknown.

    Args:
        url: any URL that `ServerURL` understands; with Sentinel, the current master is asked for at each connection.
        timeout: seconds for each step of connecting, and for each reply; twice that if another thread comes first.
        name: the client name, as CLIENT LIST shows it.

    Raises:
        ConfigError: the URL is not that of a server.
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
        """How many callers shared the last write."""
        return self._line.crowd

    def execute_command(self, *command: Any) -> Any:
        """Send a command, each word as an argument of its own. Returns the server's reply, unconverted.

        Raises:
            redis.RedisError: as from redis-py.
        """
        return self._send(packed(command), 1)[0]

    def pipeline(self, *, transaction: Literal[False] = False) -> Pipeline[list[Any]]:  # noqa: ARG002  # as redis-py
        """Collect commands to be sent together."""
        return Pipeline(lambda commands: self._send(b"".join(commands), len(commands)))

    def patience(self) -> float:
        """Seconds that a caller waits: for another thread that has the connection, and then for its own reply."""
        return self._timeout * _QUEUED

    def close(self) -> None:
        """Close the connection once pending replies have arrived. The client can be used again; it reconnects."""
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
    """The commands of one caller, and their outcome."""

    __slots__ = ("commands", "count", "done", "failure", "leads", "replies", "turn")

    def __init__(self, commands: bytes, count: int) -> None:
        self.commands = commands
        self.count = count
        self.replies: list[Any] = []
        """In the order of the commands; an error that the server replied is among them."""
        self.failure: Exception | None = None
        self.done = False
        self.leads = False
        """Whether its caller has the connection, and must pass it on."""
        self.turn = allocate_lock()
        """Held while its caller waits."""

    def end(self, failure: Exception | None = None) -> None:
        """Complete the request and wake its caller. A second call does nothing."""
        if not self.done:
            self.failure = failure
            self.done = True
        if self.turn.locked():
            self.turn.release()


class _Line:
    """A connection, and the callers that wait for it.

    A signal handler may raise an exception after any function call. Whoever has the connection must pass it on even
    then, or nobody would ever get it again: so no call lies between the steps that take it, nor between those that pass
    it on.
    """

    def __init__(self, pool: Any, server: str) -> None:
        self._pool = pool
        self._server = server
        self._connection: Any = None  # of who leads, as are these three
        self._reader: Reader | None = None
        self._used_at = 0.0
        self.crowd = 0
        """How many callers the last write was for."""
        self._lock = allocate_lock()  # over the rest
        self._busy = False
        self._closed = False
        self._waiting: list[_Request] = []

    def ask(self, request: _Request, patience: float) -> list[Any]:
        """Have a request sent, by this thread or by another one that leads, within `patience` seconds. The replies."""
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
        """Close the connection as soon as nobody needs it any more."""
        with self._lock:
            self._closed = True
            if not self._busy:
                self._disconnect()

    def _lead(self, request: _Request) -> None:
        """Send and read for everyone who waits."""
        batch = [request]
        try:
            with self._lock:
                batch, self._waiting = [request, *self._waiting], []
            self.crowd = len(batch)
            reader = self._connected()
            self._connection.send_packed_command((b"".join([one.commands for one in batch]),), check_health=False)
            reader.wait()
            for one in batch:
                one.replies = reader.read(one.count)
                one.end()
            self._used_at = monotonic()
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
            elif request in self._waiting:  # it gives up
                self._waiting.remove(request)

    def _connected(self) -> Reader:
        if self._connection is not None and monotonic() - self._used_at > _UNPROVEN and is_over(self._connection):
            self._disconnect()
        if self._connection is None or self._reader is None:
            options = self._pool.connection_kwargs | {"parser_class": ReadAheadParser}
            self._connection = self._pool.connection_class(**options)
            self._connection.connect()
            self._reader = Reader(self._connection)
        return self._reader

    def _disconnect(self) -> None:
        connection, self._connection, self._reader = self._connection, None, None
        if connection is not None:
            connection.disconnect()


def is_over(connection: Any) -> bool:
    """Whether a connection on which nothing was asked has ended: what has come is the end, or belongs to nobody."""
    try:
        return bool(connection.can_read(0))
    except redis.ConnectionError:
        return True
