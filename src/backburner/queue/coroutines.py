"""``async def`` tasks in the pools that know nothing of asyncio: prefork, threads, solo.

Each thread that runs tasks has one event loop, which lives as long as the thread, so that clients kept by
the user's code stay usable from job to job. One job at a time runs on it; thousands at a time are an
asyncio pool's business.
"""

import asyncio
import contextvars
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import cache, wraps
from inspect import iscoroutinefunction
from typing import Any

import celery

from backburner.queue import reporting
from backburner.queue.arguments import Arguments
from backburner.queue.cancellation import cancellable

_local = threading.local()


@cache  # Celery registers a function more than once, and tells by its identity that it is the same one
def runnable(function: Callable[..., Any], bound: bool = False) -> Callable[..., Any]:
    """The function itself, or where that is not enough one that a worker can call with what came in the message.

    Called directly (``await task(…)``) it does what the function does, as anybody would expect.
    """
    arguments = Arguments(function, bound=bound)
    is_coroutine = iscoroutinefunction(function)
    if not is_coroutine and not arguments.may_convert:
        return function

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        task: Any = celery.current_app.current_task
        if not task or task.request.called_directly:
            return function(*args, **kwargs)
        first, rest = args[:bound], args[bound:]
        decoded, named = arguments.decode(rest, kwargs)
        result = function(*first, *decoded, **named)
        return arguments.encode_result(_finish(task, result) if is_coroutine else result)

    run.written_function = function  # type: ignore[attr-defined]  # read by `signature_source`
    return run


def signature_source(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function whose parameters count: what `runnable` got."""
    return getattr(function, "written_function", function)


def _finish(task: Any, coroutine: Coroutine[Any, Any, Any]) -> Any:
    context = contextvars.copy_context()
    context.run(reporting.attach, task)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _runner().run(cancellable(task.request.id, coroutine), context=context)
    # An eager task called from a coroutine: this thread's loop is busy with the caller.
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(context.run, asyncio.run, coroutine).result()


def _runner() -> asyncio.Runner:
    runner: asyncio.Runner | None = getattr(_local, "runner", None)
    if runner is None:
        runner = _local.runner = asyncio.Runner()
        weakref.finalize(threading.current_thread(), runner.close)
    return runner
