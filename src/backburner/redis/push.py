"""Parsers for redis-py's blocking connections that can do more than its own: hand push messages (RESP3) to the reader
of the connection instead of to a handler, and hand out replies that arrived together."""

from collections.abc import Callable
from typing import Any

import redis
import redis.connection
from hiredis import PushNotification

__all__ = ["PushParser", "ReadAheadParser", "read_ahead"]


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


def read_ahead(connection: Any) -> tuple[Callable[[], None], Callable[[], Any], Any]:
    """`wait`, `arrived` and `nothing` of a connection's `ReadAheadParser`. The attribute that holds the parser is
    private to redis-py: should it change, the functions returned do nothing, and `read_response` does all the work."""
    parser = getattr(connection, "_parser", None)
    if isinstance(parser, ReadAheadParser):
        return parser.wait, parser.arrived, parser.nothing
    return lambda: None, lambda: None, None
