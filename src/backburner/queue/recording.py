"""A job's failure is recorded before its message is acknowledged, and the message is always settled.

Celery acknowledges first. If its main process then cannot record the failure, because the result backend is away,
either the failure is lost with the message, or the message stays with a worker that no longer knows it, and occupies
one of its places for good.

A message whose job's failure could not be recorded goes back, for the job to be done again: after a pause, which grows.
The backend may be away, or never take this one. Our transport has such messages wait on the server, and not for ever.
Those of other brokers, which may drop what is rejected for good, wait here, and keep their places.
"""

import logging
from threading import Timer
from traceback import walk_tb
from typing import Any

import celery.worker.request
from celery.app.task import Context
from celery.exceptions import TimeLimitExceeded
from kombu.asynchronous import get_event_loop
from kombu.exceptions import EncodeError
from kombu.utils.encoding import safe_str
from kombu.utils.functional import LRUCache

from backburner.queue.transport.consumer import FIRST_PAUSE, LONGEST_PAUSE

log = logging.getLogger("backburner.queue")

_paused: Any = LRUCache(1000)
"""By job, the last pause of its message here."""


class Request(celery.worker.request.Request):
    """A task request whose failure cannot go unrecorded."""

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """Handle the failure as Celery does; then acknowledge the message, or return it to the queue if that went
        wrong."""
        if not return_ok and isinstance(getattr(exc_info.exception, "exc", None), TimeLimitExceeded):
            return  # `on_timeout` follows, and does the same again
        is_due = False
        trouble: Exception | None = None

        def put_off() -> None:
            nonlocal is_due
            is_due = True

        own: Any = vars(self)  # Celery calls its method by the name
        own["acknowledge"] = put_off
        try:
            super().on_failure(exc_info, send_failed_event, return_ok)
        except MemoryError as error:
            # Celery raises the task's own once more, which the tracer has recorded if it has returned.
            is_due, trouble = return_ok, None if return_ok else error
            log.warning("%s[%s] has run out of memory", self.name, self.id)
        except EncodeError as error:
            trouble = self._record_without_arguments(error)
            is_due = trouble is None
        except Exception as error:
            trouble = error
            log.exception("that %s[%s] has failed could not be recorded; its message goes back", self.name, self.id)
        finally:
            del own["acknowledge"]
        if trouble is not None:
            self._give_back(trouble)
        elif is_due:
            self.acknowledge()

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Handle the time limit as Celery does, but return the message to the queue if the failure could not be
        recorded."""
        try:
            super().on_timeout(soft, timeout)
        except Exception as error:
            if soft or self.acknowledged:
                raise
            log.exception("what follows from the time limit of %s[%s] went wrong", self.name, self.id)
            if all(frame.f_code.co_name != "mark_as_failure" for frame, _ in walk_tb(error.__traceback__)):
                self.acknowledge()  # the error came from one of the task's hooks: the failure is recorded
                return
            trouble = self._record_without_arguments(error) if isinstance(error, EncodeError) else error
            if trouble is None:
                self.acknowledge()
            elif hub := get_event_loop():
                # Later, when the process that runs it has been killed, which is next.
                hub.call_soon(self._give_back, trouble)
            else:
                self._give_back(trouble)

    def _give_back(self, trouble: BaseException) -> None:
        """Return the message to the queue, because of what kept the failure from being recorded."""
        if hasattr(self.message, "unrecorded"):
            self.message.unrecorded = f"{type(trouble).__name__}: {safe_str(trouble)}"
            self.reject(requeue=True)
            return
        pause = _paused[self.id] = min(4 * _paused.get(self.id, FIRST_PAUSE / 4), LONGEST_PAUSE)
        if hub := get_event_loop():
            hub.call_soon(hub.call_later, pause, self.reject, True)  # this may be another thread
        else:
            waiting = Timer(pause, self.reject, (True,))
            waiting.daemon = True
            waiting.start()

    def _record_without_arguments(self, error: EncodeError) -> Exception | None:
        """Record a failure without the job's arguments, which `result_extended` stores too and which cannot be encoded:
        doing the job again would not change that. Returns what kept it from being recorded, if anything did.
        """
        log.error("of %s[%s], which has failed, not all that is to be stored can be: %s", self.name, self.id, error)
        shown = {"args": self.argsrepr, "kwargs": self.kwargsrepr}
        try:
            context = Context(vars(self._context) | shown)  # type: ignore[attr-defined]  # the stubs leave it out
            self.task.backend.mark_as_failure(self.id, error, request=context, store_result=self.store_errors)
        except EncodeError:
            log.exception("nor can what is to be stored of the jobs that follow it")
        except Exception as trouble:
            log.exception("that %s[%s] has failed could not be recorded; its message goes back", self.name, self.id)
            return trouble
        return None
