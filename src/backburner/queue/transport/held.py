"""Messages that a worker holds under a lease, until each is settled in one way or another.

A message knows whether its task has begun; a channel's `QoS` knows which messages are held, and whether that is
certain. Decisions about a message are handed to the consumer, which sends them.
"""

import json
import logging
import weakref
from collections import defaultdict
from typing import Any

import kombu.serialization
import kombu.transport.redis
import kombu.transport.virtual
import kombu.utils.json

from backburner.queue.transport import worker
from backburner.queue.transport.consumer import Consumer, consumer_of

log = logging.getLogger("backburner.queue")

stock: Any = kombu.transport.redis  # the stubs leave out most of what is used here
virtual: Any = kombu.transport.virtual  # as above
serialization: Any = kombu.serialization  # as above

_JSON = "application/json"
_read = json.JSONDecoder().raw_decode  # `json.loads` looks for spaces around it too, which Celery does not write
_RESERVES = 4
"""Fraction of a worker's prefetch count that must be free before it takes more, unless it has only what it runs."""


class Message(virtual.Message):  # type: ignore[misc]  # as above
    """A message that is kept as failed if it cannot be decoded (stock Celery acknowledges it) or kills too many
    workers."""

    killed = False
    """Whether a process died of it; see `backburner.queue.transport.request`."""
    unrecorded = ""
    """Why what its job came to could not be recorded; see `backburner.queue.recording`."""

    def begin(self) -> bool:
        """Whether its task may be run: it was not given back, and nobody else can have it. Makes no request."""
        if worker.stopping or not self.channel.qos.holds(self.delivery_tag):
            self.give_back()
        return self._is_first_said("begun")

    def give_back(self) -> None:
        """Put it back for another worker, unless its task was begun."""
        if self._is_first_said("given back") and not self.acknowledged:
            self.channel.qos.give_back(self.delivery_tag)
            self._state = "REQUEUED"

    def _is_first_said(self, fate: str) -> bool:
        # Several threads may ask; of dict's methods this one is atomic.
        return bool(self.__dict__.setdefault("fate", fate) == fate)

    def _decode(self) -> Any:
        try:
            return self._plain() or super()._decode()
        except Exception as error:
            self.undecodable = error
            raise

    def _plain(self) -> Any:
        """The body, if it is JSON without the types that kombu adds, for which kombu makes a decoder each time."""
        body, type_, encoding = self.body, self.content_type, self.content_encoding
        if (
            (type_, encoding) != (_JSON, "utf-8")
            or type_ not in (self.accept or ())
            or not isinstance(body, bytes)
            or b"__type__" in body
            or serialization.registry._decoders.get(_JSON) is not kombu.utils.json.loads  # noqa: SLF001  # nobody else tells
        ):
            return None
        try:
            text = body.decode()
            value, end = _read(text)
        except (ValueError, RecursionError):
            return None  # kombu then raises its own error
        return value if end == len(text) else None

    def forget(self) -> None:
        """Let go of it: the process that ran the task has acknowledged it."""
        self.channel.qos.forget(self.delivery_tag)

    def done(self) -> bool:
        """Acknowledge ahead of `ack`, from any thread. ``False`` if it cannot be decoded, and `ack` is to keep it."""
        if self._error is not None:
            return False
        self.channel.qos.ack(self.delivery_tag)
        return True

    def ack(self, multiple: bool = False) -> None:
        if self._error is None or self.acknowledged:
            super().ack(multiple)
            return
        self.channel.qos.bury(self.delivery_tag, "undecodable", repr(self._error))
        self._state = "REJECTED"

    @property
    def _error(self) -> BaseException | None:
        """Why it cannot be decoded."""
        return getattr(self, "undecodable", None) or (self.errors[0][1] if self.errors else None)

    def reject(self, requeue: bool = False) -> None:
        task = self.headers.get("task", "")
        if self.acknowledged or (requeue and not (self.killed or self.unrecorded)):
            super().reject(requeue)
        elif requeue:
            if self.killed:
                self.channel.qos.crashed(self.delivery_tag)
            else:
                self.channel.qos.unrecorded(self.delivery_tag, self.unrecorded)
            self._state = "REQUEUED"
        else:
            reason, detail = ("rejected", "") if worker.knows(task) else ("unknown task", task)
            self.channel.qos.bury(self.delivery_tag, reason, detail)
            self._state = "REJECTED"


class QoS(stock.QoS):  # type: ignore[misc]  # as above
    """What a channel has delivered and nobody has settled.

    It has only weak references: a message that everybody has dropped (Celery clears its buffers when a connection is
    lost) can no longer be acknowledged, so it goes back. Messages fetched one at a time have no lease, but are kept as
    in stock kombu until they are settled, or for the visibility timeout.
    """

    def __init__(self, channel: Any, prefetch_count: int = 0) -> None:
        super().__init__(channel, prefetch_count)
        self._on_collect.cancel()
        self.held: dict[int, tuple[weakref.ref[Message], Consumer]] = {}
        """With the consumer that leases each: one channel of a connection may deliver what another claimed."""

    @property
    def credit(self) -> int:
        """How many more messages may be delivered."""
        return self.prefetch_count - len(self.held) if self.prefetch_count else 1_000_000

    @property
    def wanted(self) -> int:
        """How many to ask for now: none while so many are here that nobody has to wait for more. One at a time costs
        the server ten times as much as many at once.
        """
        credit = self.credit
        if self.is_asked_each_time:
            return min(credit, max(1, worker.slots() - len(worker.reserved()))) if self.can_consume() else 0
        if len(self.held) > worker.slots() and credit * _RESERVES < self.prefetch_count:
            return 0
        return credit

    @property
    def is_asked_each_time(self) -> bool:
        """Whether Celery has put a `can_consume` of its own here (worker_disable_prefetch), which knows whether anybody
        is free."""
        return "can_consume" in vars(self)

    def can_consume(self) -> bool:
        return self.credit > 0

    def can_consume_max_estimate(self) -> int:
        return max(self.credit, 0)

    def append(self, message: Message, delivery_tag: Any) -> None:
        if isinstance(delivery_tag, int) and (consumer := consumer_of(delivery_tag)):
            self.held[delivery_tag] = weakref.ref(message, lambda _: self._forgotten(delivery_tag)), consumer
            consumer.live.add(delivery_tag)

    def fetched(self, message: Message) -> None:
        """Keep a message that no consumer was given."""
        super().append(message, message.delivery_tag)

    def get(self, delivery_tag: Any) -> Any:
        return self.held[delivery_tag][0]()

    def holds(self, delivery_tag: Any) -> bool:
        """Whether it is certain that nobody else can have the message."""
        if not isinstance(delivery_tag, int):
            return True
        _, consumer = self.held.get(delivery_tag, (None, None))
        return consumer is not None and consumer.holds(delivery_tag)

    def ack(self, delivery_tag: Any) -> None:
        if delivery_tag in self._delivered:
            super().ack(delivery_tag)
        elif consumer := self._let_go(delivery_tag):
            consumer.acknowledge(delivery_tag)

    def forget(self, delivery_tag: Any) -> None:
        """Stop holding a message that the server knows to be settled."""
        self._let_go(delivery_tag)

    def reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        if delivery_tag in self._delivered:
            super().reject(delivery_tag, requeue)
        elif not requeue:
            self.bury(delivery_tag, "rejected", "")
        elif consumer := self._let_go(delivery_tag):
            consumer.restore([delivery_tag], seen=True)

    def give_back(self, delivery_tag: Any) -> None:
        """Put back a message that no task has seen."""
        if consumer := self._let_go(delivery_tag):
            consumer.restore([delivery_tag], seen=False)

    def bury(self, delivery_tag: Any, reason: str, detail: object) -> None:
        """Move the message to the failed ones; one that was fetched is dropped, as in stock kombu."""
        if delivery_tag in self._delivered:
            super().reject(delivery_tag)
        elif consumer := self._let_go(delivery_tag):
            consumer.bury(delivery_tag, reason, detail)

    def crashed(self, delivery_tag: Any) -> None:
        """Note that a process died of the message."""
        if consumer := self._let_go(delivery_tag):
            consumer.crashed(delivery_tag)

    def unrecorded(self, delivery_tag: Any, detail: str) -> None:
        """Note that what the message's job came to could not be recorded."""
        if consumer := self._let_go(delivery_tag):
            consumer.unrecorded(delivery_tag, detail)

    def restore_unacked(self) -> list[Any]:
        """Put everything back, now.

        Raises:
            redis.RedisError: the server cannot be reached.
        """
        numbers = defaultdict(list)
        for number in list(self.held):
            if consumer := self._let_go(number):
                numbers[consumer].append(number)
        for consumer, its in numbers.items():
            consumer.restore(its, seen=True)
            consumer.flush()
        self._restore_fetched()
        return []

    def restore_unacked_once(self, stderr: Any = None) -> None:  # noqa: ARG002  # kombu's name
        """Called at the end of a channel. The worker's tasks go on, and its consumer settles their messages."""
        try:
            if worker.is_here():
                self._restore_fetched()
            else:
                self.restore_unacked()
        except self.channel.connection_errors as error:
            log.warning("messages could not be put back at once: %s", error)

    def _restore_fetched(self) -> None:
        if self._delivered:  # else there may be no connection either
            super().restore_unacked()

    def _let_go(self, number: Any) -> Consumer | None:
        """Stop holding a message. Returns its consumer, if it was held until now."""
        _, consumer = self.held.pop(number, (None, None))
        if consumer is not None:
            consumer.live.discard(number)
        return consumer

    def _forgotten(self, number: int) -> None:
        if consumer := self._let_go(number):
            consumer.restore([number], seen=True)
