"""Records the failure of jobs whose end nobody else can record: their workers died, the message was unreadable, or how
they ended could not be recorded.

The scripts that move a message to the failed ones only note that its failure is to be recorded as the job's result. A
worker that consumes from the message's queue does that, in a separate thread, because the result backend may be slow.
The note is kept until that has succeeded.
"""

import logging
from base64 import b64decode
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

import celery.app.task
import celery.exceptions
import kombu.serialization
import redis
from billiard.exceptions import WorkerLostError
from celery import states
from kombu.exceptions import DecodeError, SerializationError, SerializerNotInstalled
from kombu.utils.json import loads

from backburner.queue.keys import Keys
from backburner.queue.transport.native import Thread
from backburner.queue.transport.wire import Wire, will_pass

log = logging.getLogger("backburner.queue")

_PAUSE: Final = 10.0
"""Seconds before recording a failure is retried."""
_AT_ONCE: Final = 100
_UNREADABLE: Final = (SerializationError, SerializerNotInstalled, ValueError, LookupError, TypeError, AttributeError)
"""Errors that reading a message that is not Celery's leads to."""

Context: Any = celery.app.task.Context
_serialization: Any = kombu.serialization  # the stubs leave the registry out


class Teller:
    """Marks jobs of an app as failed."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._thread: Thread | None = None
        self._next = 0.0

    def tell(self, connect: Callable[..., Any], keys: Keys) -> None:
        """Start recording the noted failures, unless that is in progress. Does not wait for it."""
        if (self._thread is None or self._thread.join(0)) and monotonic() >= self._next:
            self._thread = Thread(lambda: self._run(connect, keys), "backburner-failures")
            self._thread.start()

    def _run(self, connect: Callable[..., Any], keys: Keys) -> None:
        try:
            wire = Wire(connect)
            try:
                self._tell(wire, keys)
            finally:
                wire.close()
        except Exception as error:  # noqa: BLE001  # of any result backend; it is tried again
            self._next = monotonic() + _PAUSE
            log.warning("that jobs failed could not be told to the result backend: %r", error)

    def _tell(self, wire: Wire, keys: Keys) -> None:
        for name in wire.call(("SRANDMEMBER", keys.untold, _AT_ONCE)):
            member = name.decode()
            record = wire.call(("HMGET", keys.failure(member), "reason", "detail", "list", "message"))
            reason, detail, list_, message = (value and value.decode("utf-8", "replace") for value in record)
            if message:
                if keys.queue(list_) not in self._app.amqp.queues.consume_from:
                    continue
                try:
                    self._mark(member, reason, detail, message)
                except (*_UNREADABLE, redis.ResponseError) as error:
                    if will_pass(error):
                        raise
                    log.exception("that %s failed (%s: %s) is not told to the result backend", member, reason, detail)
            wire.call(("SREM", keys.untold, member))

    def _mark(self, member: str, reason: str, detail: str, text: str) -> None:
        app, request = self._app, _request(text, self._app.conf.accept_content)
        # An unreadable message is known by its name among the failed ones, which is the job's id if there was one.
        request.id = request.id or member
        if app.backend.get_state(request.id) in states.READY_STATES:
            return
        error = _error(reason, detail)
        task = app.tasks.get(getattr(request, "task", None))
        stores = not request.ignore_result or getattr(task, "store_errors_even_if_ignored", False)
        app.backend.mark_as_failure(request.id, error, request=request, store_result=stores)
        with app.events.default_dispatcher() as dispatcher:
            dispatcher.send("task-failed", uuid=request.id, exception=repr(error), traceback="")


def _error(reason: str, detail: str) -> Exception:
    if reason == "crashed":
        return WorkerLostError(detail)
    if reason == "unrecorded":
        return celery.exceptions.BackendStoreError(detail)
    return DecodeError(f"the message cannot be read: {detail}")


def _request(text: str, accept: Any) -> Any:
    """As much of a task request as can be read from a message."""
    try:
        message = loads(text)
        headers, properties = dict(message["headers"]), message["properties"]
    except _UNREADABLE:
        return Context()
    try:
        body = message["body"]
        if properties.get("body_encoding") == "base64":
            body = b64decode(body)
        args, kwargs, embedded = _serialization.loads(
            body, message["content-type"], message["content-encoding"], accept=accept
        )
    except _UNREADABLE:
        args, kwargs, embedded = (), {}, {}
    return Context(
        headers, args=args, kwargs=kwargs, delivery_info=properties.get("delivery_info") or {}, **(embedded or {})
    )
