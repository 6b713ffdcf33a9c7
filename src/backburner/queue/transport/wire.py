"""One connection to the server, and scripts called by their digests on it.

redis-py connects, logs in, speaks TLS, asks Sentinels and parses. Nothing is retried. A server that does not know a
script (it was restarted, flushed or replaced) is given its text.
"""

from collections.abc import Callable, Sequence
from typing import Any

import redis
from hiredis import PushNotification
from redis.exceptions import NoScriptError

from backburner.redis.script import Script

Call = tuple[Any, ...]
"""A script, how many keys, the keys and the arguments; or the words of a command."""


def script(name: str) -> Script:
    """A script of this package: what ``entries.lua`` defines, then what its own file says."""
    return Script.load("entries", name, package=__package__)


class Wire:
    """A connection on which replies are awaited, in the thread that sends.

    Args:
        connect: makes a connection of redis-py's.
        protocol: of RESP, 2 or 3.
    """

    def __init__(self, connect: Callable[..., Any], **options: Any) -> None:
        self.connection = connect(**options)
        self.connection.connect()

    def send(self, call: Call, *, whole: bool = False) -> None:
        """Send a call, a script with its text if `whole`."""
        self.connection.send_command(*_words(call, whole=whole), check_health=False)

    def read(self) -> Any:
        """The next reply; ``None`` for a message that was pushed.

        Raises:
            redis.RedisError: the server's answer is an error, or the connection was lost.
        """
        reply = self.connection.read_response(push_request=True)
        return None if isinstance(reply, PushNotification) else reply

    def call(self, call: Call) -> Any:
        """Send and read."""
        return self.call_all([call])[0]

    def call_all(self, calls: Sequence[Call]) -> list[Any]:
        """Send all, then read all. An error in one is raised when all replies are read."""
        self.send_all(calls)
        return self.read_all(calls)

    def send_all(self, calls: Sequence[Call]) -> None:
        """Send calls, for `read_all` to read their replies."""
        pack = self.connection.pack_command
        packed = b"".join(part for call in calls for part in pack(*_words(call)))
        self.connection.send_packed_command([packed], check_health=False)

    def read_all(self, calls: Sequence[Call]) -> list[Any]:
        """The replies to calls that were sent. An error in one is raised when all are read."""
        replies: list[Any] = []
        for _ in calls:
            try:
                replies.append(self.read())
            except redis.ResponseError as error:
                replies.append(error)
        for i, reply in enumerate(replies):
            if isinstance(reply, NoScriptError):
                self.send(calls[i], whole=True)
                replies[i] = self.read()
        for reply in replies:
            if isinstance(reply, redis.ResponseError):
                raise reply
        return replies

    def close(self) -> None:
        """Close the connection. It can't be used again."""
        self.connection.disconnect()


def _words(call: Call, *, whole: bool = False) -> Call:
    script = call[0]
    if not isinstance(script, Script):
        return call
    return ("EVAL", script.text, *call[1:]) if whole else ("EVALSHA", script.sha, *call[1:])
