"""The request that enqueues jobs: one call of ``enqueue.lua``, for one message or for many.

Celery's own path (through the transport) and the producer both use it, so that both leave the same on the server. In
the most common case, one message of a new job that is due now, the same can also be requested as a transaction, which
costs the server less than entering a script. Nothing is sent here.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import redis

from backburner.queue.job_record import line_of, lines_of
from backburner.queue.keys import Keys, check_name
from backburner.redis.command import packed
from backburner.redis.script import Script

ENQUEUE: Final = Script.load("enqueue", package=__package__)
_FOR_REPLICAS: Final = 0.25
"""Fraction of a budget spent waiting for replicas. It is less than what any reply may take."""
_TICK: Final = 0.1
"""Seconds until the server has noticed that a wait has ended, at most."""
_MULTI, _EXEC = packed(("MULTI",)), packed(("EXEC",))
TRANSACTION: Final = 4
"""Commands of `Place.transaction`."""


class NotReplicated(redis.ResponseError):
    """Too few replicas have confirmed the job, though the server has it."""


def is_delivered(replies: Sequence[Any]) -> bool:
    """Whether a `Place.transaction` has put the message into its list."""
    begun, *each, ended = replies
    if isinstance(ended, list):
        each = ended
    elif not isinstance(begun, redis.ResponseError):
        return False
    # Of a user who may not use MULTI, they were carried out one by one.
    return not isinstance(each[-1], redis.ResponseError)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a task's messages go."""

    prefix: str
    """The prefix of all keys; kombu's `global_keyprefix`."""
    key: str
    """Of the list."""
    queue: str
    task: str
    keep: float
    """Seconds that the record of a job is kept, once it may start."""
    channel: str = ""
    """The channel on which to announce messages, if any."""
    expiring: tuple[str, ...] = ()
    """Lists that expire `expires_ms` milliseconds after they were last used."""
    expires_ms: int = 0
    ignored: bool = False
    """Whether the jobs' results are ignored."""
    replicas: int = 0
    """How many replicas must have a message before it counts as delivered."""
    _keys: tuple[str, ...] = field(init=False)
    _record: str = field(init=False)
    _line: str = field(init=False)
    """The task's in the record of a job."""
    _keep: str = field(init=False)
    """Whole seconds."""

    def __post_init__(self) -> None:
        check_name(self.queue)
        keys = Keys(self.prefix)
        object.__setattr__(self, "_keys", (self.key, keys.consumers, keys.delayed, keys.delayed_entries))
        object.__setattr__(self, "_record", keys.job(""))
        object.__setattr__(self, "_line", line_of(self.task, ignored=self.ignored))
        object.__setattr__(self, "_keep", str(math.ceil(self.keep)))

    def keys(self, job_ids: Sequence[str]) -> list[str]:
        """The KEYS of the script."""
        record = self._record
        return [*self._keys, *[record + job_id for job_id in job_ids], *self.expiring]

    def arguments(
        self, messages: Sequence[str], token: str, due: float | None = None, announcements: Sequence[str] = ()
    ) -> list[str]:
        """The ARGV of the script. `due` is Unix time by the clock of this machine."""
        keep, when, now = self._keep, "", ""
        if due is not None:
            reckoned = time.time()
            keep = str(math.ceil(self.keep + max(0.0, due - reckoned)))
            when, now = f"{due:.6f}", f"{reckoned:.6f}"
        return [
            token,
            keep,
            self._line,
            self.queue,
            when,
            now,
            self.channel,
            str(self.expires_ms),
            str(len(messages)),
            *messages,
            *announcements,
        ]

    def transaction(self, job_id: str, message: str, token: str) -> bytes:
        """What the script does for a message of a new job that is due now and that nobody is told of, as so many
        commands. Its record has no time in it: it is that at which the record expires, less what it says."""
        record = f"-{self._keep}\n{lines_of(self._line, token, self.queue)}"
        set_ = packed(("SET", self._record + job_id, record, "EX", self._keep))
        return b"".join((_MULTI, set_, packed(("LPUSH", self.key, message)), _EXEC))

    def wait(self, budget: float) -> tuple[str, str, str]:
        """The command that waits for replicas, sent right after the script. `budget` is in seconds, for both
        together."""
        return "WAIT", str(self.replicas), str(max(1, int(1000 * (_FOR_REPLICAS * budget - _TICK))))

    def check_replicas(self, count: int) -> None:
        """Check that enough replicas have the messages.

        Raises:
            NotReplicated: too few have.
        """
        if count < self.replicas:
            raise NotReplicated(
                f"the server has it and may have it run, but of the {self.replicas} replicas that "
                f"CELERY_PUBLISH_REPLICAS asks for only {count} had it in time"
            )
