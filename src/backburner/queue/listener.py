"""Listens to what is published about jobs: one connection for everything that this process waits for.

A daemon thread subscribes for blocking callers and event loops alike. After each subscription it asks, on the same
connection, for what was there before; so what is published at that moment is heard twice rather than never. After
losing the connection it subscribes again, and asks on another one: no wait fails because the server restarts, or closes
a subscriber's connection over a result that is too long. How long to wait is up to the waiter. Needs RESP3 (Redis 6 or
newer, any Valkey): older servers take no other commands on a connection with subscriptions.
"""

import logging
import os
import selectors
from collections import deque
from collections.abc import Callable
from threading import Event, Lock, Thread
from typing import Any, Final, Protocol

import redis
import redis.backoff
import redis.connection
import redis.exceptions
import redis.retry
from hiredis import PushNotification

from backburner.forking import renew_in_forked_child
from backburner.queue.callbacks import Callbacks
from backburner.redis.push import PushParser

log = logging.getLogger("backburner.queue")

_SILENCE: Final = 2.0
"""Seconds of silence after which the server is pinged; after as many again, the connection is given up."""
_SOON: Final = 0.1
"""Seconds after some news; by then, those who waited for it have left."""
_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 1.0


class Subscription(Protocol):
    """One caller's interest in a channel. Its methods run in the listener's thread, must be quick, and may be called
    twice with the same news.
    """

    channel: bytes

    def question(self) -> tuple[Any, ...]:
        """The command that reads what was there before."""

    def answered(self, reply: Any) -> None:
        """Take the reply to the question."""

    def heard(self, message: bytes) -> None:
        """Take a message from the channel that came after the answer."""


class Listener:
    """Subscribes on behalf of any thread; a forked child starts anew.

    Args:
        pool: returns redis-py's connection pool for the server, used as a model; no connection is taken from it.
        server: its name in log messages.
    """

    def __init__(self, pool: Callable[[], Any], server: str) -> None:
        self._pool = pool
        self._server = server
        self.begin()
        renew_in_forked_child(self, Listener.begin)

    def begin(self) -> None:
        """Start without subscriptions: an earlier thread and its connection, if any, belong to the parent process."""
        self._lock = Lock()
        self._thread: Thread | None = None
        self._stopping = Event()
        self._changes: deque[tuple[Subscription, bool]] = deque()
        self._bells: tuple[int, ...] = ()
        self._rung = False
        self._looks_soon = False
        self._channels: dict[bytes, list[Subscription]] = {}
        self.callbacks = Callbacks(self._server)
        """For what a subscription's news gives rise to and is not quick."""
        self.trouble: str | None = None
        """Why nothing can be heard; ``None`` if nothing is known to be wrong."""

    def add(self, subscription: Subscription) -> None:
        """Subscribe. Returns at once."""
        if self._thread is None:
            self._start()
        self._change(subscription, wanted=True)

    def remove(self, subscription: Subscription) -> None:
        """Unsubscribe. Takes no lock, because the garbage collector calls this, too."""
        if self._thread is not None:
            # The thread that has just delivered the news looks at changes soon anyway, and need not be woken.
            self._change(subscription, wanted=False, waits=self._looks_soon)

    def stop(self) -> None:
        """Close the connection, and wait until that is done. The next subscription starts anew."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._stopping.set()
            self._ring()
            thread.join()
            for end in self._bells:
                os.close(end)
            self._bells, self._rung = (), False
            self._changes.clear()
            self._channels.clear()
            self.callbacks.stop()

    @property
    def subscriptions(self) -> int:
        """The number of subscriptions."""
        return sum(map(len, self._channels.values())) + len(self._changes)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._bells = self._bells or os.pipe()
                stopping = Event()
                thread = Thread(
                    target=self._run, args=(stopping,), name=f"backburner-results {self._server}", daemon=True
                )
                try:
                    thread.start()
                except BaseException:
                    stopping.set()  # it may have begun, and nobody else could stop it
                    raise
                self._thread, self._stopping = thread, stopping

    def _change(self, subscription: Subscription, *, wanted: bool, waits: bool = False) -> None:
        self._changes.append((subscription, wanted))
        if not (self._rung or waits):
            self._ring()

    def _ring(self) -> None:
        self._rung = True
        if self._bells:
            os.write(self._bells[1], b"!")

    def _run(self, stopping: Event) -> None:
        pause, told = _PAUSE, False
        while not stopping.is_set():
            session = _Session(self._connection, self._channels)
            try:
                session.open(self._changes)
                self.trouble = None
                log.debug("results from %s are listened to", self._server)
                self._serve(session, stopping)
            except Exception as error:  # a login's provider may raise anything, and the thread has to go on
                self.trouble = str(error) or "no answer"
                unforeseen = not isinstance(error, redis.RedisError | OSError)
                # A server closes what has been idle for long, which is no news while nobody waits.
                if not told and (unforeseen or self.subscriptions):
                    told = True
                    log.warning(
                        "results from %s are not heard: %s; trying again", self._server, error, exc_info=unforeseen
                    )
            finally:
                session.close()
            pause = _PAUSE if session.answered else min(2 * pause, _LONGEST_PAUSE)
            told = told and not session.answered
            stopping.wait(pause)

    def _connection(self) -> Any:
        pool = self._pool()
        return pool.connection_class(**pool.connection_kwargs | _OPTIONS)

    def _serve(self, session: "_Session", stopping: Event) -> None:
        bell = self._bells[0]
        with selectors.DefaultSelector() as selector:
            selector.register(bell, selectors.EVENT_READ)
            selector.register(session.socket, selectors.EVENT_READ)
            while not stopping.is_set():
                self._looks_soon = session.read()
                if self._changes:
                    self._rung = False
                    session.apply(self._changes)
                    continue
                silence = _SILENCE if self._channels else None
                ready = selector.select(_SOON if self._looks_soon else silence)
                if any(key.fd == bell for key, _ in ready):
                    os.read(bell, 4096)
                    self._rung = False
                elif not ready and not self._looks_soon:
                    session.prove_alive()


class _Session:
    """One connection's life, in the listener's thread."""

    def __init__(self, connection: Callable[[], Any], channels: dict[bytes, list[Subscription]]) -> None:
        self.answered = False
        """Whether the server has sent anything but a refusal."""
        self._new_connection = connection
        self._connection = connection()
        self._channels = channels
        self._asked: deque[Subscription | None] = deque()
        """Whose questions have been sent, in order; ``None`` for a ping."""
        self._unanswered: set[Subscription | None] = set()
        """The same."""

    def open(self, changes: deque[tuple[Subscription, bool]]) -> None:
        """Connect, and subscribe to everything that was wanted in the previous session.

        Servers close a subscriber's connection over a long reply (``client-output-buffer-limit``), which may have ended
        that session. So the questions are asked on another connection, without subscriptions.
        """
        self._connection.connect()
        if self._channels:
            self._note(changes)
        if self._channels:
            self._send([("SUBSCRIBE", *self._channels)])
            for _ in self._channels:  # all confirmed first: messages come after that
                self._read_response(self._connection)
            self._ask_aside([each for several in self._channels.values() for each in several])

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()

    @property
    def socket(self) -> Any:
        """The socket to wait on, which redis-py does not make public."""
        return self._connection._sock  # noqa: SLF001

    def apply(self, changes: deque[tuple[Subscription, bool]]) -> None:
        """Subscribe and unsubscribe, all in one write."""
        new, gone = self._note(changes)
        if gone:
            self._send([("UNSUBSCRIBE", *gone)])
        if new:
            channels = {each.channel for each in new}
            self._send([("SUBSCRIBE", *channels), *(each.question() for each in new)])
            self._await_answers(new)

    def read(self) -> bool:
        """Deliver everything that has arrived. Returns whether there was anything."""
        heard = False
        while self._connection.can_read(timeout=0):
            heard = True
            self._hand_out(self._connection)
        return heard

    def prove_alive(self) -> None:
        """Ping the server after a silence.

        Raises:
            redis.TimeoutError: the previous ping was not answered.
        """
        if self._asked:
            raise redis.TimeoutError("no sign of life")
        self._send([("PING",)])
        self._asked.append(None)

    def _note(self, changes: deque[tuple[Subscription, bool]]) -> tuple[list[Subscription], set[bytes]]:
        """Record what is wanted. Returns the new subscriptions, and the channels that are of no more interest."""
        new: list[Subscription] = []
        left: set[bytes] = set()
        while changes:
            subscription, wanted = changes.popleft()
            channel = subscription.channel
            if wanted:
                # To the end: the next session asks in this order, and what a job told comes before how it ended.
                several = self._channels[channel] = self._channels.pop(channel, [])
                several.append(subscription)
                new.append(subscription)
                continue
            several = self._channels.get(channel, [])
            if subscription in several:
                several.remove(subscription)
            if not several:
                self._channels.pop(channel, None)
                left.add(channel)
        return [each for each in new if each in self._channels.get(each.channel, ())], left - self._channels.keys()

    def _ask_aside(self, subscriptions: list[Subscription]) -> None:
        connection = self._new_connection()
        try:
            connection.connect()
            questions = connection.pack_commands([each.question() for each in subscriptions])
            connection.send_packed_command(questions, check_health=False)
            self._await_answers(subscriptions)
            while self._asked:
                self._hand_out(connection)
        finally:
            connection.disconnect()

    def _hand_out(self, connection: Any) -> None:
        """Read one reply or message, and deliver it."""
        try:
            reply = self._read_response(connection)
        except redis.exceptions.NoPermissionError:
            raise  # not the answer to a question: the subscription itself was refused
        except redis.ResponseError as error:
            self._answered()
            log.warning("a question about a job was refused: %s", error)
            return
        if not isinstance(reply, PushNotification):
            asker = self._answered()
            if asker is not None and asker in self._channels.get(asker.channel, ()):
                _tell(asker.answered, reply)
        elif reply[0] == b"message":
            for subscription in tuple(self._channels.get(reply[1], ())):
                # What comes before an answer, because others have subscribed to the channel already, is part of it.
                if subscription not in self._unanswered:
                    _tell(subscription.heard, reply[2])

    def _await_answers(self, subscriptions: list[Subscription]) -> None:
        self._asked.extend(subscriptions)
        self._unanswered.update(subscriptions)

    def _answered(self) -> Subscription | None:
        asker = self._asked.popleft()
        self._unanswered.discard(asker)
        return asker

    def _read_response(self, connection: Any) -> Any:
        reply = connection.read_response(disconnect_on_error=False, push_request=True)
        self.answered = True  # now, for a server that refuses everything must not be asked ten times a second
        return reply

    def _send(self, commands: list[tuple[Any, ...]]) -> None:
        self._connection.send_packed_command(self._connection.pack_commands(commands), check_health=False)


_OPTIONS = {
    "protocol": 3,
    "parser_class": PushParser,
    "retry": redis.retry.Retry(redis.backoff.NoBackoff(), 0),
    "health_check_interval": 0,
}


def _tell(receiver: Callable[[Any], None], news: Any) -> None:
    try:
        receiver(news)
    except Exception:
        log.exception("news of a job could not be taken in")
