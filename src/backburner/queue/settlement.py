"""The request that stores jobs' states: one call of ``settle.lua``, for one state or for many.

A worker hands results to the consumer of their messages, which stores them together with the acknowledgements, a few
milliseconds' worth at a time (`backburner.queue.transport.decisions`). Results of a prefork pool's processes get there
by way of `backburner.queue.carrying`. Everybody else has states stored at once. Nothing is sent here.
"""

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any, Final, NamedTuple

from backburner.redis.script import Script

log = logging.getLogger("backburner.queue")

SETTLE: Final = Script.load("states", "settle", package=__package__)


class Stored(NamedTuple):
    """A state to be stored."""

    key: bytes
    json: bytes | str
    keep: int
    """Seconds that it is kept; 0: for ever."""
    began: str = ""
    """When the job started, in the form of `date_done`, if no state of this run has been stored yet; otherwise ''."""
    number: Any = None
    """The number of the job's message, if it came from a queue: a consumer does not acknowledge it without the
    result."""


class Offer(NamedTuple):
    """A worker's offer to store the result of a job that runs in a process of its pool."""

    server: tuple[Any, ...]
    """The server on which it would be stored; see `server_of`."""
    leases: str
    """The hash that leases the job's message, if the process is to store and acknowledge by itself; otherwise ''."""
    number: int
    """The message's number in that hash."""


def settling(leases: str, acknowledged: Sequence[int], states: Sequence[Stored]) -> tuple[Any, ...]:
    """The number of keys, KEYS and ARGV of the script. `leases` may be empty if nothing is acknowledged."""
    # An ACL that allows only keys with a certain prefix forbids the empty key.
    words: list[Any] = [
        1 + len(states),
        leases or states[0].key,
        *(state.key for state in states),
        len(acknowledged),
        *acknowledged,
    ]
    for state in states:
        words += (state.json, state.keep, state.began)
    return tuple(words)


def server_of(connection: Any) -> tuple[Any, ...]:
    """Identifies the database and the user of a redis-py connection: equal for connections to the same."""
    names = ("path", "host", "port", "db", "username")
    return tuple(str(getattr(connection, name, None) or "") for name in names)


def check_told(reply: Any) -> None:
    """Log, once, if what was stored may not be published; `reply` is that of ``settle.lua`` or ``report.lua``."""
    if isinstance(reply, bytes):
        _warn(reply.decode(errors="replace"))


@cache
def _warn(refusal: str) -> None:
    log.warning("what jobs come to is stored, but who waits for it is not told: %s", refusal)
