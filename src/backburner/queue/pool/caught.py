"""Exceptions that escape Celery's tracer, such as SystemExit, or the error of a server that is away.

They end the job. But Celery's pools of threads and greenlets report this to nobody, so that the job would occupy one of
its worker's places for as long as the worker lives; and in the pool ``solo`` the worker would end with it.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import bootsteps
from celery.concurrency import solo, thread
from celery.exceptions import WorkerShutdown, WorkerTerminate
from greenlet import GreenletExit

Callback = Callable[..., Any]


class Catching(bootsteps.StartStopStep):
    """Has the pools ``solo``, of threads and of greenlets report the end of every job."""

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        pool = consumer.pool
        if isinstance(pool, thread.TaskPool | solo.TaskPool) or getattr(pool, "is_green", False):
            pool.on_apply = partial(_apply, pool.on_apply)


def failure(name: str, error: BaseException) -> ExceptionInfo:
    """The report to Celery of an exception that its tracer has not caught."""
    if not isinstance(error, Exception):
        told = RuntimeError(f"{name} raised {error!r}, which ends the job and not the worker")
        told.__cause__ = error
        return ExceptionInfo((RuntimeError, told.with_traceback(error.__traceback__), error.__traceback__))
    return ExceptionInfo((type(error), error, error.__traceback__))


def _apply(
    on_apply: Callback,
    target: Callback,
    args: tuple[Any, ...],
    kwargs: Any = None,
    callback: Callback | None = None,
    accept_callback: Callback | None = None,
    error_callback: Callback | None = None,
    **options: Any,
) -> Any:
    told = partial(_tell, callback, error_callback)
    return on_apply(partial(_run, target), args, kwargs, told, accept_callback, **options)


def _run(target: Callback, name: str, *args: Any) -> Any:
    ends_greenlets = (GreenletExit, getattr(sys.modules.get("gevent"), "Timeout", GreenletExit))
    try:
        return target(name, *args)
    except (WorkerShutdown, WorkerTerminate, *ends_greenlets):
        raise  # Celery's pool handles it
    except BaseException as error:  # noqa: BLE001  # whatever it is, the job has ended
        return failure(name, error)


def _tell(returned: Callback | None, failed: Callback | None, outcome: Any) -> None:
    tell = failed if isinstance(outcome, ExceptionInfo) else returned
    if tell is not None:
        tell(outcome)
