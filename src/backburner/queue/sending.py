"""How messages reach the broker: in chunks, each one call of ``enqueue.lua``, over a connection that all threads share,
and one that all coroutines of an event loop share.

Each chunk has a budget. Nothing is sent twice without need, and to the script a second attempt is the same delivery.
Only the time that name resolution takes cannot be bounded.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, TypeVar
from weakref import WeakKeyDictionary, ref

import celery
import redis

from backburner.queue.deadline import OutOfTime, deadline, limited, remaining
from backburner.queue.delivery import ENQUEUE, TRANSACTION, is_delivered
from backburner.queue.executor import in_thread
from backburner.queue.publishing import FOREIGN, not_enqueued
from backburner.queue.template import Template
from backburner.redis.blocking import BlockingClient
from backburner.redis.command import Pipeline, again
from backburner.redis.pipelined import PipelinedClient
from backburner.redis.spare import SpareConnections

T = TypeVar("T")

log = logging.getLogger("backburner.queue")

CHUNK: Final = 200
"""Jobs per write: enough to make each one cheap, few enough that making them does not hold up an event loop."""
GATHERED: Final = 32
"""Jobs of different callers that are sent together: the server works on them while the next ones are made."""
_SENT_AGAIN: Final = (*FOREIGN, redis.ResponseError)
"""Errors of a chunk that was sent ahead. It is then sent as usual, to the script the same delivery."""
_ATTEMPTS: Final = 2
_PAUSE: Final = 0.05
"""Fraction of the budget to wait between attempts: what cut one connection may cut the next one, too."""
_CROWD: Final = 2
"""Threads with connections of their own; more threads do better with a shared one."""
_LOOK_FOR_LISTENERS: Final = 0.1
"""Seconds for which no events are made while nobody listens: an event costs a third of what a job costs."""

Call = tuple[Sequence[Any], dict[str, Any]]
"""Arguments of a task."""
Delivery = Callable[[], Awaitable[None]]
"""Waits until what was sent is delivered. Call it once. Raises `PublishError` if the server did not confirm."""


@dataclass(slots=True)
class Chunk:
    """The messages that go to the server in one call."""

    template: Template
    ids: list[str]
    calls: Sequence[Call]
    messages: list[str]
    announcements: list[str]
    token: str
    due: float | None
    has_new_ids: bool

    @property
    def is_plain(self) -> bool:
        """Whether it is one message of a new job that is due now, with nothing else to be done."""
        return len(self.ids) == 1 and self.due is None and self.has_new_ids and not self.announcements

    def words(self) -> tuple[str, ...]:
        """The number of keys, the keys and the arguments of the script."""
        place = self.template.place
        keys = place.keys(self.ids)
        return str(len(keys)), *keys, *place.arguments(self.messages, self.token, self.due, self.announcements)


class Port(Protocol):
    """What differs between blocking and asyncio."""

    def budgeted(self) -> AbstractContextManager[None]:
        """Bound what the block sends, unless its connection does so by itself."""
        ...

    def execute(self, *words: str) -> Awaitable[Any]:
        """Send a command, and wait for its reply."""
        ...

    def execute_all(self, *commands: tuple[str, ...]) -> Awaitable[list[Any]]:
        """Send commands together on one connection, and wait for their replies; callers that come after wait, too."""
        ...

    def deliver(self, chunk: Chunk) -> Delivery:
        """Send a chunk, alone or together with those of other callers."""
        ...

    def begin(self, chunk: Chunk) -> Delivery:
        """Send a chunk while another one of the same caller is still on its way."""
        ...

    async def aside(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function that may take long."""
        ...

    async def pause(self, seconds: float) -> None:
        """Wait, and let others have a turn."""
        ...


class Sender:
    """The connections to one server, and what is known about it."""

    def __init__(self, app: celery.Celery, url: str, budget: float) -> None:
        self._app = app
        self._url = url
        self._budget = budget
        self._declared: set[str] = set()
        self._heard = self._is_mute = False
        self._look_for_listeners_at = 0.0
        self._streams: WeakKeyDictionary[asyncio.AbstractEventLoop, _Stream] = WeakKeyDictionary()
        self.line = _Line(self, url, budget)
        """For threads."""

    def not_enqueued(self, chunk: Chunk, began: float, error: BaseException) -> Exception:
        """The error for the caller that has been enqueueing a chunk since `began` (monotonic seconds)."""
        return not_enqueued(self._app, chunk.template.place.task, began, error)

    def stream(self) -> Port:
        """The connection of the running event loop."""
        loop = asyncio.get_running_loop()
        stream = self._streams.get(loop)
        if stream is None:
            stream = self._streams[loop] = _Stream(self, self._url, self._budget)
        return stream

    def knows(self, chunk: Chunk) -> bool:
        """Whether the chunk needs no preparation and no announcement, which depends on an earlier reply."""
        template = chunk.template
        return template.queue in self._declared and not chunk.announcements and not template.place.replicas

    def has_listeners(self) -> bool:
        """Whether anybody may be listening for events; if nobody was, that is checked again now and then."""
        now = time.monotonic()
        if not self._heard and now < self._look_for_listeners_at:
            return False
        self._look_for_listeners_at = now + _LOOK_FOR_LISTENERS
        return True

    def close(self) -> None:
        """Close the connections; those of event loops once nothing is on its way."""
        self.line.close()
        for loop in self._streams.keyrefs():
            if (known := loop()) is not None and (stream := self._streams.get(known)) is not None:
                stream.retire()

    async def send(self, port: Port, chunk: Chunk, began: float | None = None) -> None:
        """Send a chunk, and return once it is delivered. `began` is when this was first tried, in monotonic seconds.

        Raises:
            PublishError: the server did not confirm it.
        """
        began, attempts, script = began or time.monotonic(), 0, ("EVALSHA", ENQUEUE.sha)
        template, words, replicas = chunk.template, chunk.words(), chunk.template.place.replicas
        with port.budgeted():
            while True:
                try:
                    if template.queue not in self._declared:
                        for binding in template.bindings:
                            await port.execute(*binding)
                        self._declared.add(template.queue)
                    if replicas:
                        heard, count = await port.execute_all((*script, *words), template.place.wait(self._budget))
                        template.place.check_replicas(count)
                    else:
                        heard = await port.execute(*script, *words)
                except redis.exceptions.NoScriptError:
                    script = ("EVAL", ENQUEUE.text)
                except FOREIGN as error:
                    attempts += 1
                    self._declared.discard(template.queue)  # the next server may be an empty one
                    # To the script, a second attempt is the same delivery. An error reply of the server's is not
                    # retried.
                    late = time.monotonic() - began > self._budget / 2
                    if attempts == _ATTEMPTS or late or isinstance(error, redis.ResponseError):
                        raise self.not_enqueued(chunk, began, error) from error
                    await port.pause(_PAUSE * self._budget)
                else:
                    if chunk.announcements:
                        self._listen(heard)
                    return

    def _listen(self, heard: int | bytes) -> None:
        """Note the reply to a chunk with announcements: how many heard them, or why nobody may."""
        self._heard = isinstance(heard, int) and heard > 0
        if isinstance(heard, bytes) and not self._is_mute:
            self._is_mute = True
            log.warning("jobs are enqueued, but monitors do not hear of it: %s", heard.decode(errors="replace"))


class _Line(BlockingClient):
    """One connection for all threads."""

    def __init__(self, sender: Sender, url: str, budget: float) -> None:
        # A thread waits for the one that has the connection, then for its own reply, and a second attempt must fit in.
        super().__init__(url, timeout=budget / 3, name="backburner-producer")
        pool = self._client.connection_pool
        pool.connection_class = limited(pool.connection_class)
        self._budget = budget
        self._sender = sender
        self._ahead = SpareConnections(pool)
        self._may_transact = True
        self._alone: Callable[[], _Turn | None] = lambda: None
        """A weak reference to the turn of the thread that has a connection of its own."""

    def budgeted(self) -> AbstractContextManager[None]:
        return deadline(self._budget)

    def patience(self) -> float:
        usual, left = super().patience(), remaining()
        return usual if left is None else min(usual, left)

    async def execute(self, *words: str) -> Any:
        return self.execute_command(*words)

    async def execute_all(self, *commands: tuple[str, ...]) -> list[Any]:
        return _together(self.pipeline(), commands).execute()

    def deliver(self, chunk: Chunk) -> Delivery:
        # One thread goes on while the server is at work. Those that come meanwhile share a connection; where they are
        # many, it is cheaper for all to do so.
        turn = self._alone()
        if (turn and not turn.is_over) or self.crowd > _CROWD:
            return lambda: self._sender.send(self, chunk)
        turn = _Turn()
        self._alone = ref(turn)
        return self.begin(chunk, turn)

    def begin(self, chunk: Chunk, turn: "_Turn | None" = None) -> Delivery:
        began = time.monotonic()
        arrived: Callable[[], bool] | None = None
        if self._sender.knows(chunk):
            with suppress(*_SENT_AGAIN), deadline(self._budget):
                arrived = self._transact(chunk) if turn and chunk.is_plain and self._may_transact else self._ask(chunk)

        async def arrival() -> None:
            try:
                with deadline(began + self._budget - time.monotonic()):
                    if arrived is not None:
                        with suppress(*_SENT_AGAIN):
                            if arrived():
                                return
                            chunk.token = uuid.uuid4().hex  # it is certain that this delivery has failed
                    await self._sender.send(self, chunk, began)
            finally:
                if turn:
                    turn.is_over = True

        return arrival

    # Both send a chunk. What they return reads whether it was delivered; what is an error says nothing about that.

    def _ask(self, chunk: Chunk) -> Callable[[], bool]:
        reply = self._ahead.ask("EVALSHA", ENQUEUE.sha, *chunk.words())
        return lambda: reply() is not None

    def _transact(self, chunk: Chunk) -> Callable[[], bool]:
        [job_id], [message] = chunk.ids, chunk.messages
        replies = self._ahead.ask_all(chunk.template.place.transaction(job_id, message, chunk.token), TRANSACTION)

        def arrived() -> bool:
            found = replies()
            # Without MULTI, a connection that is cut between two commands would leave one of them undone.
            self._may_transact = not isinstance(found[0], redis.ResponseError)
            return is_delivered(found)

        return arrived

    def close(self) -> None:
        super().close()
        self._ahead.close()

    async def aside(self, function: Callable[..., T], *args: Any) -> T:
        return function(*args)

    async def pause(self, seconds: float) -> None:
        if seconds:
            time.sleep(seconds)  # noqa: ASYNC251  # what threads do; there is no loop here


class _Turn:
    """A caller's turn: until it is over, or nothing refers to it any more because the caller was interrupted."""

    __slots__ = ("__weakref__", "is_over")

    def __init__(self) -> None:
        self.is_over = False  # told, because who keeps an error keeps all that its traceback refers to


class _Stream(PipelinedClient):
    """One connection for all coroutines of a loop. Jobs of one task enqueued in one tick form one chunk, except
    that a job is sent at once if nothing is on its way."""

    budgeted = staticmethod(nullcontext)

    def __init__(self, sender: Sender, url: str, budget: float) -> None:
        super().__init__(url, timeout=(1 - _PAUSE) * budget / _ATTEMPTS, name="backburner-producer")
        # Nothing here refers to the loop once nothing is on its way: as a weak key, it must not be kept alive by its
        # value.
        self._sender = sender
        self._budget = budget
        self._gathering: dict[Template, tuple[Chunk, list[asyncio.Future[None]]]] = {}
        self._sending: set[asyncio.Task[None]] = set()

    def execute(self, *words: str) -> Awaitable[Any]:
        return self.execute_command(*words)

    def execute_all(self, *commands: tuple[str, ...]) -> Awaitable[list[Any]]:
        return _together(self.pipeline(), commands).execute()

    def deliver(self, chunk: Chunk) -> Delivery:
        return self._in_time(chunk, self._deliver)

    def begin(self, chunk: Chunk) -> Delivery:
        return self._in_time(chunk, self._begin)

    def _in_time(self, chunk: Chunk, send: Callable[[Chunk], Delivery]) -> Delivery:
        """Await a send; inside a deadline, only until that. Other callers whose jobs are in the same chunk go on
        waiting."""
        left, began = remaining(), time.monotonic()
        if left is None:
            return send(chunk)
        delivery = send(chunk) if left else None

        async def arrival() -> None:
            if delivery is None:
                raise self._sender.not_enqueued(chunk, began, OutOfTime())
            try:
                async with asyncio.timeout(began + left - time.monotonic()):
                    await delivery()
            except TimeoutError as error:
                raise self._sender.not_enqueued(chunk, began, error) from error

        return arrival

    def _deliver(self, chunk: Chunk) -> Delivery:
        if len(chunk.ids) > 1 or chunk.due is not None or not chunk.has_new_ids:
            return lambda: self._send(chunk)
        if self.is_idle and not self._gathering and self._sender.knows(chunk):
            return self._send_now(chunk)
        loop = asyncio.get_running_loop()
        template, future = chunk.template, loop.create_future()
        if template not in self._gathering:
            mine = replace(chunk, ids=chunk.ids[:], messages=chunk.messages[:], announcements=chunk.announcements[:])
            self._gathering[template] = mine, [future]
            loop.call_soon(self._send_gathered, template)
        else:
            gathered, futures = self._gathering[template]
            gathered.ids += chunk.ids
            gathered.messages += chunk.messages
            gathered.announcements += chunk.announcements
            futures.append(future)
            if len(futures) == GATHERED:
                self._send_gathered(template)
        return lambda: future

    def _begin(self, chunk: Chunk) -> Delivery:
        if self.is_idle and self._sender.knows(chunk):
            return self._send_now(chunk)
        sending = self._start(self._send(chunk))
        return lambda: sending

    async def _send(self, chunk: Chunk, began: float | None = None) -> None:
        """Send within the budget as a whole: each step is bounded by a part of it, but there may be many steps."""
        began = began or time.monotonic()
        try:
            async with asyncio.timeout(began + self._budget - time.monotonic()):
                await self._sender.send(self, chunk, began)
        except TimeoutError as error:
            raise self._sender.not_enqueued(chunk, began, error) from error

    def _send_now(self, chunk: Chunk) -> Delivery:
        """Send at once, not when the loop comes round: single jobs that come meanwhile are gathered."""
        began = time.monotonic()
        reply = self.execute_now("EVALSHA", ENQUEUE.sha, *chunk.words())

        async def arrival() -> None:
            with suppress(*_SENT_AGAIN):
                await reply
                return
            await self._send(chunk, began)

        return arrival

    def _send_gathered(self, template: Template) -> None:
        if template in self._gathering:
            self._start(self._send_for_all(*self._gathering.pop(template)))

    def _start(self, sending: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(sending)
        self._sending.add(task)
        task.add_done_callback(self._sent)
        return task

    def _sent(self, task: "asyncio.Task[None]") -> None:
        self._sending.discard(task)
        if not task.cancelled():
            task.exception()  # a caller that was cancelled meanwhile does not retrieve it

    async def _send_for_all(self, chunk: Chunk, futures: list[asyncio.Future[None]]) -> None:
        try:
            await self._send(chunk)
        except Exception as error:  # noqa: BLE001  # raised for each caller
            for future in futures:
                if not future.done():
                    future.set_exception(again(error))
        else:
            for future in futures:
                if not future.done():
                    future.set_result(None)
        finally:
            for future in futures:
                future.cancel()  # no-op, unless this ends with its loop

    async def aside(self, function: Callable[..., T], *args: Any) -> T:
        return await in_thread(function, *args)

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def _together(pipeline: Pipeline[T], commands: Sequence[tuple[str, ...]]) -> Pipeline[T]:
    for command in commands:
        pipeline.execute_command(*command)
    return pipeline
