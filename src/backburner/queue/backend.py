"""Celery's Redis result backend, with fewer requests to the server, and able to survive its outages.

Enqueueing a job subscribes to nothing. Whoever waits for a result (`waiting`) hears of it through the process's one
`Listener`. The server may go away and come back meanwhile: only the waiter's own timeout counts.
Storing a state takes one round trip, and a final state is never overwritten. Keys, messages and chords are stock
Celery's.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any, NamedTuple

import celery.backends.redis as stock
import celery.exceptions
import redis
from celery import states
from celery.utils.serialization import create_exception_cls, get_pickled_exception
from kombu.exceptions import EncodeError
from kombu.utils.functional import fxrange

from backburner.errors import ResultUnavailable
from backburner.queue.carrying import carry
from backburner.queue.coroutines import called_by_celery
from backburner.queue.deadline import deadline, limited, remaining
from backburner.queue.listener import Listener
from backburner.queue.pool import bridge
from backburner.queue.pool.client import Client
from backburner.queue.reporting import has_reports, settle
from backburner.queue.settlement import SETTLE, Offer, Stored, check_told, server_of, settling
from backburner.queue.starting import Starts
from backburner.queue.template import encode, is_plain_json
from backburner.queue.transport.consumer import store_for
from backburner.queue.transport.wire import tried_again
from backburner.queue.waiting import ResultConsumer
from backburner.redis.in_step import in_step
from backburner.redis.spare import SpareConnections

log = logging.getLogger("backburner.queue")

_FOLLOWS_REPORTS = states.READY_STATES | {states.RETRY}

_FAMILY = (("group_id", "group"), ("parent_id", "parent_id"))
"""What Celery stores about a request, and where it finds it."""

_ESSENTIAL = {"status", "result"}
"""What every stored state has, whoever has stored it."""

_AWHILE = 0.25
"""Seconds within which a pool process stores its job's outcome on the server; after that, the main process has to."""


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
    get_key_for_group: Any
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
            bridge.block(settle, task_id)
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
        # An errback is called right after this, and may look at what became of the job.
        at_once = state == states.FAILURE and getattr(request, "errbacks", None)
        if (
            at_once
            or state not in states.READY_STATES
            or not (store_for(self._server, final) or (state == states.SUCCESS and carry(request, self._server, final)))
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
            check_told(ask("EVALSHA", SETTLE.sha, *words))
        except redis.exceptions.NoScriptError:
            check_told(ask("EVAL", SETTLE.text, *words))

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

    def decode_result(self, payload: Any) -> dict[str, Any]:
        """What Celery calls a job's meta.

        Raises:
            ResultUnavailable: it cannot be read here.
        """
        try:
            meta: dict[str, Any] = super().decode_result(payload)  # type: ignore[misc]  # as above
            if not (isinstance(meta["status"], str) and meta.keys() >= _ESSENTIAL):
                raise ValueError("it is not what Celery stores")  # noqa: TRY301  # as whatever else is wrong with it
        except Exception as error:
            raise ResultUnavailable(
                f"what became of a job cannot be read here ({type(error).__name__}: {error}). The job is not affected. "
                "Is its worker configured as this program is (result_serializer, result_accept_content), and has "
                "anybody else written under its key?"
            ) from error
        return meta

    def exception_to_python(self, exc: Any) -> Any:
        """As Celery's; but an exception that its class cannot make again of its arguments (a group, or one that wants
        keywords) is of a class of that name instead of a plain `Exception`, or of the wrapper that a worker stores."""
        error = get_pickled_exception(super().exception_to_python(exc))  # type: ignore[misc]  # of the backend behind
        if type(error) is Exception and isinstance(exc, dict) and exc["exc_type"] != "Exception":
            told = exc.get("exc_message", "")
            kind = create_exception_cls(exc["exc_type"], exc.get("exc_module") or __name__)
            return kind(*told) if isinstance(told, tuple | list) else kind(told)
        return error

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Do nothing. Stock Celery subscribes here, so that it cannot enqueue without the backend."""

    def apply_chord(self, header_result_args: tuple[Any, ...], body: Any, **options: Any) -> None:
        """As Celery's. That a chord with this id has ended before is forgotten first: Celery does so when it sends the
        last job of the header, and a job of it that has ended by then would not count."""
        self.ensure(self.client.delete, (self.get_key_for_group(header_result_args[0], ".c"),))
        super().apply_chord(header_result_args, body, **options)  # type: ignore[misc]  # of the backend this stands before

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
        if self.result_consumer.is_waited_with(result):
            return result  # its owner forgets the result, and a thread waits for what the job gives
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
        pool.connection_class = limited(in_step(pool.connection_class))
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
