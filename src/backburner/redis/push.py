"""Parsers for redis-py's connections that give more than its own: push messages (RESP3), to whoever reads the
connection instead of to handlers, and replies that were read together."""

from collections.abc import Callable
from typing import Any

import redis
import redis.connection
from hiredis import PushNotification

__all__ = ["PushParser", "ReadAheadParser", "read_ahead"]


class PushParser(redis.connection.DefaultParser):  # type: ignore[misc, valid-type]  # redis-py has no types for it
    """For blocking connections: ``parser_class=PushParser``, and read with ``push_request=True``."""

    def handle_push_response(self, response: Any, **_: Any) -> Any:
        return response


class ReadAheadParser(redis.connection.DefaultParser):  # type: ignore[misc, valid-type]  # as above
    """For blocking connections: after one reply was read, `arrived` gives those that came with it, at a fraction of
    the cost of a `read_response`."""

    nothing: Any = None
    """What `arrived` gives when no more has come that it can give."""
    _kept: Any = None

    def on_connect(self, connection: Any, **options: Any) -> None:
        super().on_connect(connection, **options)
        self._kept = None
        self.nothing = self._reader.gets()  # since nothing was asked yet

    def arrived(self) -> Any:
        """A plain reply. An error or a push message is left to the connection's `read_response`, which knows what
        becomes of it."""
        reply = self._reader.gets()
        if isinstance(reply, (Exception, PushNotification)):
            self._kept = reply
            return self.nothing
        return reply

    def wait(self) -> None:
        """Wait until something has come after what was read.

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
    """`wait`, `arrived` and `nothing` of the `ReadAheadParser` that a connection was given. Where redis-py keeps the
    parser is private to it: should that change, nobody waits, and nothing ever has arrived."""
    parser = getattr(connection, "_parser", None)
    if isinstance(parser, ReadAheadParser):
        return parser.wait, parser.arrived, parser.nothing
    return lambda: None, lambda: None, None
