"""Celery's Redis result backend, with fewer requests to the server, and able to survive its outages.

Enqueueing a job subscribes to nothing. Whoever waits for a result, blocking or on an event loop, hears of it through
the process's one `Listener`. The server may go away and come back meanwhile: only the waiter's own timeout counts.
Storing a state takes one round trip, and a final state is never overwritten. Keys, messages and chords are stock
Celery's.
"""

import asyncio
import itertools
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeVar

import celery.backends.redis as stock
import celery.exceptions
import redis
from celery import states
from celery.backends.asynchronous import BaseResultConsumer, Drainer
from celery.utils.serialization import create_exception_cls
from kombu.exceptions import EncodeError
from kombu.utils.functional import fxrange

from backburner.queue.carrying import carry
from backburner.queue.coroutines import called_by_celery
from backburner.queue.deadline import deadline, limited, remaining
from backburner.queue.listener import Listener
from backburner.queue.pool import bridge
from backburner.queue.pool.client import Client
from backburner.queue.reporting import has_reports, settle
from backburner.queue.settlement import SETTLE, Offer, Stored, server_of, settling
from backburner.queue.starting import Starts
from backburner.queue.template import encode, is_plain_json
from backburner.queue.transport.consumer import store_for
from backburner.queue.transport.wire import tried_again
from backburner.redis.spare import SpareConnections

log = logging.getLogger("backburner.queue")

T = TypeVar("T")

_FOLLOWS_REPORTS = states.READY_STATES | {states.RETRY}

_FAMILY = (("group_id", "group"), ("parent_id", "parent_id"))
"""What Celery stores about a request, and where it finds it."""

_AWHILE = 0.25
"""Seconds within which a pool process stores its job's outcome on the server; after that, the main process has to."""
_PATIENCE = 2.0
"""Seconds for the first check whether results are there."""
_INTERVAL = 1.0
"""Seconds after which who waits without news is given a turn."""


class ResultConsumer(BaseResultConsumer):
    """What Celery asks for results: here, it passes the listener's news to the threads that wait."""

    backend: Any
    _pending_results: Any

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.drainer = Drainer(self)  # gevent's has a greenlet that looks for news, which the listener brings
        self.on_after_fork()

    def on_after_fork(self) -> None:
        self._subscriptions: dict[str, _Watched] = {}
        self._audience: dict[str, list[deque[dict[str, Any]]]] = {}
        """What is to be told to threads that want to hear of each state, by job."""
        self._waiting: Counter[int] = Counter()
        """How many threads wait with each result object, by its `id`."""
        self._news = threading.Condition()
        self._count = 0

    def start(self, initial_task_id: str, **_: Any) -> None:
        self.consume_from(initial_task_id)

    def consume_from(self, task_id: str) -> None:
        """Listen for a job's result from now on. Repeating it does nothing."""
        new = _Watched(self, task_id)
        if self._subscriptions.setdefault(task_id, new) is new:
            self.backend.listener.add(new)

    def hears_of(self, task_id: str) -> bool:
        """Whether anybody here waits for a job, or did and has not left yet."""
        return task_id in self._subscriptions

    def is_awaited(self, task_id: str) -> bool:
        """Whether a result object waits for the job, or has not been told yet that it has ended."""
        return any(task_id in waiting for waiting in self._pending_results)

    def cancel_for(self, task_id: str) -> None:
        """Stop listening for it. Takes no lock, because the garbage collector calls this, too."""
        self._forget(task_id)
        if self.is_awaited(task_id):
            self.consume_from(task_id)  # somebody has begun to wait since the caller saw that nobody did

    def stop(self) -> None:
        self.backend.listener.stop()
        self._subscriptions.clear()

    def _wait_for_pending(
        self,
        result: Any,
        timeout: float | None = None,
        on_interval: Callable[[], object] | None = None,
        on_message: Callable[[dict[str, Any]], object] | None = None,
        **_options: Any,
    ) -> Iterator[None]:
        # Celery's waits for promises, which another thread fulfils here, and calls `on_message` wherever the news comes
        # from: that is one thread here, for all that wait.
        if on_message is None:
            yield from self._wait(result, timeout, on_interval)
            return
        told = False
        with self.hearing(result) as heard:
            for _ in itertools.chain(self._wait(result, timeout, on_interval), (None,)):
                while heard:
                    told = True
                    on_message(heard.popleft())
                yield
        if not told and (last := getattr(result, "_cache", None)):  # before anybody could hear of it
            on_message(last)

    def _wait(self, result: Any, timeout: float | None, on_interval: Callable[[], object] | None) -> Iterator[None]:
        ends = math.inf if timeout is None else time.monotonic() + timeout
        jobs = [each for each in jobs_of(result) if not _has_ended(each)]
        with self._expecting(jobs):
            _block(self._look, jobs)
            ended, seen = _Ended(jobs), -1
            while not ended.ready:
                left = ends - time.monotonic()
                if left <= 0:
                    raise celery.exceptions.TimeoutError("the operation timed out")
                seen = _block(self._next, seen, min(left, _INTERVAL))
                yield
                if on_interval is not None:
                    on_interval()

    def _look(self, jobs: Sequence[Any]) -> None:
        """Allow results that are already there to be read, however short the timeout."""
        left = remaining()
        ends = time.monotonic() + (_PATIENCE if left is None else left)
        for job in jobs:
            if subscription := self._subscriptions.get(job.id):
                subscription.looked.wait(max(0.0, ends - time.monotonic()))

    def _next(self, seen: int, seconds: float) -> int:
        """Wait until there is more news than this, at most so long. Returns how much there is."""
        with self._news:
            self._news.wait_for(lambda: self._count != seen, seconds)
            return self._count

    @contextmanager
    def _expecting(self, jobs: Sequence[Any]) -> Iterator[None]:
        """Have these result objects told, until no thread waits with them any more."""
        with self._news:
            self._waiting.update(map(id, jobs))
            for job in jobs:
                self.backend.add_pending_result(job)
        try:
            yield
        finally:
            with self._news:
                self._waiting.subtract(map(id, jobs))
                for job in jobs:
                    if self._waiting[id(job)] == 0:
                        del self._waiting[id(job)]
                        if not (_has_ended(job) or any(job.on_ready.listeners)):
                            self.backend.remove_pending_result(job)

    @contextmanager
    def hearing(self, result: Any) -> Iterator[deque[dict[str, Any]]]:
        """Collect each state that arrives for the result, or for the results of a group."""
        heard: deque[dict[str, Any]] = deque()
        job_ids = {each.id for each in getattr(result, "results", [result])}
        with self._news:
            for job_id in job_ids:
                self._audience.setdefault(job_id, []).append(heard)
                if (subscription := self._subscriptions.get(job_id)) and subscription.state:
                    heard.append(subscription.state)
        try:
            yield heard
        finally:
            with self._news:
                for job_id in job_ids:
                    others = [each for each in self._audience.pop(job_id, ()) if each is not heard]
                    if others:
                        self._audience[job_id] = others

    def on_state_change(self, meta: dict[str, Any], message: bytes) -> None:
        """Pass the state on to the job's result objects. Runs in the listener's thread."""
        job_id = meta["task_id"]
        with self._news:  # before anybody's wait is over by it
            if subscription := self._subscriptions.get(job_id):
                subscription.state = meta
            for heard in self._audience.get(job_id, ()):
                heard.append(meta)
        if meta["status"] in self.backend.READY_STATES:
            self._forget(job_id)  # first, so that whoever begins to wait from now on subscribes anew
            results = [each for waiting in self._pending_results for each in [*waiting.get(job_id, {}).values()]]
            for number, result in enumerate(results):
                # An exception must not be raised in several threads: each result has its own.
                result._set_cache(self.backend.decode_result(message) if number else meta)  # noqa: SLF001  # as Celery's
                self.backend.listener.callbacks.add(partial(result.on_ready, result))
        with self._news:
            self._count += 1
            self._news.notify_all()

    def watches(self, subscription: "_Watched") -> bool:
        """Whether the subscription is still wanted."""
        return self._subscriptions.get(subscription.task_id) is subscription

    def _forget(self, task_id: str) -> None:
        if subscription := self._subscriptions.pop(task_id, None):
            self.backend.listener.remove(subscription)


class _Ended:
    """Whether each of several jobs has ended: what Celery asks a promise."""

    def __init__(self, jobs: Sequence[Any]) -> None:
        self._left = [*jobs]

    @property
    def ready(self) -> bool:
        while self._left and _has_ended(self._left[-1]):
            self._left.pop()
        return not self._left


def jobs_of(result: Any) -> Iterator[Any]:
    """A job, or those of a group and of the groups in it."""
    if not hasattr(result, "results"):
        yield result
        return
    for each in result.results:
        yield from jobs_of(each)


def _block(function: Callable[..., T], *args: Any) -> T:
    """Call a function that blocks, but not the asyncio pool's loop."""
    return bridge.in_thread(function, *args) if bridge.is_here() else function(*args)


def _has_ended(job: Any) -> bool:
    return job._cache is not None  # noqa: SLF001  # all else would ask the server


class _Watched:
    """A job that threads wait for."""

    def __init__(self, consumer: ResultConsumer, task_id: str) -> None:
        self.channel: bytes = consumer.backend.get_key_for_task(task_id)
        self.task_id = task_id
        self.looked = threading.Event()
        self.state: dict[str, Any] | None = None
        """The last one that was heard of."""
        self._consumer = consumer

    def question(self) -> tuple[str, bytes]:
        return ("GET", self.channel)

    def answered(self, reply: bytes | None) -> None:
        try:
            if reply is not None:
                self.heard(reply)
        finally:
            self.looked.set()

    def heard(self, message: bytes) -> None:
        if self._consumer.watches(self):
            self._consumer.on_state_change(self._consumer.backend.decode_result(message), message)


class _Form(NamedTuple):
    """The form in which states are stored, valid while the configuration stays the same."""

    changes: dict[str, Any]
    maps: int
    timezone: Any
    is_plain: bool


class _Patient:
    """What both backends below have in common; a mixin in front of one of Celery's backends."""

    # Of the class behind it.
    client: Any
    serializer: str
    compression: Any
    expires: int | None
    failure_expires: int | None
    result_consumer: Any
    _MAX_STR_VALUE_SIZE: int
    as_uri: Callable[..., str]
    retry_policy: dict[str, Any]
    connection_errors: tuple[type[Exception], ...]
    app: Any
    always_retry: bool
    encode_result: Any
    current_task_children: Any
    get_key_for_task: Any
    meta_from_decoded: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._known_form: _Form | None = None
        self.starts = Starts(self._settle)
        """Of jobs that run in this process."""

    @cached_property
    def listener(self) -> Listener:
        """The process's one listener for all results."""
        return Listener(lambda: self.client.connection_pool, self.as_uri())

    def store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **options: Any
    ) -> Any:
        """Store a state, after everything that the job has reported before."""
        if state in _FOLLOWS_REPORTS and has_reports(task_id):
            if bridge.is_here():
                bridge.in_thread(settle, task_id)
            else:
                settle(task_id)
        form = self._form()
        if form is None:
            return super().store_result(task_id, result, state, traceback, request, **options)  # type: ignore[misc]
        result = self.encode_result(result, state)
        now = datetime.now(form.timezone).isoformat()

        def stored(began: str) -> Stored:
            meta = {
                "status": state,
                "result": result,
                "traceback": traceback,
                "children": self.current_task_children(request),
                "date_done": now if state in states.READY_STATES else None,
            }
            for name, attribute in _FAMILY:
                if value := getattr(request, attribute, None):
                    meta[name] = value
            meta["task_id"] = task_id
            try:
                json = encode(meta)
            except Exception as error:
                raise EncodeError(str(error) or repr(error)) from error  # as kombu does
            if len(json) > self._MAX_STR_VALUE_SIZE:
                raise celery.exceptions.BackendStoreError("the result is too large for a server")
            keep = self.failure_expires if state == states.FAILURE else self.expires
            number = (getattr(request, "properties", None) or {}).get("delivery_tag")
            return Stored(self.get_key_for_task(task_id), json, keep or 0, began, number)

        if state == states.STARTED:
            self.starts.add(task_id, now, partial(stored, now))
            return result
        final = stored(self.starts.end(task_id))
        if state not in states.READY_STATES or not (
            store_for(self._server, final) or (state == states.SUCCESS and carry(request, self._server, final))
        ):
            self.ensure(self._settle, ([final],))
        return result

    def store_carried(self, state: Stored) -> bool:
        """Store the result that a pool process has left to this one. Returns whether it has been or will be stored."""
        if store_for(self._server, state):
            return True
        try:
            self._settle([state])
        except Exception as error:  # noqa: BLE001  # whatever is wrong with it, its message must be settled
            log.warning("a result could not be stored: %s", str(error) or repr(error))
            return False
        return True

    def settle_alone(self, state: Stored, offer: Offer) -> bool:
        """Store a job's outcome, and acknowledge its message, from a pool process. ``False`` if the server has not
        confirmed that; repeating it does no harm.
        """
        try:
            with deadline(_AWHILE):
                self._settle([state], offer.leases, [offer.number])
        except Exception as error:  # noqa: BLE001  # a time limit's too: the job has ended, and somebody has to say so
            log.warning("the worker is to store a result that its process could not: %r", error)
            return False
        return True

    def _form(self) -> "_Form | None":
        """``None`` if the configuration requires that Celery itself stores states."""
        conf: Any = self.app.conf
        form = self._known_form
        if form is None or form.changes != conf.changes or form.maps != len(conf.maps):
            plain = not (conf.result_extended or self.always_retry or self.compression) and self.serializer == "json"
            form = self._known_form = _Form(
                dict(conf.changes),
                len(conf.maps),
                UTC if self.app.uses_utc_timezone() else self.app.timezone,
                plain and is_plain_json(),
            )
        return form if form.is_plain else None

    @cached_property
    def _server(self) -> tuple[Any, ...]:
        pool = self.client.connection_pool
        return server_of(pool.connection_class(**pool.connection_kwargs))

    @tried_again()
    def _settle(self, stored: Sequence[Stored], leases: str = "", acknowledged: Sequence[int] = ()) -> None:
        words = settling(leases, acknowledged, stored)
        # For a job on a loop, only the client knows how to wait.
        ask = self.client.execute_command if bridge.is_here() else self._ask
        try:
            ask("EVALSHA", SETTLE.sha, *words)
        except redis.exceptions.NoScriptError:
            ask("EVAL", SETTLE.text, *words)

    def _ask(self, *command: Any) -> Any:
        return self._spare.ask(*command)()

    @cached_property
    def _spare(self) -> SpareConnections:
        return SpareConnections(self.client.connection_pool)

    @called_by_celery
    def _call_task_errbacks(self, *args: Any) -> None:
        super()._call_task_errbacks(*args)  # type: ignore[misc]  # of the backend this stands before

    def close(self) -> None:
        """Close the connections, and end the listener's thread. Both start again when needed."""
        self.result_consumer.stop()
        self._spare.close()
        self.client.connection_pool.disconnect(inuse_connections=False)

    def get(self, key: Any) -> Any:
        """What is stored there. If the connection was dead, those that rest may be, too, and a new one is asked."""
        try:
            return super().get(key)  # type: ignore[misc]  # of the backend this stands before
        except self.connection_errors:
            self.client.connection_pool.disconnect(inuse_connections=False)
            return super().get(key)  # type: ignore[misc]  # as above

    def exception_to_python(self, exc: Any) -> Any:
        """As Celery's; but an exception that its class cannot make again of its arguments (a group, or one that wants
        keywords) is of a class of that name instead of a plain `Exception`."""
        error = super().exception_to_python(exc)  # type: ignore[misc]  # of the backend this stands before
        if type(error) is Exception and isinstance(exc, dict) and exc["exc_type"] != "Exception":
            told = exc.get("exc_message", "")
            kind = create_exception_cls(exc["exc_type"], exc.get("exc_module") or __name__)
            return kind(*told) if isinstance(told, tuple | list) else kind(told)
        return error

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Do nothing. Stock Celery subscribes here, so that it cannot enqueue without the backend."""

    def iter_native(self, result: Any, **options: Any) -> Iterator[tuple[str, Any]]:
        """Each job of a group, as it ends, and what became of it; last the groups in it. Celery's has one place where a
        job's end is noted, of which a second thread that waits for the job would find nothing."""
        left = {each.id: each for each in result.results}
        with self.result_consumer.hearing(result) as heard:
            for job_id in [each.id for each in left.values() if getattr(each, "_cache", None)]:
                yield job_id, left.pop(job_id)._cache  # noqa: SLF001  # as Celery's does
            for _ in self.result_consumer._wait_for_pending(result, **options):  # noqa: SLF001  # as Celery's does
                while heard:
                    meta = heard.popleft()
                    if meta["status"] in states.READY_STATES and (job := left.pop(meta["task_id"], None)):
                        yield job.id, job._cache or job._set_cache(self.meta_from_decoded(meta))  # noqa: SLF001
        for each in left.values():
            yield each.id, getattr(each, "_cache", None) or each.children

    def remove_pending_result(self, result: Any) -> Any:
        """Stop waiting. Called for each job that is garbage-collected; most were never waited for."""
        if not (self.result_consumer.hears_of(result.id) or self.result_consumer.is_awaited(result.id)):
            return result
        return super().remove_pending_result(result)  # type: ignore[misc]  # of the backend this stands before

    def ensure(self, fun: Callable[..., Any], args: tuple[Any, ...], **policy: Any) -> Any:
        """Call `fun`; retry as stock Celery does (for twenty seconds), but never inside a deadline."""
        if remaining() is not None:
            return fun(*args)
        if bridge.is_here():
            return self._ensure_on_loop(fun, args, policy)
        return super().ensure(fun, args, **policy)  # type: ignore[misc]  # of the backend this stands before

    def _ensure_on_loop(self, fun: Callable[..., Any], args: tuple[Any, ...], policy: dict[str, Any]) -> Any:
        # Stock Celery's pauses would block the loop.
        policy = self.retry_policy | policy
        pauses = iter(fxrange(policy["interval_start"], policy["interval_max"], policy["interval_step"], True))
        for attempt in itertools.count():
            try:
                return fun(*args)
            except self.connection_errors as error:
                if policy["max_retries"] is not None and attempt >= policy["max_retries"]:
                    raise
                connection: Any = self
                pause = connection.on_connection_error(policy["max_retries"], error, pauses, attempt)
                bridge.wait_for(asyncio.sleep(pause))
        raise AssertionError("unreachable")

    def _get_client(self) -> type[Client]:
        return Client

    @tried_again()
    def _set(self, key: bytes, value: bytes, expires: int | None = None) -> None:
        # Stock Celery's, without a command that redis-py warns of.
        with self.client.pipeline() as pipeline:
            pipeline.set(key, value, ex=(self.expires if expires is None else expires) or None)
            pipeline.publish(key, value)
            pipeline.execute()

    def _get_pool(self, **options: Any) -> Any:
        pool = super()._get_pool(**options)  # type: ignore[misc]  # of the backend this stands before
        pool.connection_class = limited(pool.connection_class)
        if not pool.connection_kwargs.get("client_name"):
            pool.connection_kwargs["client_name"] = "backburner-results"
        return pool


class RedisBackend(_Patient, stock.RedisBackend):  # type: ignore[misc]  # stubs of `iter_native`
    """Results in a Redis or Valkey server."""

    ResultConsumer = ResultConsumer


class SentinelBackend(_Patient, stock.SentinelBackend):  # type: ignore[misc]  # as above
    """Results in the master that Sentinels name."""

    ResultConsumer = ResultConsumer


OVERRIDES = {
    scheme: f"{__name__}:{backend.__name__}"
    for scheme, backend in {
        "redis": RedisBackend,
        "rediss": RedisBackend,
        "sentinel": SentinelBackend,
    }.items()
}
"""For Celery's loader: the aliases of its backends that these replace."""
