"""Names of the keys on the servers; the docstring of `backburner.queue.transport` describes their contents."""

from dataclasses import dataclass
from typing import Any, Final

from backburner.errors import ConfigError

PRIORITIES = list(range(10))
_RESULT: Final = b"celery-task-meta-"
"""What Celery puts before a result's id, after the prefix."""


def check_name(queue: str) -> None:
    """Refuse a queue whose name could not be told from what follows it in an entry or a record.

    Raises:
        ConfigError: it contains a newline.
    """
    if "\n" in queue:
        raise ConfigError(f"there is a newline in the name of the queue {queue!r}: give it another name")


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one database that begin with a prefix, kombu's `global_keyprefix`. The separator, kombu's `sep`,
    stands between a queue's name and a priority."""

    prefix: str = ""
    separator: str = "\x06\x16"

    @property
    def consumers(self) -> str:
        return f"{self.prefix}backburner:consumers"

    @property
    def delayed(self) -> str:
        return f"{self.prefix}backburner:delayed"

    @property
    def delayed_entries(self) -> str:
        return f"{self.prefix}backburner:delayed:entries"

    @property
    def failed(self) -> str:
        return f"{self.prefix}backburner:failed"

    def failure(self, member: str) -> str:
        """What is known about a failed message."""
        return f"{self.failed}:{member}"

    @property
    def untold(self) -> str:
        """The failed messages whose waiters have not been told yet."""
        return f"{self.failed}-untold"

    @property
    def crashes(self) -> str:
        """The beginning of the key that counts a message's crashes."""
        return f"{self.prefix}backburner:crashes:"

    @property
    def unrecorded(self) -> str:
        """The beginning of the key that counts how often what a message's job came to could not be recorded."""
        return f"{self.prefix}backburner:unrecorded:"

    def leased(self, consumer: str = "") -> str:
        return f"{self.prefix}backburner:leased:{consumer}"

    @property
    def slots(self) -> str:
        """How many messages consumers run at a time, of those of which that has changed."""
        return f"{self.prefix}backburner:slots"

    def unknown(self, delivery_tag: str) -> str:
        return f"{self.prefix}backburner:unknown:{delivery_tag}"

    def job(self, job_id: str) -> str:
        return f"{self.prefix}backburner:job:{job_id}"

    @property
    def cancelled(self) -> str:
        """On the results' server: a sorted set of the ids of cancelled jobs, by the time when they may be forgotten."""
        return f"{self.prefix}backburner:cancelled"

    def submission(self, job_id: str) -> str:
        """On the results' server: the owner of a job."""
        return f"{self.prefix}backburner:submission:{job_id}"

    def list(self, queue: str, priority: int) -> str:
        return f"{self.prefix}{queue}{self.separator}{priority}" if priority else f"{self.prefix}{queue}"

    def lists(self, *queues: str) -> tuple[str, ...]:
        """The lists of these queues, the most urgent first; those of one priority in the order of the queues."""
        return tuple(self.list(queue, priority) for priority in PRIORITIES for queue in queues)

    def queue(self, list_: str) -> str:
        """The queue that a list belongs to."""
        return list_[len(self.prefix) :].partition(self.separator)[0]


def keys_of(backend: Any) -> Keys:
    """The keys on the server of a result backend of Celery's for Redis, with the prefix that it puts before its own."""
    return Keys(backend.task_keyprefix.removesuffix(_RESULT).decode())
