"""Every error Backburner raises.

    BackburnerError
    ├── ConfigError            a setting or a URL is wrong; raised while building, never later
    ├── StoreError
    │   ├── StoreUnavailable   the server refused, stalled or went away
    │   └── ValueTooLarge      more bytes than the store takes
    ├── CodecError             a value that cannot be stored, or (internally) bytes that cannot be read
    ├── LockTimeout            somebody else held the lock for too long
    ├── CallbackTimeout        the callback of `remember` took too long, and there was nothing else to give
    └── QueueError
        ├── PublishError       the job was not enqueued
        ├── AlreadyQueued      a job with that identity is waiting or running
        ├── ResultTimeout      no result within the time given
        ├── ResultUnavailable  the result backend refused, stalled or went away
        ├── UnknownJob         nobody ever enqueued a job with that id
        └── JobFailed          the job ended with an error that cannot be rebuilt here

Errors of redis-py and kombu are translated where they enter, in one place each, with ``raise … from``.
What your own code raises (a callback, a task) passes through as it is.
"""

__all__ = [
    "AlreadyQueued",
    "BackburnerError",
    "CallbackTimeout",
    "CodecError",
    "ConfigError",
    "JobFailed",
    "LockTimeout",
    "PublishError",
    "QueueError",
    "ResultTimeout",
    "ResultUnavailable",
    "StoreError",
    "StoreUnavailable",
    "UnknownJob",
    "ValueTooLarge",
]


class BackburnerError(Exception):
    """The root of all errors raised by Backburner itself."""


class ConfigError(BackburnerError, ValueError):
    """A setting, a URL or an argument of a constructor is wrong; the message says which and what to write."""


class StoreError(BackburnerError):
    """The cache's store could not do what was asked."""


class StoreUnavailable(StoreError):
    """The server refused the connection, did not answer within the budget, or went away."""


class ValueTooLarge(StoreError):
    """The encoded value is larger than the store accepts."""


class CodecError(BackburnerError, ValueError):
    """A value cannot be turned into bytes, or bytes cannot be turned into a value."""


class LockTimeout(BackburnerError, TimeoutError):
    """A lock was not obtained within the time given."""


class CallbackTimeout(BackburnerError, TimeoutError):
    """A callback took longer than the caller wanted to wait; it goes on, and its value is stored."""


class QueueError(BackburnerError):
    """Something about a job: enqueueing it, finding it, waiting for it."""


class PublishError(QueueError):
    """The broker did not take the job within the budget, so the job was not enqueued."""


class AlreadyQueued(QueueError):
    """A job with the same identity is already waiting or running."""


class ResultTimeout(QueueError, TimeoutError):
    """The job did not finish within the time given; it may still do so."""


class ResultUnavailable(QueueError):
    """What became of a job could not be read; the job itself is not affected."""


class UnknownJob(QueueError, LookupError):
    """No job with this id was ever enqueued, or its record has expired."""


class JobFailed(QueueError):
    """The job raised an exception whose type cannot be rebuilt in this process."""
