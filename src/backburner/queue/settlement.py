"""What the server is asked when a job's state is stored: one call of ``settle.lua``, for one state or for many.

A worker hands results to the consumer of their messages, which stores them together with the acknowledgements, a few
milliseconds' worth at a time (`backburner.queue.transport.decisions`); those of a prefork pool's processes take the way
of `backburner.queue.carrying` there. Anybody else has them stored at once. Nothing is sent here.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from backburner.redis.script import Script

SETTLE: Final = Script.load("states", "settle", package=__package__)


class Stored(NamedTuple):
    """A state that is to be stored."""

    key: bytes
    json: bytes | str
    keep: int
    """Seconds; 0 for ever."""
    began: str = ""
    """When the job did, in the form of `date_done`, if whoever ran it has stored nothing since; else ''."""
    number: Any = None
    """Of the job's message, if it came from a queue: without the result, a consumer does not acknowledge it."""


class Offer(NamedTuple):
    """What a worker would do with the result of a job that runs in a process of its pool."""

    server: tuple[Any, ...]
    """On which it would be stored. See `server_of`."""
    leases: str
    """The hash that the job's message is leased in, if the process is to store and acknowledge by itself; else ''."""
    number: int
    """Of the message, there."""


def settling(leases: str, acknowledged: Sequence[int], states: Sequence[Stored]) -> tuple[Any, ...]:
    """How many keys, KEYS and ARGV of the script. `leases` may be empty if nothing is acknowledged."""
    # Who may use keys with a certain prefix only may not name an empty one.
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
    """What tells whether two connections of redis-py's lead to the same database, as the same user."""
    names = ("path", "host", "port", "db", "username")
    return tuple(str(getattr(connection, name, None) or "") for name in names)
