"""Taking messages as soon as there are any and there is room for them, on one connection that an event loop watches.

While there are no messages, no requests are made: the server reports changes of the lists (CLIENT TRACKING), and the
last reply said when the next delayed message is due. All idle consumers are told at once. One of them gets the message;
those that come too late pause for a moment, longer the more of them there are, so that many cost the server no more
than a few. Every `_HEARTBEAT` seconds a request is made nevertheless, because a lost connection is silent, too.
"""

import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from time import monotonic
from typing import Any, Final, NamedTuple

import redis
from hiredis import PushNotification
from redis.exceptions import NoScriptError

from backburner.queue.keys import Keys
from backburner.queue.transport import worker
from backburner.queue.transport.consumer import Consumer
from backburner.queue.transport.pace import Pace
from backburner.queue.transport.wire import Call, Wire, script
from backburner.redis.push import PushParser

log = logging.getLogger("backburner.queue")

MOST: Final = 200
"""Messages in one reply: as many as a process can handle before it should do something else."""
_HEARTBEAT: Final = 2.0
_ANSWER: Final = 2.0
"""Seconds after which a server that has not answered is given up."""
_PAUSE_EACH: Final = 0.0005
_LONGEST_PAUSE: Final = 0.05
"""Seconds to pause at most when another consumer was faster: per consumer, and in total."""
_COURTESY: Final = 0.05
"""Seconds by which others may take due messages earlier, after this one had to postpone some."""
_POLL: Final = 0.2
"""Seconds between requests to a server that does not report changes."""

_CLAIM = script("claim")


class Message(NamedTuple):
    """A message as it is on the server."""

    number: int
    list: str
    text: bytes


class LeaseLost(Exception):
    """The server has taken the consumer for dead, or has forgotten it."""


class Claims:
    """A consumer's requests for messages, on one connection.

    Raises:
        redis.RedisError: the server cannot be reached.
    """

    def __init__(self, connect: Callable[..., Any], consumer: Consumer, keys: Keys) -> None:
        self.consumer = consumer
        self._keys = keys
        options = {"protocol": 3, "parser_class": PushParser, "socket_timeout": _ANSWER}
        self._wire = Wire(connect, client_name="backburner-claims", **options)
        self.connection = self._wire.connection
        self._is_told = self._ask_to_be_told()
        self._of_no_interest = {keys.consumers.encode(), keys.leased(consumer.name).encode()}
        """Keys that claims read as well, of whose changes the server tells, too."""
        self._asked_at: float | None = None
        self._asked: Call = ()
        self._pace = Pace()
        self._credit = 0
        """The room there was at the last request."""
        self._is_ahead = False
        """Whether more messages than that have arrived."""
        self._acks: list[int] = []
        self._woken = False
        self._pause_until = 0.0
        self._courteous_until = 0.0
        self.unseen: deque[Message] = deque()
        """Messages that have arrived and nobody has begun; see `next`."""
        self.now = 0.0
        """The server's time at its last answer."""
        self.next_at = 0.0
        """When to make the next request, in monotonic seconds, if nothing happens before."""

    def tick(self, queues: Sequence[str], credit: int, *, ahead: bool) -> None:
        """Request messages, if that makes sense now. To be called before waiting, and at `next_at`.

        Args:
            queues: the queues to take messages from.
            credit: how many messages there is room for.
            ahead: whether more may be taken, while jobs are short; they stay `unseen` until there is room.

        Raises:
            redis.ConnectionError: the server has not answered for too long.
        """
        now = monotonic()
        if credit <= 0:
            worker.signs.claim = now
        if self._asked_at is not None:
            if now - self._asked_at > _ANSWER and not self.connection.can_read(timeout=0):
                raise redis.ConnectionError(f"the server has not answered for {_ANSWER:g} s")
        elif credit > 0 and not self.unseen and now >= self.next_at:
            self._ask(queues, credit, max(credit, self._pace.ask(now)) if ahead else credit, now)

    def awake(self, queues: Sequence[str], credit: int) -> None:
        """Request messages because `read` has found that there may be some.

        Raises:
            redis.ConnectionError: the connection was lost.
        """
        now = monotonic()
        if self._asked_at is None and credit > 0 and not self.unseen and now >= self._pause_until:
            self._ask(queues, credit, credit, now)

    def read(self) -> bool:
        """Read what has arrived, and add its messages to the `unseen` ones. Returns whether the server says that there
        may be more.

        Raises:
            LeaseLost: the server no longer knows the consumer.
            redis.ConnectionError: the connection was lost, or the server refuses.
        """
        try:
            reply = self._wire.read()
        except NoScriptError:
            self._wire.send(self._asked, whole=True)
            return False
        except redis.ResponseError as error:
            if "LEASELOST" in str(error):
                self.consumer.lost()
                raise LeaseLost from None
            # Whether the server got the acknowledgements is unknown, and repeating them does no harm.
            self._unsaid()
            raise redis.ConnectionError(str(error)) from error
        if not isinstance(reply, PushNotification):
            self._answered(reply)
            return False
        _, changed = reply
        # Leases are renewed all the time. If everybody asked for messages then, it would be the more often for each the
        # more consumers there are.
        if changed is not None and self._of_no_interest.issuperset(changed):
            return False
        self._woken = True
        if self._asked_at is None:
            self.next_at = min(self.next_at, self._pause_until)
        return True

    def next(self) -> Message | None:
        """The next unseen message, for the caller; ``None`` if there is none. From any thread."""
        try:
            message = self.unseen.popleft()
        except IndexError:
            return None
        self.consumer.live.discard(message.number)
        return message

    def unread(self, message: Message) -> None:
        """Let a message be the `next` one again."""
        self.consumer.live.add(message.number)
        self.unseen.appendleft(message)

    def release(self) -> float:
        """Put the unseen messages back if they were taken ahead and have waited too long. Returns the seconds until the
        next check. From any thread."""
        if not (self._is_ahead and self.unseen):
            return inf
        if (seconds := self._pace.overdue_in(monotonic())) > 0:
            return seconds
        self._pace.stop()
        self.put_back()
        return inf

    def let_others_first(self, seconds: float) -> None:
        """For a while, request due messages a moment later than others, because this worker could not run one."""
        self._courteous_until = monotonic() + seconds

    def put_back(self) -> None:
        """Put the unseen messages back into their queues. From any thread."""
        numbers = []
        while message := self.next():
            numbers.append(message.number)
        self.consumer.restore(numbers, seen=False)

    def close(self) -> None:
        """Close the connection. Requests without a reply are answered to the next `Claims`."""
        self._unsaid()
        self._wire.close()

    def _ask_to_be_told(self) -> bool:
        try:
            self._wire.call(("CLIENT", "TRACKING", "ON", "NOLOOP"))
        except redis.ResponseError as error:
            log.warning("the server does not tell of new messages (%s); asking every %g s", error, _POLL)
            return False
        return True

    def _ask(self, queues: Sequence[str], credit: int, count: int, now: float) -> None:
        keys = self._keys
        lists = keys.lists(*queues)
        self._acks = self.consumer.take_acks()
        self._asked = (
            _CLAIM,
            4 + len(lists),
            keys.leased(self.consumer.name),
            keys.consumers,
            keys.delayed,
            keys.delayed_entries,
            *lists,
            self.consumer.name,
            min(count, MOST),
            self.consumer.number,
            len(queues),
            keys.crashes,
            max(1, self.consumer.max_deliveries - 1),
            *self._acks,
        )
        self._credit = credit
        self._asked_at = now
        self._wire.send(self._asked)

    def _answered(self, reply: list[Any]) -> None:
        self._asked_at, self._acks = None, []
        now, due, consumers, drained, *entries = reply
        self.now = float(now)
        moment = worker.signs.contact = worker.signs.claim = monotonic()
        self._pace.took(len(entries), moment)
        self._is_ahead = len(entries) > self._credit
        for number, entry in zip(self.consumer.number_next(len(entries)), entries, strict=True):
            list_, _, text = entry.partition(b"\n")
            self.consumer.live.add(number)
            self.unseen.append(Message(number, list_.decode(), text))
        self._pause_until = moment
        if self._is_ahead:
            self.consumer.look()  # at the messages that wait here: this thread may be busy until they have begun
        if not drained:
            self.next_at = moment
        else:
            self._pace.stop()
            if self._woken and not entries:
                self._pause_until = moment + random.random() * min(_LONGEST_PAUSE, _PAUSE_EACH * consumers)  # noqa: S311
            self.next_at = moment + (_HEARTBEAT if self._is_told else _POLL)
            if due:
                courtesy = _COURTESY if moment < self._courteous_until else 0.0
                self.next_at = min(self.next_at, moment + max(0.0, float(due) - self.now) + courtesy)
        self._woken = False

    def _unsaid(self) -> None:
        for number in self._acks:
            self.consumer.acknowledge(number)
        self._acks = []
