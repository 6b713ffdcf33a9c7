"""The life of one connection on an event loop: commands go out, replies come in, and a watchdog keeps the time.

redis-py logs in and asks Sentinels, on a `LinkedConnection`; everything after that happens here. Nothing is retried or
sent twice. When to connect, and what a command is, is decided elsewhere.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any, Final

import redis
from hiredis import PushNotification

from backburner.forking import in_forked_child
from backburner.redis.command import again
from backburner.redis.link import Link
from backburner.redis.linked import LinkedConnection

__all__ = ["Abandoned", "Stream"]

log = logging.getLogger("backburner.cache")

MAX_PENDING: Final = 10_000
"""Commands that may be pending on one connection; beyond that, callers wait until half of them are done."""
MAX_UNSENT_BYTES: Final = 16 * 1024 * 1024
"""Bytes of commands that may be waiting for the server to read them; likewise."""
_SECOND_LOOK: Final = 0.01
"""Seconds before a timeout is final: if the loop was busy, the reply may have arrived and only has to be read."""

_living: "set[Stream]" = set()
"""All streams that have not ended, on any event loop."""
in_forked_child(_living.clear)  # whatever becomes of the loops there, the connections are the parent's


class Abandoned(redis.ConnectionError):
    """The event loop of a connection ends, and all of its tasks with it, which says nothing about the server."""


class Stream:
    """The life of one connection. It ends once, and its pending commands with it.

    A command is unsent until its tick is over and the connection is made, then sent until its reply has arrived.

    Args:
        connection: not connected yet.
        server: the server's name in error messages.
        timeout: seconds that the oldest command may wait.
        on_push: called with each push message.
        on_end: called with the reason when the stream has ended.
        meaning: translates an error that the server sent; a `redis.ConnectionError` ends the connection.
    """

    def __init__(
        self,
        connection: LinkedConnection,
        server: str,
        timeout: float,
        *,
        on_push: Callable[[list[Any]], None] | None,
        on_end: Callable[[Exception], None],
        meaning: Callable[[Exception], Exception],
    ) -> None:
        self.full = False
        """Whether too much is pending: then use `send_later`."""
        self._connection = connection
        self._server = server
        self._timeout = timeout
        self.on_push = on_push
        self._on_end = on_end
        self._meaning = meaning
        self._loop = asyncio.get_running_loop()
        self._new_future = self._loop.create_future
        self._link: Link | None = None
        self._held = True  # unsent commands are: until the connection is made, and while the server does not read
        self._failure: Exception | None = None
        self._unsent: list[bytes] = []
        self._unsent_futures: list[asyncio.Future[Any]] = []
        self._unsent_bytes = 0
        self._unsent_since = 0.0
        self.sent: deque[asyncio.Future[Any]] = deque()
        self._sent_count = 0
        self._writes: deque[tuple[int, float]] = deque()
        """For each write that is not fully answered: `_sent_count` after its last command, and when it was sent."""
        self._room = asyncio.Event()
        self._watchdog: asyncio.TimerHandle | None = None
        self._suspect: float | None = None
        for other in tuple(_living):
            if other._loop.is_closed():  # noqa: SLF001  # one of its own kind
                other._abandon()  # noqa: SLF001
        # Not by the loop's task factory: an eager one would let it end before anybody refers to it.
        self._task = asyncio.Task(self._live(), loop=self._loop, name=f"backburner pipeline to {server}")
        _living.add(self)

    def send(self, command: bytes) -> asyncio.Future[Any]:
        """Send a command at the end of the tick. Its reply completes the future."""
        future = self._new_future()
        if not self._unsent:
            self._unsent_since = monotonic()  # not the loop's time, which stands still in uvloop while a task is busy
            if not self._held:
                # In the next round of the loop: everything else that this round sends is in the batch then.
                self._loop.call_soon(self._flush)
            if self._watchdog is None:
                self._watchdog = self._loop.call_later(self._timeout, self._watch)
        self._unsent.append(command)
        self._unsent_futures.append(future)
        self._unsent_bytes += len(command)
        if self._unsent_bytes >= MAX_UNSENT_BYTES or len(self._unsent) + len(self.sent) >= MAX_PENDING:
            self.full = True
            self._room.clear()
        return future

    @property
    def is_idle(self) -> bool:
        """Whether it is connected, with nothing unsent and no reply outstanding."""
        return not (self._held or self.pending)

    def send_now(self, command: bytes) -> asyncio.Future[Any]:
        """As `send`, but at once. A command that is alone saves two rounds of the loop."""
        future = self.send(command)
        self._flush()
        return future

    async def send_later(self, command: bytes) -> Any:
        """As `send`, once there is room."""
        await self.room()
        return await self.send(command)

    async def room(self) -> None:
        """Wait until there is room.

        Raises:
            redis.RedisError: the connection has ended meanwhile.
        """
        while self.full:
            await self._room.wait()
        if self._failure is not None:
            raise again(self._failure)

    async def close(self) -> None:
        """End, and wait until the connection is closed."""
        self.end(redis.ConnectionError(f"the connection to {self._server} was closed while a reply was awaited"))
        await asyncio.wait([self._task])

    def retire(self) -> None:
        """End as soon as no reply is outstanding. May be called from any thread."""
        with suppress(RuntimeError):  # the loop was closed
            self._loop.call_soon_threadsafe(self._retire)

    @property
    def pending(self) -> int:
        """How many commands have yet to get a reply, unsent ones included."""
        return len(self._unsent) + len(self.sent)

    async def _live(self) -> None:
        try:
            await self._connection.connect()  # type: ignore[no-untyped-call]  # untyped there
            self._link = self._connection.hand_over(self)
            # From here on the watchdog measures time, once for all commands instead of once for each.
            self.go_on()
            await self._loop.create_future()  # never: `end` cancels this task
        except (redis.RedisError, OSError) as error:  # the latter from where redis-py gets its credentials, say
            self.end(error)
        finally:
            # No-op where it has ended; else the loop is ending, and cancels all its tasks.
            self.end(Abandoned(f"the connection to {self._server} was abandoned"))
            await self._connection.disconnect()

    def _retire(self) -> None:
        if self._held or self.pending:
            self._loop.call_later(self._timeout, self._retire)
        else:
            self.end(redis.ConnectionError(f"the connection to {self._server} is not needed any more"))

    def _abandon(self) -> None:
        """End after the event loop was closed, when nothing can run on it any more. `asyncio.run` cancels all tasks
        before that; a program that closes its loop in another way would leak a connection each time."""
        self._failure = redis.ConnectionError(f"the event loop of the connection to {self._server} was closed")
        _living.discard(self)
        self._on_end(self._failure)
        if self._link is not None:
            self._link.shut_down()
        self._task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001  # as asyncio does
        with suppress(RuntimeError):  # the loop's, of what wants to run there at the end
            self._task.get_coro().close()

    def _flush(self) -> None:
        if self._held or not self._unsent or self._link is None:
            return
        commands, self._unsent = self._unsent, []
        futures, self._unsent_futures = self._unsent_futures, []
        self._unsent_bytes = 0
        self.sent.extend(futures)
        self._sent_count += len(futures)
        self._forget_answered_writes()
        self._writes.append((self._sent_count, monotonic()))
        self._link.write(commands[0] if len(commands) == 1 else b"".join(commands))

    def _forget_answered_writes(self) -> None:
        answered = self._sent_count - len(self.sent)
        while self._writes and self._writes[0][0] <= answered:
            self._writes.popleft()

    # What the link calls

    def give(self, reply: Any) -> None:
        """Take a reply, an error or a push message.

        Raises:
            redis.RedisError: the connection must end.
        """
        if reply.__class__ is PushNotification:
            self._pushed(reply)
            return
        if isinstance(reply, Exception):
            reply = self._meaning(reply)
        if isinstance(reply, redis.ConnectionError):
            raise reply
        if not self.sent:
            raise redis.InvalidResponse(f"{self._server} sent a reply that nothing had asked for")
        future = self.sent.popleft()
        if not isinstance(reply, Exception):
            if not future.done():  # else the caller was cancelled; the next reply is the next caller's
                future.set_result(reply)
            return
        if not future.done():
            future.set_exception(reply)
        if isinstance(reply, redis.ReadOnlyError):
            # A master that became a replica. Its name or its Sentinels may know the new one by now.
            raise redis.ConnectionError(f"{self._server} is no longer a master: {reply}")

    def hold(self) -> None:
        """Hold commands back: they are written faster than the server reads."""
        self._held = True

    def go_on(self) -> None:
        """Send what was held back."""
        self._held = False
        self._flush()

    def make_room(self) -> None:
        """Let further callers in, if enough replies have arrived."""
        if self.pending <= MAX_PENDING // 2 and self._unsent_bytes < MAX_UNSENT_BYTES // 2:
            self.full = False
            self._room.set()

    def lost(self, error: Exception) -> None:
        """Fail pending commands: the connection has ended."""
        if type(error) is redis.ConnectionError:
            error = redis.ConnectionError(f"the connection to {self._server} ended: {error}")
        self.end(error)

    def _pushed(self, message: list[Any]) -> None:
        if self.on_push is None:
            return
        try:
            self.on_push(message)
        except Exception:
            log.exception("the receiver of push messages failed on %r", message)

    def _watch(self) -> None:
        """Fail pending commands if the oldest has waited too long; scheduled only while something is pending."""
        self._watchdog = None
        suspect, self._suspect = self._suspect, None
        self._forget_answered_writes()
        if self._writes:
            waiting_since = self._writes[0][1]
        elif self._unsent:
            waiting_since = self._unsent_since
        else:
            return
        remaining = waiting_since + self._timeout - monotonic()
        if remaining > 0:
            self._watchdog = self._loop.call_later(remaining, self._watch)
        elif suspect != waiting_since:
            self._suspect = waiting_since
            self._watchdog = self._loop.call_later(_SECOND_LOOK, self._watch)
        else:
            error = redis.TimeoutError(f"{self._server} did not answer within {self._timeout} s")
            if self._link is not None:
                self.end(error)
            else:
                # Callers have waited long enough, but a handshake of many steps may still succeed, for the next ones.
                self._fail_all(error)

    def end(self, error: Exception) -> None:
        """Fail pending commands and close the connection. A second call does nothing."""
        if self._failure is not None:
            return
        self._failure = error
        _living.discard(self)
        self._on_end(error)
        if self.pending == 0:
            log.debug("connection to %s ended: %s", self._server, error)
        self._fail_all(error)
        if self._watchdog is not None:
            self._watchdog.cancel()
        if asyncio.current_task(self._loop) is not self._task:
            self._task.cancel()

    def _fail_all(self, error: Exception) -> None:
        futures = [*self.sent, *self._unsent_futures]
        self.sent.clear()
        self._writes.clear()
        self._unsent.clear()
        self._unsent_futures.clear()
        self._unsent_bytes = 0
        self.make_room()
        for future in futures:
            if not future.done():
                future.set_exception(again(error))
