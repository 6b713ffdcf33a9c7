"""A job's failure is recorded before its message is acknowledged, and the message is always settled.

Celery acknowledges first. If its main process then cannot record the failure, because the result backend is away,
either the failure is lost with the message, or the message stays with a worker that no longer knows it, and occupies
one of its places for good.
"""

import logging
from traceback import walk_tb
from typing import Any

import celery.worker.request
from celery.app.task import Context
from celery.exceptions import TimeLimitExceeded
from kombu.asynchronous import get_event_loop
from kombu.exceptions import EncodeError

log = logging.getLogger("backburner.queue")


class Request(celery.worker.request.Request):
    """A task request whose failure cannot go unrecorded."""

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """Handle the failure as Celery does; then acknowledge the message, or return it to the queue if that went
        wrong."""
        if not return_ok and isinstance(getattr(exc_info.exception, "exc", None), TimeLimitExceeded):
            return  # `on_timeout` follows, and does the same again
        is_due, is_recorded = False, True

        def put_off() -> None:
            nonlocal is_due
            is_due = True

        own: Any = vars(self)  # Celery calls its method by the name
        own["acknowledge"] = put_off
        try:
            super().on_failure(exc_info, send_failed_event, return_ok)
        except MemoryError:
            # Celery raises the task's own once more, which the tracer has recorded if it has returned.
            is_due = is_recorded = return_ok
            log.warning("%s[%s] has run out of memory", self.name, self.id)
        except EncodeError as error:
            is_due = is_recorded = self._record_without_arguments(error)
        except Exception:
            is_recorded = False
            log.exception("that %s[%s] has failed could not be recorded; its message goes back", self.name, self.id)
        finally:
            del own["acknowledge"]
        if not is_recorded:
            self.reject(requeue=True)
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
            elif isinstance(error, EncodeError) and self._record_without_arguments(error):
                self.acknowledge()
            elif hub := get_event_loop():
                hub.call_soon(self.reject, True)  # later, when the process that runs it has been killed, which is next
            else:
                self.reject(requeue=True)

    def _record_without_arguments(self, error: EncodeError) -> bool:
        """Record a failure without the job's arguments, which `result_extended` stores too and which cannot be encoded:
        doing the job again would not change that. Returns whether it is recorded.
        """
        log.error("of %s[%s], which has failed, not all that is to be stored can be: %s", self.name, self.id, error)
        shown = {"args": self.argsrepr, "kwargs": self.kwargsrepr}
        try:
            context = Context(vars(self._context) | shown)  # type: ignore[attr-defined]  # the stubs leave it out
            self.task.backend.mark_as_failure(self.id, error, request=context, store_result=self.store_errors)
        except EncodeError:
            log.exception("nor can what is to be stored of the jobs that follow it")
        except Exception:
            log.exception("that %s[%s] has failed could not be recorded; its message goes back", self.name, self.id)
            return False
        return True
