"""The kombu side of publishing: within a budget, leaving a record of each job.

It also decides which URLs lead to our transports, and how kombu finds these.
"""

import itertools
import math
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import cached_property
from queue import Empty
from time import monotonic
from typing import Any, Final
from urllib.parse import urlsplit
from weakref import ref

import kombu
import redis
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as stock
from kombu.utils.imports import symbol_by_name
from kombu.utils.json import dumps, loads
from redis.backoff import NoBackoff
from redis.retry import Retry

from backburner.errors import ConfigError
from backburner.queue.deadline import kept, limited, remaining
from backburner.queue.delivery import ENQUEUE, Place
from backburner.queue.job_record import JobRecord, lines_of
from backburner.queue.keys import Keys
from backburner.queue.transport.wire import script
from backburner.redis.client import driver

_BUDGET: Final = 1.0
"""Seconds to publish in, for programs without a budget of their own."""
_SILENCE: Final = 5.0
"""Seconds for which no events are sent to a server that did not answer."""

# redis-py would retry ten times, for some seconds. The caller may have an event loop to serve.
_RETRIED_ONCE: Final = Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))
"""A second time is for connections that were lost while nobody used them."""
_NOT_RETRIED: Final = Retry(NoBackoff(), 0, supported_errors=())
"""For connections that an event loop watches. Told that the old connection is readable, kombu would wait for broadcasts
on a new one: for ever, if there are none."""

_PURGE: Final = script("purge")
_PURGED_AT_ONCE: Final = 1000
"""About how many delayed messages one call examines: the server does nothing else meanwhile."""


class delivery:  # noqa: N801  # used as a function is
    """Make every attempt to publish in the block one delivery, which kombu may repeat without doubling it."""

    def __init__(self) -> None:
        self.token = uuid.uuid4().hex

    def __enter__(self) -> None:
        # Only the block holds a strong reference to it, as with a deadline.
        self._before = _delivery.set(ref(self))

    def __exit__(self, *_: object) -> None:
        _delivery.reset(self._before)


_delivery: ContextVar["ref[delivery] | None"] = ContextVar("backburner_delivery", default=None)


class PublishingChannel(stock.Channel):
    """Enqueues jobs, and reads their records."""

    from_transport_options = (*stock.Channel.from_transport_options, "job_record_expires", "replicas")

    job_record_expires: float = 86_400
    replicas: Any = 0
    _silent_until = 0.0

    # Of the class below; its stubs leave them out.
    _expires: dict[str, int]
    _q_for_pri: Callable[[str, int], str]

    @cached_property
    def keys(self) -> Keys:
        """The names of keys on the server."""
        return Keys(self.global_keyprefix, self.sep)

    def job_record(self, job_id: str) -> JobRecord | None:
        """What was recorded of the job when it was enqueued; ``None`` if it is not there."""
        key = self.keys.job(job_id)
        with self.plain_client.pipeline(transaction=False) as pipeline:
            pipeline.get(key)
            pipeline.pexpiretime(key)
            text, expires = pipeline.execute()
        if text is None or expires == -2:  # it is gone; it may have expired in between
            return None
        return JobRecord.read(text.decode(), expires)

    def record_later(self, lines: Mapping[str, str]) -> None:
        """Record jobs that will be enqueued later, by id, each with what its record says of the task."""
        keep = math.ceil(self.job_record_expires)
        with self.plain_client.pipeline(transaction=False) as pipeline:
            for job_id, line in lines.items():
                pipeline.set(self.keys.job(job_id), f"-{keep}\n{lines_of(line, '', '')}", ex=keep, nx=True)
            pipeline.execute()

    @property
    def wanted_replicas(self) -> int:
        """How many replicas must have a job before it counts as enqueued.

        Raises:
            ConfigError: the configured value is not such a number.
        """
        if type(self.replicas) is not int or self.replicas < 0:
            raise ConfigError(f"broker_transport_options['replicas'] is {self.replicas!r}; it must be 0 or more")
        return self.replicas

    def cancel_delayed(self, job_id: str) -> bool:
        """Remove a delayed job. Returns whether it was there."""
        keys = self.keys
        with self.plain_client.pipeline() as pipeline:  # one transaction
            pipeline.zrem(keys.delayed, job_id)
            pipeline.hdel(keys.delayed_entries, job_id)
            removed, _ = pipeline.execute()
        return bool(removed)

    def _put(self, queue: str, message: dict[str, Any], **options: Any) -> None:
        headers = message.get("headers") or {}
        if "task" not in headers or "id" not in headers:
            super()._put(queue, message, **options)
            return
        keys = self.keys
        expires = self._expires.get(queue, 0)
        place = Place(
            prefix=self.global_keyprefix,
            key=self.global_keyprefix + self._q_for_pri(queue, self._get_message_priority(message, reverse=False)),
            queue=queue,
            task=headers["task"],
            keep=self.job_record_expires,
            expiring=keys.lists(queue) if expires else (),
            expires_ms=expires,
            ignored=bool(headers.get("ignore_result")),
            replicas=self.wanted_replicas,
        )
        current = kept(_delivery)
        token = message["properties"]["delivery_tag"] if current is None else current.token
        arguments = place.arguments([dumps(message)], token, unix_time(headers.get("eta")))
        call = {"keys": place.keys([headers["id"]]), "args": arguments}
        if not place.replicas:
            self._enqueue(**call, client=self.plain_client)
            return
        with self.plain_client.pipeline(transaction=False) as pipeline:  # one connection for both
            self._enqueue(**call, client=pipeline)
            pipeline.execute_command(*place.wait(remaining() or _BUDGET))  # type: ignore[no-untyped-call]
            place.check_replicas(pipeline.execute()[-1])

    def _unprefixed_lists(self, queue: str) -> tuple[str, ...]:
        # kombu's own client prefixes keys by itself.
        return Keys(separator=self.sep).lists(queue)

    # Producers use four lists for a queue, as stock kombu does; consumers sort what is in them into ten.
    # No transactions here: a server whose memory is full refuses them, even those that read or make room.

    def _size(self, queue: str) -> int:
        with self.conn_or_acquire() as client, client.pipeline(transaction=False) as pipeline:
            for list_ in self._unprefixed_lists(queue):
                pipeline.llen(list_)
            return sum(pipeline.execute())

    def _purge(self, queue: str) -> int:
        # The delayed ones first: one that becomes due meanwhile is then in a list.
        removed = self._purge_delayed(queue)
        with self.conn_or_acquire() as client, client.pipeline(transaction=False) as pipeline:
            for list_ in self._unprefixed_lists(queue):
                pipeline.llen(list_).delete(list_)
            counts: list[int] = pipeline.execute()
            return removed + sum(counts[::2])

    def _purge_delayed(self, queue: str) -> int:
        keys = self.keys
        places = [keys.delayed, keys.delayed_entries, *keys.lists(queue)]
        purge: Any = self.plain_client.register_script(_PURGE.text)
        removed, cursor = 0, b"0"
        some: int
        while True:
            cursor, some = purge(keys=places, args=[cursor, _PURGED_AT_ONCE])
            removed += some
            if cursor == b"0":
                return removed

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        with suppress(redis.OutOfMemoryError):  # of a transaction at its end, which deletes the lists
            super()._delete(queue, *args, **kwargs)
        with self.conn_or_acquire() as client:
            client.delete(*self._unprefixed_lists(queue))

    def _has_queue(self, queue: str, **_: Any) -> bool:
        with self.conn_or_acquire() as client:
            return bool(client.exists(*self._unprefixed_lists(queue)))

    def _get(self, queue: str, timeout: float | None = None) -> Any:  # noqa: ARG002  # kombu's name
        with self.conn_or_acquire() as client:
            for list_ in self._unprefixed_lists(queue):
                if message := client.rpop(list_):
                    return loads(message.decode())
        raise Empty

    def _put_fanout(self, *args: Any, **kwargs: Any) -> None:
        # Each heartbeat or other event would hold up the worker's event loop until the server is given up.
        if monotonic() < self._silent_until:
            raise redis.ConnectionError("the server has not answered a moment ago")
        try:
            super()._put_fanout(*args, **kwargs)  # type: ignore[misc]  # as above
        except redis.TimeoutError:
            self._silent_until = monotonic() + _SILENCE
            raise

    @property
    def plain_client(self) -> "redis.Redis":
        """A client that takes keys as they are, prefix and all; kombu's own prefixes one key of a script only."""
        return redis.Redis(connection_pool=self.pool)

    @cached_property
    def _enqueue(self) -> Any:
        return self.plain_client.register_script(ENQUEUE.text)

    def _get_pool(self, asynchronous: bool = False) -> Any:
        if getattr(self.connection, "client", None) is None:
            # kombu fails here with an AttributeError when a job that outlived its connection is
            # acknowledged, and the worker ends. As a connection error it is a line in the log, and the
            # consumer that has it is asked instead.
            raise redis.ConnectionError("the connection was lost")
        pool = super()._get_pool(asynchronous=asynchronous)  # type: ignore[misc]  # as above
        pool.connection_class = limited(pool.connection_class)
        pool.connection_kwargs.update(
            driver(),
            client_name=self.client_name or "backburner-broker",
            retry=_NOT_RETRIED if asynchronous else _RETRIED_ONCE,
        )
        return pool


_PLAIN, _SENTINEL = "backburner", "backburner-sentinel"
# kombu takes a transport for a Unix socket from the URL's scheme only, and a scheme must be an alias.
TRANSPORT_ALIASES[_PLAIN] = "backburner.queue.transport:Transport"
TRANSPORT_ALIASES[_SENTINEL] = "backburner.queue.transport:SentinelTransport"
# The URL that logs and monitors show.
kombu.Connection.resolve_aliases |= {_PLAIN: "redis", _SENTINEL: "sentinel"}


def by_ours(url: Any) -> tuple[Any, dict[str, Any]]:
    """The URL and the arguments that make a kombu connection use a transport from here; other brokers as they are."""
    if not isinstance(url, str):
        return url, {}
    if url.startswith("redis+socket://"):
        return url.replace("redis", _PLAIN, 1), {}
    if url.startswith(("redis://", "rediss://")):
        return url, {"transport": _PLAIN}
    if url.startswith("sentinel://"):
        # After an error kombu moves on to the next Sentinel's URL and takes the transport from it. All
        # Sentinels are asked each time anyway, so it may stay where it is.
        return url, {"transport": _SENTINEL, "failover_strategy": _first_host_again}
    return url, {}


def transport_for(url: str) -> type[Any]:
    """The transport class for a server's URL."""
    found: type[Any] = symbol_by_name(TRANSPORT_ALIASES[_SENTINEL if url.startswith("sentinel://") else _PLAIN])
    return found


def _first_host_again(urls: list[str]) -> Iterator[str]:
    return itertools.repeat(urlsplit(urls[0]).hostname or "")


def unix_time(eta: str | None) -> float | None:
    """When a message is due that tells so in its headers; times without a zone are UTC."""
    if eta is None:
        return None
    due = datetime.fromisoformat(eta)
    return (due if due.tzinfo else due.replace(tzinfo=UTC)).timestamp()
