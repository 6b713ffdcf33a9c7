"""Parsers for redis-py's blocking connections that can do more than its own: hand push messages (RESP3) to the reader
of the connection instead of to a handler, and hand out replies that arrived together."""

from collections.abc import Callable
from typing import Any

import redis
import redis.connection
from hiredis import PushNotification

__all__ = ["PushParser", "ReadAheadParser", "Reader", "parser_of"]


class PushParser(redis.connection.DefaultParser):  # type: ignore[misc, valid-type]  # redis-py has no types for it
    """Use as ``parser_class=PushParser``, and read with ``push_request=True``."""

    def handle_push_response(self, response: Any, **_: Any) -> Any:
        return response


class ReadAheadParser(redis.connection.DefaultParser):  # type: ignore[misc, valid-type]  # as above
    """After one reply was read, `arrived` returns those that came with it, at a fraction of the cost of
    `read_response`."""

    nothing: Any = None
    """What `arrived` returns if there is nothing more that it can return."""
    _kept: Any = None

    def on_connect(self, connection: Any, **options: Any) -> None:
        super().on_connect(connection, **options)
        self._kept = None
        self.nothing = self._reader.gets()  # since nothing was asked yet

    def arrived(self) -> Any:
        """The next plain reply. Errors and push messages are left to the connection's `read_response`."""
        reply = self._reader.gets()
        if isinstance(reply, (Exception, PushNotification)):
            self._kept = reply
            return self.nothing
        return reply

    def wait(self) -> None:
        """Wait until more bytes have arrived.

        Raises:
            redis.ConnectionError, redis.TimeoutError: as from `read_response`.
        """
        try:
            self.read_from_socket()
        except TimeoutError as error:  # redis-py 8 tells of both as it does elsewhere, earlier ones do not
            raise redis.TimeoutError(f"nothing has come: {error}") from error
        except OSError as error:
            raise redis.ConnectionError(f"the connection ended: {error}") from error

    def read_response(self, *args: Any, **options: Any) -> Any:
        kept, self._kept = self._kept, None
        if isinstance(kept, redis.ConnectionError):
            raise kept
        return kept if isinstance(kept, Exception) else super().read_response(*args, **options)


class Reader:
    """Reads replies from a connection that was made with a `ReadAheadParser`, for as long as it stays connected.

    The attribute that holds the parser is private to redis-py: should it change, `wait` does nothing, and
    `read_response` does all the work.
    """

    __slots__ = ("_arrived", "_nothing", "_read_response", "wait")

    def __init__(self, connection: Any) -> None:
        parser = parser_of(connection)
        self.wait: Callable[[], None] = parser.wait if parser else lambda: None
        """Wait for the first bytes of replies that are all still to come. Mostly this brings all of them, for less than
        `read_response` takes."""
        self._arrived: Callable[[], Any] = parser.arrived if parser else lambda: None
        self._nothing = parser.nothing if parser else None
        self._read_response: Callable[[], Any] = connection.read_response

    def read(self, count: int) -> list[Any]:
        """So many replies; an error that the server replied is among them.

        Raises:
            redis.RedisError: the connection is lost.
        """
        arrived, nothing, replies = self._arrived, self._nothing, []
        for _ in range(count):
            if (reply := arrived()) is nothing:
                try:
                    reply = self._read_response()
                except redis.ResponseError as error:
                    reply = error
            replies.append(reply)
        return replies


def parser_of(connection: Any) -> ReadAheadParser | None:
    """The parser of a connection, if it is one of these."""
    parser = getattr(connection, "_parser", None)
    return parser if isinstance(parser, ReadAheadParser) else None
