"""What was decided about messages and jobs, on its way to the server.

Any thread decides: a message is acknowledged, goes back, is postponed or has failed, a job has this result. The
consumer's thread sends the decisions, many at a time, and reads the replies. A decision that is the last one for now is
sent by the thread that made it: waking another one would take longer, and somebody may wait for the result. Nothing is
forgotten before the server has answered, and each decision takes effect only once, however often it is sent. A decision
that the server will never accept holds up nothing else: it is logged, and its message stays leased until the consumer
ends, but for that of a result, which goes to the failed ones.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate, repeat
from typing import Any, Final

import redis

from backburner.queue.settlement import SETTLE, Stored, check_told, settling
from backburner.queue.transport.native import Bell, gevent_is_here, original
from backburner.queue.transport.wire import Call, Wire, pack, will_pass

__all__ = ["LONGEST", "Decisions"]

log = logging.getLogger("backburner.queue")

_BATCH: Final = 100
"""This many decisions are sent at once, however recent the last batch."""
_MOST: Final = 1000
"""Acknowledgements, or results, in one command: Lua and the server have their limits."""
LONGEST: Final = 256 * 1024
"""Bytes of results in one command: a slow network can transfer them before the server counts as gone."""
_MOST_AHEAD: Final = 16 * 1024
"""Bytes of results that the deciding thread sends itself: as many as the system buffers without waiting for the server,
which has answered everything before."""


@dataclass(slots=True)
class _Batch:
    """Decisions that are sent together."""

    wire: Wire
    acks: list[int] = field(default_factory=list)
    states: list[Stored] = field(default_factory=list)
    others: list[Call] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)


class Decisions:
    """The decisions about the messages that one consumer has leased.

    Args:
        leased: the hash of its leases.
        refused: called with the number of a message and the error, if the result of its job will never be accepted.
    """

    line: Wire | None = None
    """The connection of the consumer's thread, which makes it; ``None`` again when it is lost. With gevent, only that
    thread could use it."""

    def __init__(self, leased: str, refused: Callable[[int, Exception], None]) -> None:
        self.heard = 0
        """The number of messages whose decisions the server has confirmed."""
        self._leased = leased
        self._refused = refused
        self._acks: deque[int] = deque()
        self._states: deque[Stored] = deque()
        self._others: deque[Call] = deque()
        self._without_result: set[int] = set()
        """Messages that are not acknowledged any more, because the results of their jobs cannot be stored."""
        self._under_way: _Batch | None = None
        self._speaking = original("_thread", "allocate_lock")()
        self._made = Bell()
        self._urgent = Bell()

    # Any thread

    def acknowledge(self, number: int, *, is_last: bool) -> None:
        """Acknowledge a message; `is_last` says that no other decision is about to follow."""
        self._acks.append(number)
        if not is_last:
            self._notify(len(self._acks))
        elif self._tell_ahead():
            self._made.ring()  # for the answer to be read
        else:
            self.hurry()

    def store(self, state: Stored) -> None:
        """Store a job's outcome, before or together with the messages that are acknowledged later."""
        self._states.append(state)
        self._notify(len(self._states))

    def decide(self, *call: Any) -> None:
        """Take any other decision, as the request to send."""
        self._others.append(call)
        self._notify(len(self._others))

    def take_acks(self) -> list[int]:
        """Take acknowledgements for the caller to send, which returns those that may not have arrived to
        `acknowledge`."""
        count = min(len(self._acks), _MOST)
        # Looked at in this order: what is stored for a message that is counted waits, is on its way, waits again, or is
        # there.
        if self._states or self._under_way is not None or self._states:
            return []
        taken: list[int] = []
        _take(self._acks, taken, count)
        return self._with_results(taken)

    @property
    def are_told(self) -> bool:
        """Whether the server has confirmed everything."""
        # Twice, for what is on its way waits again if the connection is lost.
        return not (self._waits or self._speaking.locked() or self._under_way is not None or self._waits)

    def hurry(self) -> None:
        """Have the consumer's thread send at once."""
        self._urgent.ring()
        self.wake()

    def wake(self) -> None:
        """End the consumer's thread's `wait`."""
        self._made.ring()

    def tell_on(self, wire: Wire) -> None:
        """Send everything, on a connection of the caller's.

        Raises:
            redis.RedisError: the server cannot be reached.
        """
        with self._speaking:
            # What is on its way on the other connection may still be lost with it; then it is sent here.
            with suppress(redis.RedisError, OSError):
                self._hear()
            while self._waits:
                self._send(wire)
                self._hear()

    # The consumer's thread

    def wait(self, seconds: float) -> bool:
        """Wait for something to send or to read, at most for so many seconds. Returns whether there is."""
        return self._made.wait(seconds)

    def gather(self, seconds: float) -> None:
        """Wait for more decisions, at most for so many seconds; not if there are many, or one is urgent."""
        self._urgent.wait(seconds)

    def tell(self) -> None:
        """Send what waits, on the `line`; what is too much for one batch, the next time.

        Raises:
            redis.RedisError: it was lost.
        """
        with self._speaking:
            line = self._held_line()
            self._hear()
            if self._waits:
                self._send(line)
                self._hear()
        if self._waits:
            self.hurry()

    def ask(self, call: Call) -> Any:
        """Make another request, on the `line`.

        Raises:
            redis.RedisError: it was lost, or the server's answer is an error.
        """
        with self._speaking:
            line = self._held_line()
            self._hear()
            try:
                return line.call(call)
            except BaseException:
                self._lose(line)
                raise

    def hang_up(self) -> None:
        """Close the `line`. Decisions without a reply will be sent again."""
        with self._speaking:
            if self._under_way is not None:
                self._unsay(self._under_way)
            if self.line is not None:
                self._lose(self.line)

    # What the lock protects

    def _tell_ahead(self) -> bool:
        # Checked instead of acquired: an exception in a signal handler just then would leave the lock held for ever.
        if gevent_is_here() or self._speaking.locked():
            return False
        with self._speaking:
            line = self.line
            if line is None or self._under_way is not None:
                return False
            if sum(len(state.json) for state in tuple(self._states)) > _MOST_AHEAD:
                return False
            try:
                self._send(line)
            except (redis.RedisError, OSError):
                return False  # the thread will find out
        return True

    def _held_line(self) -> Wire:
        if self.line is None:
            raise redis.ConnectionError("the connection was lost")
        return self.line

    @property
    def _waits(self) -> bool:
        return bool(self._acks or self._states or self._others)

    def _send(self, wire: Wire) -> None:
        batch = self._under_way = _Batch(wire)
        try:
            _take(self._acks, batch.acks, _MOST)
            batch.acks = self._with_results(batch.acks)
            waiting = tuple(self._states)
            fitting = _fitting(waiting)
            _take(self._states, batch.states, fitting)
            if fitting < len(waiting):
                # The results of some may be among those that wait.
                self._acks.extend(batch.acks)
                batch.acks.clear()
            _take(self._others, batch.others, len(self._others))
            try:
                wire.send_all(calls := self._calls(batch))
                batch.calls = calls
            except (redis.DataError, UnicodeError):
                self._tell_apart(batch)
        except BaseException:
            self._lose(wire)
            self._unsay(batch)
            raise

    def _hear(self) -> None:
        batch = self._under_way
        if batch is None:
            return
        try:
            replies = batch.wire.read_all(batch.calls)
            if any(isinstance(reply, redis.ResponseError) for reply in replies):
                self._tell_apart(batch)
            elif batch.states and replies:
                check_told(replies[0])
        except BaseException:
            self._lose(batch.wire)
            self._unsay(batch)
            raise
        self._under_way = None
        self.heard += max(len(batch.acks), len(batch.states)) + len(batch.others)

    def _calls(self, batch: _Batch) -> list[Call]:
        if batch.states:
            return [(SETTLE, *settling(self._leased, batch.acks, batch.states)), *batch.others]
        if batch.acks:
            return [("HDEL", self._leased, *batch.acks), *batch.others]
        return batch.others

    def _tell_apart(self, batch: _Batch) -> None:
        """Send one by one what was refused together, and give up what is refused by itself."""
        sent = []
        for part in _parts(batch):
            [call] = part.calls = self._calls(part)
            try:
                pack(call)
                sent.append(part)
            except (redis.DataError, UnicodeError) as error:
                self._give_up(part, error)
        calls = [call for part in sent for call in part.calls]
        batch.wire.send_all(calls)
        for part, reply in zip(sent, batch.wire.read_all(calls), strict=True):
            if not isinstance(reply, redis.ResponseError):
                continue
            if will_pass(reply):
                raise reply
            self._give_up(part, reply)

    def _give_up(self, part: _Batch, error: Exception) -> None:
        if part.states:
            [state] = part.states
            log.error("the result %r cannot be stored, and its message is kept as failed: %s", state.key, error)
            if state.number is not None:
                self._without_result.add(state.number)
                self._refused(state.number, error)
        else:
            log.error("what was decided about a message cannot be told, and it stays leased: %s", error)

    def _with_results(self, acks: list[int]) -> list[int]:
        return [number for number in acks if number not in self._without_result] if self._without_result else acks

    def _unsay(self, batch: _Batch) -> None:
        self._acks.extend(batch.acks)
        self._states.extendleft(reversed(batch.states))
        self._others.extendleft(reversed(batch.others))
        self._under_way = None

    def _lose(self, wire: Wire) -> None:
        if wire is self.line:
            self.line = None
        wire.close()

    def _notify(self, waiting: int) -> None:
        self._made.ring()
        if waiting >= _BATCH:
            self._urgent.ring()


def _fitting(waiting: tuple[Stored, ...]) -> int:
    """How many of the states fit in one command: at least one."""
    sizes = accumulate(len(state.json) for state in waiting[:_MOST])
    return max(sum(size <= LONGEST for size in sizes), min(1, len(waiting)))


def _parts(batch: _Batch) -> Iterator[_Batch]:
    """A batch for each decision; a result and the acknowledgement of its message stay together."""
    acks = set(batch.acks)
    for state in batch.states:
        own = acks & {state.number}
        acks -= own
        yield _Batch(batch.wire, [*own], [state])
    if acks:
        yield _Batch(batch.wire, [*acks])
    for call in batch.others:
        yield _Batch(batch.wire, others=[call])


def _take(waiting: deque[Any], taken: list[Any], most: int) -> None:
    """Move the first ones, in one C call, during which no signal handler can raise so that some would be lost.

    Two threads may take at the same time, so a deque may be empty sooner than its length said.
    """
    with suppress(IndexError):
        taken.extend(map(deque.popleft, repeat(waiting, most)))
