"""One connection to the server, and scripts called by their digests on it.

redis-py connects, logs in, speaks TLS, asks Sentinels and parses. Nothing is retried. A server that does not know a
script (it was restarted, flushed or replaced) is given its text.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import redis
from redis.exceptions import ClusterError, NoScriptError, TryAgainError

from backburner.redis.command import packed
from backburner.redis.script import Script

log = logging.getLogger("backburner.queue")

Call = tuple[Any, ...]
"""A script, how many keys, the keys and the arguments; or the words of a command."""

_PASSING: Final = (redis.OutOfMemoryError, redis.ReadOnlyError, ClusterError, TryAgainError)
_ALSO_PASSING: Final = ("MISCONF", "NOREPLICAS", "BUSY")
"""Error replies for which redis-py has no classes."""


def will_pass(error: Any) -> bool:
    """Whether an error reply is temporary, so that the server will accept the same later."""
    said = str(error).rpartition("of pipeline caused error: ")[2]  # redis-py's text comes before the server's
    return isinstance(error, _PASSING) or said.startswith(_ALSO_PASSING)


@contextmanager
def tried_again() -> Iterator[None]:
    """Have Celery retry what the server refuses temporarily, as if it could not be reached. Other errors would end a
    worker or a job.

    Raises:
        redis.ConnectionError: the server refuses.
    """
    try:
        yield
    except redis.ResponseError as error:
        if will_pass(error):
            log.warning("the server takes nothing for now: %s", error)  # Celery says no more than that it is lost
            raise redis.ConnectionError(str(error)) from error
        raise


def script(name: str) -> Script:
    """A script of this package: what ``entries.lua`` defines, then what its own file says."""
    return Script.load("entries", name, package=__package__)


def pack(call: Call) -> bytes:
    """A call as it is sent.

    Raises:
        redis.DataError: it contains something that cannot be sent.
        UnicodeError: it contains a lone surrogate.
    """
    return packed(_words(call))


class Wire:
    """A connection on which replies are awaited, in the thread that sends.

    Args:
        connect: makes a redis-py connection.
        protocol: the version of RESP, 2 or 3.
    """

    def __init__(self, connect: Callable[..., Any], **options: Any) -> None:
        self.connection = connect(**options)
        self.connection.connect()

    def send(self, call: Call, *, whole: bool = False) -> None:
        """Send a call, a script with its text if `whole`."""
        self._send(packed(_words(call, whole=whole)))

    def read(self) -> Any:
        """The next reply, or a message that was pushed, which is a ``PushNotification``.

        Raises:
            redis.RedisError: the server's answer is an error, or the connection was lost.
        """
        return self.connection.read_response(push_request=True)

    def call(self, call: Call) -> Any:
        """Send and read."""
        self.send_all([call])
        [reply] = self.read_all([call])
        if isinstance(reply, redis.ResponseError):
            raise reply
        return reply

    def send_all(self, calls: Sequence[Call]) -> None:
        """Send calls, for `read_all` to read their replies. Nothing is sent if one of them cannot be packed."""
        self._send(b"".join(map(pack, calls)))

    def read_all(self, calls: Sequence[Call]) -> list[Any]:
        """The replies to calls that were sent, in order; for those that the server refused, the error."""
        replies = [self._reply() for _ in calls]
        for i, reply in enumerate(replies):
            if isinstance(reply, NoScriptError):
                self.send(calls[i], whole=True)
                replies[i] = self._reply()
        return replies

    def _send(self, message: bytes) -> None:
        self.connection.send_packed_command([message], check_health=False)

    def _reply(self) -> Any:
        try:
            return self.read()
        except redis.ResponseError as error:
            return error

    def close(self) -> None:
        """Close the connection. It cannot be used again."""
        self.connection.disconnect()


def _words(call: Call, *, whole: bool = False) -> Call:
    script = call[0]
    if not isinstance(script, Script):
        return call
    return ("EVAL", script.text, *call[1:]) if whole else ("EVALSHA", script.sha, *call[1:])
