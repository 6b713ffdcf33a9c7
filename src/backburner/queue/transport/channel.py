"""The kombu side of consuming: channels whose messages are leased.

Stock kombu does the rest: bindings, broadcasts, remote control, queue lengths and purging, and consumers that do not
acknowledge (replies to remote control), where a lost message does no harm.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from difflib import get_close_matches
from functools import cache
from time import monotonic
from typing import Any

import kombu.transport.redis
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from backburner.errors import ConfigError
from backburner.queue.keys import PRIORITIES, check_name
from backburner.queue.pool import bridge
from backburner.queue.transport import worker
from backburner.queue.transport.claims import Claims, LeaseLost
from backburner.queue.transport.claims import Message as Claimed
from backburner.queue.transport.consumer import Consumer
from backburner.queue.transport.held import Message, QoS
from backburner.queue.transport.polling import CLAIM, TICK
from backburner.queue.transport.reading import check, read
from backburner.queue.transport.redis import PublishingChannel, unix_time
from backburner.queue.transport.wire import Wire, script, tried_again

log = logging.getLogger("backburner.queue")

stock: Any = kombu.transport.redis  # the stubs leave out most of what is used here

_UNKNOWN_DELAYS = (1.0, 10.0)
"""Seconds for which a message is postponed if its task is unknown here, at least and at most."""

_TOLERATE = script("tolerate")

_idle: dict[str, list[Consumer]] = {}
"""By server, consumers whose connection was lost while they held messages; the next channel takes them over."""


class Channel(PublishingChannel):
    """A channel to a Redis or Valkey server. The class attributes are the defaults of its options; times are in
    seconds."""

    Message = Message
    QoS = QoS
    # Of the class before, whose stubs leave them out.
    client: Any
    connection: Any
    connection_errors: tuple[type[BaseException], ...]
    qos: Any
    _fanout_queues: Any
    _in_poll: Any
    from_transport_options = (
        *PublishingChannel.from_transport_options,
        "lease",
        "max_deliveries",
        "unknown_task_grace",
        "watchdog",
    )

    socket_timeout = 4.0
    """Seconds for the server to answer: one that has fallen silent must not block the event loop."""
    lease = 30.0
    """Seconds without a sign of life after which a worker is taken for dead. It gives one every few seconds."""
    max_deliveries = 3
    """How many workers may die of a message before it fails."""
    unknown_task_grace = 300.0
    """Seconds after which a message fails if no worker knows its task."""
    watchdog = 60.0
    """Seconds after which a worker whose event loop does not run is hung, and gives no more signs of life."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.consumer: Consumer | None = None
        self.claims: Claims | None = None
        self._leased_queues: dict[str, str] = {}
        self._turns: deque[str] = deque()
        super().__init__(*args, **kwargs)
        self.handlers[CLAIM] = self._claimed
        _check(self)

    # What is consumed

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        """Consume from a queue, under leases unless it needs no acknowledgement.

        Raises:
            ConfigError: the queue's name cannot be used.
        """
        check_name(queue)
        if not no_ack and queue not in self._fanout_queues:
            self._leased_queues[kwargs["consumer_tag"]] = queue
            self._turns.append(queue)
            self._tell_consumer()
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def _basic_cancel(self, consumer_tag: str) -> Any:
        if (queue := self._leased_queues.pop(consumer_tag, None)) is not None:
            self._turns.remove(queue)
        if not self._leased_queues and self.consumer is not None:
            self.consumer.rest()
        return super()._basic_cancel(consumer_tag)  # type: ignore[misc]  # the stubs leave it out

    @property
    def active_queues(self) -> list[str]:  # type: ignore[override]  # the stubs are wrong
        """What stock kombu polls."""
        leased = {*self._leased_queues.values()}  # asked each time the event loop comes round
        return [queue for queue in super().active_queues if queue not in leased]

    def _queue_bind(self, exchange: str, routing_key: str, pattern: Any, queue: str) -> None:
        with tried_again():
            try:
                super()._queue_bind(exchange, routing_key, pattern, queue)  # type: ignore[misc]  # as above
            except redis.OutOfMemoryError:
                # No worker could start that makes room. Broadcasts need no table, and replies no queue that lasts.
                if not (queue in self._fanout_queues or queue in self._expires or self._is_bound(exchange, queue)):
                    raise

    def _is_bound(self, exchange: str, queue: str) -> bool:
        return any(bound[-1] == queue for bound in self.get_table(exchange))

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        """Fetch one message, if there is one; without a lease, because there may be no event loop to watch over."""
        message = super().basic_get(queue, no_ack=True, **kwargs)
        if message is not None and not no_ack:
            self.qos.fetched(message)
        return message

    # Taking messages

    def tick(self) -> None:
        """Ask for messages, if there is room for them. To be called each time before the event loop waits."""
        if not self._leased_queues or worker.stopping:
            return
        if self.claims is not None and self.claims.consumer.over:
            self._leave()
        if self.claims is None:
            with tried_again():
                self.consumer = self._consumer()
            self.consumer.give_back = self.give_back
            self._tell_consumer()
            try:
                self.claims = Claims(self._connect_async, self.consumer, self.keys)
            except BaseException:
                self._leave_to_next(self.consumer)
                raise
            self.consumer.release = self.claims.release
            self.connection.cycle.serve(self)
        self.claims.consumer.beat()
        if self._deliver_unseen(self.claims):
            self.tick()  # again, because jobs may have been run
            return
        self._turns.rotate(-1)
        # Without an event loop, nothing comes back here as soon as there is room again.
        ahead = worker.is_here() and self.connection.cycle.loop is not None and not self.qos.is_asked_each_time
        try:
            self.claims.tick(self._turns, self.qos.wanted, ahead=ahead)
        except self.connection_errors:
            self._leave(lost=True)
            raise

    def wait(self) -> float:
        """Seconds until `tick` has something to do, if nothing happens before."""
        if self.claims is None or not self._leased_queues or self.qos.wanted <= 0:
            return TICK
        return min(TICK, max(0.0, self.claims.next_at - monotonic()))

    def _tell_consumer(self) -> None:
        if self.consumer is not None:
            pairs = [(priority, self.priority(priority)) for priority in reversed(PRIORITIES)]
            self.consumer.sorts = [
                self.keys.list(queue, each)
                for queue in self._turns
                for pair in pairs
                if len({*pair}) == 2
                for each in pair
            ]

    def _consumer(self) -> Consumer:
        left = _idle.pop(self._server, [])
        for consumer in left:
            if consumer.is_mine and not consumer.over:
                consumer.connect = self._connector()
                _idle[self._server] = [other for other in left if other is not consumer]
                return consumer
        consumer = Consumer(
            self._connector(), self.keys, lease=self.lease, max_deliveries=self.max_deliveries, watchdog=self.watchdog
        )
        consumer.start()
        return consumer

    def _claimed(self) -> bool:
        claims = self.claims
        if claims is None:
            return False
        delivered = False
        try:
            while True:
                if claims.read() and self._leased_queues and not worker.stopping:
                    claims.awake(self._turns, self.qos.wanted)
                delivered |= self._deliver_unseen(claims)
                if not claims.connection.can_read(timeout=0):
                    break
        except LeaseLost:
            self._leave()
            self.tick()
            return delivered
        except self.connection_errors:
            self._leave(lost=True)
            raise
        if not delivered:
            self.tick()  # the server says that there are messages: the event loop would get to it, but later
        self.connection.cycle.wake_in(self.wait())
        return delivered

    def _deliver_unseen(self, claims: Claims) -> bool:
        """Deliver what has been claimed, as far as there is room for it."""
        delivered = False
        try:
            while self.qos.credit > 0 and (claimed := claims.next()):
                delivered |= self._deliver(claims, claimed)
        except self.connection_errors:
            self._leave(lost=True)
            raise
        except BaseException:
            # The caller has the message it got, but nobody would keep account of others that came along.
            claims.put_back()
            raise
        return delivered

    def give_back(self) -> None:
        """Put back the messages that no task has seen yet. The lease's thread calls this when the worker is told to
        stop."""
        if self.claims is not None:
            self.claims.put_back()
        for request in reversed(worker.reserved()):  # so that the first one ends up in front
            if getattr(request.message, "channel", None) is self:
                request.message.give_back()

    def _deliver(self, claims: Claims, claimed: Claimed) -> bool:
        number, list_, text = claimed
        queue = self.keys.queue(list_)
        consumer = claims.consumer
        if queue not in self._leased_queues.values() or worker.stopping or not consumer.holds(number):
            claims.unread(claimed)
            claims.put_back()  # with all that came after it, for they keep their order if they go back together
            return False
        try:
            payload = read(text)
            headers, properties = payload["headers"] or {}, payload["properties"]
            tag, task, due = properties["delivery_tag"], headers.get("task"), unix_time(headers.get("eta"))
            if body := payload.get("body"):
                payload["body"] = self.decode_body(body, properties.get("body_encoding"))
            check(payload, is_job=task is not None and worker.is_here())
        except Exception as error:  # noqa: BLE001  # whatever it is, it cannot be read
            log.warning("a message in the queue %s cannot be read (%r) and is among those that failed", queue, error)
            consumer.bury(number, "undecodable", repr(error))
            return False
        if due is not None and due > claims.now:
            consumer.postpone(number, due)
            return False
        try:
            if task is not None and not worker.knows(task) and self._tolerate(consumer, number, tag, task):
                return False
        except redis.ResponseError as error:
            log.warning("how long the task %r has been unknown cannot be told (%s); it is put off", task, error)
            consumer.postpone(number, claims.now + _UNKNOWN_DELAYS[1])
            return False
        except self.connection_errors:
            claims.unread(claimed)
            raise
        if "eta" in headers:
            # It is due by the server's clock. Celery would compare the worker's, and wait again if that is behind.
            headers["backburner_eta"] = headers["eta"] or headers.get("backburner_eta")
            headers["eta"] = None
        properties["delivery_tag"] = number
        self.connection._deliver(payload, queue)  # noqa: SLF001  # as kombu's own channels do
        return True

    def decode_body(self, body: Any, encoding: str | None = None) -> Any:
        """A message's body; unchanged if it was already decoded when the message was delivered."""
        return body if isinstance(body, bytes) else super().decode_body(body, encoding)

    def _tolerate(self, consumer: Consumer, number: int, tag: str, task: str) -> bool:
        keys, wire = self.keys, Wire(self._connector())
        try:
            put_off = wire.call(
                (
                    _TOLERATE,
                    4,
                    keys.leased(consumer.name),
                    keys.delayed,
                    keys.delayed_entries,
                    keys.unknown(tag),
                    number,
                    self.unknown_task_grace,
                    *_UNKNOWN_DELAYS,
                )
            )
        finally:
            wire.close()
        if put_off:
            if self.claims is not None:
                self.claims.let_others_first(2 * _UNKNOWN_DELAYS[1])
            log.warning(
                "nobody here knows the task %r; it is put off, for workers that do. Is its module in include=[…]?", task
            )
        return bool(put_off)

    def restore_from_stock(self) -> None:
        """Put back what stock workers have held for longer than the visibility timeout."""
        if not self._leased_queues:
            return
        with self.conn_or_acquire() as client:
            if not client.exists(self.unacked_index_key):
                return
        qos = stock.QoS(self)
        qos._on_collect.cancel()  # noqa: SLF001  # it holds nothing
        qos.restore_visible(num=self.unacked_restore_limit, interval=1)

    def due_next(self, queues: Iterable[str], most: int) -> list[tuple[float, Any]]:
        """The delayed messages of these queues among the first so many: when each is due, in Unix time, and the
        message."""
        lists = set(self.keys.lists(*queues))
        return bridge.block(lambda: self._due_next(lists, most))

    def _due_next(self, lists: set[str], most: int) -> list[tuple[float, Any]]:
        client: Any = self.plain_client
        due = client.zrange(self.keys.delayed, 0, most - 1, withscores=True)
        entries = client.hmget(self.keys.delayed_entries, [member for member, _ in due]) if due else []
        found = []
        for (_, at), entry in zip(due, entries, strict=True):
            list_, _, message = (entry or b"").partition(b"\n")  # empty if it has become due since
            if list_.decode() in lists:
                with suppress(ValueError):  # an unreadable message is dealt with when it is due
                    found.append((at, read(message)))
        return found

    # Connections and the end

    @property
    def rests(self) -> bool:
        """Whether nothing is expected on the connection for BRPOP, so that it has ended if anything comes."""
        return not self._in_poll

    def _connector(self) -> Callable[..., Any]:
        """A function that makes connections, and can outlive this channel."""
        pool, named = self.pool, self._named
        return lambda **options: pool.connection_class(**pool.connection_kwargs | options | named)

    def _connect_async(self, **options: Any) -> Any:
        return self.async_pool.connection_class(**self.async_pool.connection_kwargs | options | self._named)

    @property
    def _named(self) -> dict[str, str]:
        """The name of all connections, if the user has given one."""
        return {"client_name": self.client_name} if self.client_name else {}

    @property
    def _server(self) -> str:
        return f"{self.connection.client.as_uri(include_password=True)} {self.global_keyprefix}"

    def _leave(self, *, lost: bool = False) -> None:
        """Let go of the consumer.

        It lives on for the next channel if it holds messages, has decisions to send, or the server was `lost`.
        """
        self.connection.lost |= lost
        claims = self.claims
        if claims is None:
            return
        self.connection.cycle.leave(self)
        self.claims = None
        claims.close()
        claims.put_back()
        claims.consumer.rest()
        stays = lost or claims.consumer.live or not claims.consumer.has_said_all()
        if stays and not claims.consumer.over:
            self._leave_to_next(claims.consumer)
        else:
            claims.consumer.stop()

    def _leave_to_next(self, consumer: Consumer) -> None:
        _idle.setdefault(self._server, []).append(consumer)

    def close(self) -> None:
        """Close the channel. Messages that a Celery worker still runs stay leased."""
        if not self.closed and self.connection is not None:
            for tag in list(self._leased_queues):
                self._basic_cancel(tag)
            self.qos.restore_unacked_once()
            self._leave()
            if self.connection.lost and (client := self.__dict__.pop("client", None)) and client.connection:
                # Stock kombu would ask the server to forget who listens here, and wait for an answer.
                client.connection.disconnect()
        super().close()


class SentinelChannel(Channel, stock.SentinelChannel):  # type: ignore[misc]  # as above
    """A channel to the master that Sentinels name."""

    from_transport_options = (*stock.SentinelChannel.from_transport_options, *Channel.from_transport_options)

    sentinel_kwargs: dict[str, Any] | None = None

    def _sentinel_managed_pool(self, asynchronous: bool = False) -> Any:
        # redis-py would retry a Sentinel that is away ten times, for some seconds. The next one is asked instead.
        patience = {"socket_timeout": self.socket_timeout, "socket_connect_timeout": self.socket_connect_timeout}
        self.sentinel_kwargs = {**patience, "retry": Retry(NoBackoff(), 0), **(self.sentinel_kwargs or {})}
        return super()._sentinel_managed_pool(asynchronous)


_OWN = {"lease", "max_deliveries", "replicas", "unknown_task_grace", "watchdog"}
_KNOWN = {
    *SentinelChannel.from_transport_options,
    # kombu looks for these in other places than a channel.
    *("max_retries", "interval_start", "interval_step", "interval_max", "connect_retries_timeout"),
    *("errback", "callback", "polling_interval", "reauth_check_interval"),
}
"""What ``broker_transport_options`` may hold."""


def _check(channel: Channel) -> None:
    for option in ("lease", "max_deliveries", "unknown_task_grace", "watchdog"):
        value = getattr(channel, option)
        least = 1 if option in {"lease", "max_deliveries"} else 0
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < float("inf"):
            raise ConfigError(
                f"broker_transport_options[{option!r}] is {value!r}; it must be a number, {least} or more"
            )
    for option in channel.connection.client.transport_options.keys() - _KNOWN:
        _warn(str(option))


@cache
def _warn(option: str) -> None:
    meant = get_close_matches(option, _KNOWN, 1)
    hint = f"Do you mean {meant[0]!r}?" if meant else f"There are {', '.join(sorted(_OWN))}, and those of kombu"
    log.warning("broker_transport_options[%r] has no effect: there is no such option. %s", option, hint)
