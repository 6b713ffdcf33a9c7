"""The messages that this process has taken from the server's queues, under a lease that a dedicated thread renews.

The thread depends on no pool and no event loop, so that a task may run or block for as long as it likes. It also sends
the decisions about messages, a few milliseconds' worth at a time (`Decisions`), and puts back what dead consumers held.
A consumer outlives the connections it was used on. Once the server has taken it for dead, it has ended, and whatever it
still sends about its messages has no effect. A process that was suspended and goes on does not know yet whether it was
taken for dead; `Consumer.holds` tells what is certain.
"""

import atexit
import itertools
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterable
from math import inf
from time import monotonic
from typing import Any, Final
from weakref import WeakValueDictionary

import redis

from backburner.errors import ConfigError
from backburner.queue.keys import Keys
from backburner.queue.settlement import Offer, Stored, server_of
from backburner.queue.transport import worker
from backburner.queue.transport.decisions import LONGEST, Decisions
from backburner.queue.transport.native import Thread
from backburner.queue.transport.wire import Call, Wire, script

log = logging.getLogger("backburner.queue")

_BATCH_TIME: Final = 0.005
"""Seconds between two batches of decisions, unless there are many, or no messages are left to decide about. After a
pause, one is sent at once."""
_QUICK: Final = 0.001
"""The same, while a slot is free and few jobs end: then somebody who waits for a result would notice."""
_LITTLE: Final = 3000
"""Messages in a second."""
_RENEWAL: Final = 2.0
"""Seconds between two renewals, or a quarter of the lease. It also bounds how late a dead consumer is noticed."""
_ANSWER: Final = 2.0
"""Seconds after which a server that has not answered is given up, or a quarter of the lease."""
_LAST_LOOKS: Final = 0.25
"""Seconds between checks, in a worker that was told to stop, for messages that nobody here will read any more."""
_PAUSE: Final = 0.25
"""Seconds between attempts to reach a server that is gone."""
_SORTED: Final = 2000
"""Messages in one go, when the last consumer leaves."""
_OLDEST: Final = 7
"""Of Redis, what the tests run on."""
_CRASHES_EXPIRE: Final = 7 * 86_400
"""Seconds for which it is remembered that a message killed a worker, or that its job's end could not be recorded."""

_ENDS: Final = 10
"""How often a job is done whose end cannot be recorded, before its message has failed: within about 45 minutes."""
FIRST_PAUSE: Final = 1
LONGEST_PAUSE: Final = 600
"""Seconds between two of them; each pause is four times the one before."""

_LONGEST_DETAIL: Final = 10_000
"""Characters kept of the reason why a message failed; an error may quote the whole message."""

_RENEW = script("renew")
_RECOVER = script("recover")
_RESTORE = script("restore")
_POSTPONE = script("postpone")
_BURY = script("bury")
_CRASH = script("crash")
_UNRECORDED = script("unrecorded")
_UNSORT = script("unsort")
_LEAVE = script("leave")
_RESIZE = script("resize")

_RANGE: Final = 2**32
"""Numbers of one consumer's messages. The server keeps them exactly up to 2**53."""
_ranges = itertools.count()
_consumers: "WeakValueDictionary[int, Consumer]" = WeakValueDictionary()
"""By their ranges."""
_at_work: "list[Consumer]" = []
"""Those that had not ended when the latest one started; after a fork, the parent's."""


def store_for(server: tuple[Any, ...], state: Stored) -> bool:
    """Have a job's result stored on a server, with the acknowledgement of its message or before it.

    ``False`` if the caller has to: this process consumes elsewhere, nowhere, or with several consumers, or the one it
    has does not take it.
    """
    consumer = _only_one()
    return consumer is not None and consumer.server == server and consumer.store(state)


def offer_for(number: Any) -> Offer | None:
    """This process's offer to store the result of the message's job; ``None`` where `store_for` would refuse."""
    consumer = _only_one()
    return None if consumer is None or not isinstance(number, int) else consumer.offer(number)


def _only_one() -> "Consumer | None":
    consumers = [consumer for consumer in _at_work if not consumer.over and consumer.is_mine]
    return consumers[0] if len(consumers) == 1 else None


def consumer_of(number: int) -> "Consumer | None":
    """The consumer that leases a message to this process, by the message's number; ``None`` if it has ended."""
    return _consumers.get(number // _RANGE)


def check_version(told: bytes) -> None:
    """Refuse a server that is too old for the scripts and for waiting for messages, by its reply to INFO.

    Raises:
        ConfigError: it is older than Redis 7.0. Valkey reports the version of Redis that it is compatible with.
    """
    version = re.search(rb"redis_version:(\d+)\.[\d.]*", told)
    if version and int(version[1]) < _OLDEST:
        raise ConfigError(
            f"the broker is Redis {version[0].partition(b':')[2].decode()}, and workers need {_OLDEST}.0 or newer, or "
            'Valkey: upgrade it, or go back to Celery\'s own transport with broker_transport="redis"'
        )


def warn_of_eviction(told: bytes) -> None:
    """Log that a server removes keys when its memory is full, if it does by its reply to INFO."""
    limit, policy = (re.search(rb"(?m)^%s:(\S+)" % name, told) for name in (b"maxmemory", b"maxmemory_policy"))
    if limit and int(limit[1]) and policy and policy[1] != b"noeviction":
        log.warning(
            "the broker evicts keys when its memory is full (maxmemory-policy %s), and the jobs or what is known of "
            "them with these: set it to noeviction, and give the cache a server of its own",
            policy[1].decode(),
        )


_clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""A clock that goes on while the machine sleeps, if the system has one."""


class Consumer:
    """One consumer, known to the server from `start` to `stop`, or until its lease has run out.

    Args:
        connect: makes a redis-py connection.
        keys: the names of keys on the server.
        lease: seconds without a sign of life after which it is taken for dead.
        max_deliveries: crashes after which a message has failed.
        watchdog: seconds for which `beat` may not be called before the process counts as hung.
    """

    def __init__(
        self, connect: Callable[..., Any], keys: Keys, *, lease: float, max_deliveries: int, watchdog: float
    ) -> None:
        self._slots = worker.slots()
        self.name = f"{socket.gethostname()}:{os.getpid()}:{self._slots}:{secrets.token_hex(6)}"
        range_ = next(_ranges)
        _consumers[range_] = self
        self.number = self._first = range_ * _RANGE + 1
        """The number of the next message. No other consumer of this process uses it."""
        self.live: set[int] = set()
        """Messages that are here and have not been settled."""
        self.over = False
        """Whether the server has taken it for dead, or it was stopped."""
        self.connect = connect
        self.lease = lease
        self.sorts: list[str] = []
        """Lists that no stock consumer looks at, the latest priority first, each before the one it looks at instead."""
        self.give_back: Callable[[], object] = lambda: None
        """Called in the thread when the worker was told to stop, to `restore` what nobody has begun."""
        self.release: Callable[[], float] = lambda: inf
        """Called in the thread, to `restore` what has waited here too long. Returns the seconds until the next call."""
        self._keys = keys
        self._leased = keys.leased(self.name)
        self.max_deliveries = max_deliveries
        self._watchdog = watchdog
        self._beat: float | None = None
        self._hung = False
        self._sweep_from = 0.0
        self.server: tuple[Any, ...] = ()
        """See `server_of`."""
        self._decisions = Decisions(self._leased, self._refused)
        self._held_until = 0.0
        self._ahead = 0.0
        """How far the server's clock is ahead of `monotonic`, which stands still while the machine sleeps."""
        self._stopping = False
        self._pid = os.getpid()
        self._thread = Thread(self._run, f"backburner-leases {self.name}")

    def number_next(self, count: int) -> range:
        """Assign numbers to messages that have arrived."""
        first, self.number = self.number, self.number + count
        return range(first, self.number)

    @property
    def is_mine(self) -> bool:
        """Whether it belongs to this process and not to the one this was forked from."""
        return self._pid == os.getpid()

    def holds(self, number: int) -> bool:
        """Whether it is certain that nobody else can have the message. Makes no request."""
        return not self.over and number >= self._first and time.clock_gettime(_clock) < self._held_until

    def start(self) -> None:
        """Register with the server, and keep the lease renewed.

        Raises:
            redis.RedisError: the server cannot be reached.
            ConfigError: it is too old.
        """
        told = self._told_of("server")
        check_version(told)
        warn_of_eviction(self._told_of("memory"))
        self._held_until = time.clock_gettime(_clock) + self.lease
        asked = monotonic()
        self._ahead = float(self._call(self._renewal(begin=True))[-1]) - asked
        uptime = re.search(rb"uptime_in_seconds:(\d+)", told)
        # Leases may have run out while the server was away; consumers that are alive will come back and renew theirs.
        self._sweep_from = monotonic() + max(0.0, self.lease - int(uptime[1] if uptime else 0))
        self._thread.start()
        worker.on_stop.add(self._decisions.hurry)
        _at_work[:] = [other for other in _at_work if not other.over and other.is_mine] + [self]
        atexit.register(self.stop)

    def beat(self) -> None:
        """Note that the event loop is running, and how many tasks the worker runs at a time."""
        self._beat = worker.signs.tick = monotonic()
        if (slots := worker.slots()) != self._slots:  # it scales by itself, or was told to
            self._slots = slots
            self._decisions.decide(_RESIZE, 2, self._keys.consumers, self._keys.slots, self.name, slots)

    def rest(self) -> None:
        """Note that the event loop need not run from now on."""
        self._beat = worker.signs.tick = worker.signs.claim = None

    def acknowledge(self, number: int) -> None:
        """Acknowledge a message."""
        self._decisions.acknowledge(number, is_last=not self.live)

    def offer(self, number: int) -> Offer:
        """An offer for the result of a job in a pool process. The process is to store it itself as long as no message
        waits for a process: then it has nothing else to do, and the way through here is saved.
        """
        is_idle = len(self.live) <= worker.slots()
        return Offer(self.server, self._leased if is_idle else "", number)

    def store(self, state: Stored) -> bool:
        """Store a job's outcome, before or together with the messages that are acknowledged later.

        ``False`` if it is too late for that because the consumer is stopping, or if others would wait for it too long.
        """
        if self._stopping or self.over or len(state.json) > LONGEST:
            return False
        self._decisions.store(state)
        return True

    def restore(self, numbers: Iterable[int], *, seen: bool) -> None:
        """Put messages back to the front of their queues; `seen` tells the next consumer that a task saw them."""
        ordered = sorted(numbers, reverse=True)
        if ordered:
            self._decisions.decide(_RESTORE, 1, self._leased, int(seen), *ordered)

    def postpone(self, number: int, due: float) -> None:
        """Have the message delivered again at `due` by the server's clock."""
        keys = self._keys
        self._decisions.decide(_POSTPONE, 3, self._leased, keys.delayed, keys.delayed_entries, number, due)

    def bury(self, number: int, reason: str, detail: object) -> None:
        """Move the message to the failed ones. The detail may be any text that came with it."""
        self._decisions.decide(_BURY, 2, self._leased, self._keys.failed, number, reason, _detail(detail))

    def crashed(self, number: int) -> None:
        """Note that a process died of the message, which goes back to its queue, or to the failed ones."""
        keys = self._keys
        arguments = (number, keys.crashes, self.max_deliveries, _CRASHES_EXPIRE)
        self._decisions.decide(_CRASH, 2, self._leased, keys.failed, *arguments)

    def unrecorded(self, number: int, detail: object) -> None:
        """Note that what the message's job came to could not be recorded. The message is delivered again after a pause,
        or goes to the failed ones."""
        keys = self._keys
        places = (self._leased, keys.failed, keys.delayed, keys.delayed_entries)
        pauses = (FIRST_PAUSE, LONGEST_PAUSE)
        arguments = (number, keys.unrecorded, _ENDS, _CRASHES_EXPIRE, *pauses, _detail(detail))
        self._decisions.decide(_UNRECORDED, len(places), *places, *arguments)

    def _refused(self, number: int, error: Exception) -> None:
        self.bury(number, "unrecorded", f"it has ended, and how could not be recorded: {error}")

    def take_acks(self) -> list[int]:
        """Take acknowledgements for the caller to send, which returns those that may not have arrived to
        `acknowledge`."""
        return self._decisions.take_acks()

    def flush(self) -> None:
        """Send all decisions now.

        Raises:
            redis.RedisError: the server cannot be reached.
        """
        wire = self._wire()
        try:
            self._decisions.tell_on(wire)
        finally:
            wire.close()

    def has_said_all(self) -> bool:
        """Whether the server has got all decisions; what is missing is sent now, if it can be reached."""
        if self._decisions.are_told:
            return True
        try:
            self.flush()
        except (redis.RedisError, OSError):
            return False
        return True

    def look(self) -> None:
        """Have the thread call `release`."""
        self._decisions.wake()

    def stop(self) -> None:
        """Send all decisions, put everything else back, and unregister. Does nothing if the consumer has ended."""
        if self.over or not self.is_mine:
            return
        self._stopping = True
        self._decisions.hurry()
        if not self._thread.is_current:
            self._thread.join(self.lease)
        try:
            self.flush()
            self._call((_LEAVE, 3, self._keys.consumers, self._leased, self._keys.slots, self.name))
            self._unsort()
        except (redis.RedisError, OSError) as error:
            log.warning("consumer %s could not say goodbye, its lease runs out: %s", self.name, error)
        self._end()

    def _unsort(self) -> None:
        """Move messages to lists that stock workers look at. Does nothing while others of our consumers are there."""
        until = monotonic() + self.lease
        while self.sorts and monotonic() < until:
            if self._call((_UNSORT, 1 + len(self.sorts), self._keys.consumers, *self.sorts, _SORTED)) < _SORTED:
                return

    def lost(self) -> None:
        """Note that the server has taken the consumer for dead."""
        if not self.over:
            self._end()
            log.warning("consumer %s lost its lease: what it had taken goes to others", self.name)
            self._decisions.hurry()

    def _end(self) -> None:
        self.over = True
        atexit.unregister(self.stop)
        worker.on_stop.discard(self._decisions.hurry)

    def _wire(self) -> Wire:
        patience = max(0.5, min(_ANSWER, self.lease / 4))
        return Wire(self.connect, client_name="backburner-leases", socket_timeout=patience)

    def _call(self, call: Call) -> Any:
        wire = self._wire()
        self.server = server_of(wire.connection)
        try:
            return wire.call(call)
        finally:
            wire.close()

    def _told_of(self, section: str) -> bytes:
        """What the server says of itself; nothing if the user may not ask, whom many rules forbid what is dangerous."""
        try:
            told: bytes = self._call(("INFO", section))
        except redis.exceptions.NoPermissionError as error:
            log.warning("what the broker is like cannot be checked: %s", error)
            return b""
        return told

    def _run(self) -> None:
        decisions = self._decisions
        settled = renewed = monotonic()
        rate = 0.0
        every = min(self.lease / 4, _RENEWAL)
        next_renewal = renewed + every
        while not (self.over or self._stopping):
            until = min(next_renewal, settled + _LAST_LOOKS) if worker.stopping else next_renewal
            if decisions.wait(min(self.release(), until - monotonic())):
                is_busy = rate > _LITTLE or len(self.live) >= worker.slots()
                decisions.gather(settled + (_BATCH_TIME if is_busy else _QUICK) - monotonic())
            try:
                if decisions.line is None:
                    decisions.line = self._wire()
                # First, so that no decision can keep the lease from being renewed.
                if (now := monotonic()) >= next_renewal:
                    if now - renewed > self.lease / 2:
                        # The server was away, or we were. Others may be about to come back too.
                        self._sweep_from = now + self.lease
                    if not self._hangs():
                        self._renew(sweep=now >= self._sweep_from)
                    renewed = monotonic()
                    next_renewal = renewed + every
                if worker.stopping:
                    self.give_back()
                    self._return_unread()
                heard, before = decisions.heard, settled
                decisions.tell()
                settled = monotonic()
                rate = (decisions.heard - heard) / max(_QUICK, settled - before)
            except (redis.RedisError, OSError) as error:
                log.warning("consumer %s cannot reach the server: %s", self.name, error)
            except Exception:  # whatever it is, the thread has to go on
                log.exception("consumer %s could not do all it had to, and tries again", self.name)
            else:
                continue
            decisions.hang_up()
            next_renewal = monotonic() + _PAUSE
        if self.over and not self.has_said_all():
            log.error("consumer %s could not store the last results of its jobs", self.name)
        decisions.hang_up()

    def _return_unread(self) -> None:
        """Put back what was claimed by a request whose reply the event loop, which has ended, does not read."""
        first = self.number
        leased = self._decisions.ask(("HKEYS", self._leased))
        self.restore([number for number in map(int, leased) if number >= first], seen=False)

    def _renew(self, *, sweep: bool) -> None:
        asked, expected = time.clock_gettime(_clock), monotonic()
        alive, dead, untold, now = self._decisions.ask(self._renewal())
        self._ahead = float(now) - expected
        worker.signs.contact = monotonic()
        if not alive:
            self.lost()
            return
        self._held_until = asked + self.lease
        while dead and sweep:
            keys = self._keys
            arguments = (keys.leased(), keys.crashes, self.max_deliveries, _CRASHES_EXPIRE)
            call = (_RECOVER, 3, keys.consumers, keys.failed, keys.slots, *arguments)
            name, restored, *failed = self._decisions.ask(call)
            if not name:
                break
            log.warning("consumer %s is dead; %d messages that it held are back in their queues", _text(name), restored)
            if failed:
                names = ", ".join(map(_text, failed))
                log.error("jobs failed, for their workers died %d times: %s", self.max_deliveries, names)
        if untold:
            worker.tell_failures(self.connect, self._keys)

    def _renewal(self, *, begin: bool = False) -> Call:
        keys = self._keys
        expected = () if begin else (f"{self._ahead + monotonic():.6f}",)
        return (_RENEW, 2, keys.consumers, keys.untold, self.name, self.lease, int(begin), *expected)

    def _hangs(self) -> bool:
        """Whether a worker's event loop is stuck. In other kombu programs it may stand still while they work."""
        beat = self._beat if worker.is_here() else None
        hung = beat is not None and monotonic() - beat > self._watchdog and not worker.is_busy_in_the_loop()
        if hung and not self._hung:
            log.critical(
                "consumer %s: the event loop has not run for %g s; its lease is no longer renewed",
                self.name,
                self._watchdog,
            )
        self._hung = hung
        return hung


def _detail(told: object) -> bytes:
    return str(told)[:_LONGEST_DETAIL].encode(errors="backslashreplace")


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
