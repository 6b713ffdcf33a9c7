"""Tasks that need more than a plain call: ``async def`` functions, dependencies, converted arguments.

Their coroutines run on the process's one event loop. In the pools that know nothing of asyncio (prefork, threads, solo)
`loop` runs it, and the thread or process that got the job waits; in the asyncio pool it is the pool's own.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from functools import cache, wraps
from inspect import iscoroutinefunction
from typing import Any, ParamSpec, TypeVar

from backburner.queue import loop, reporting
from backburner.queue.arguments import Arguments, signature_source
from backburner.queue.cancellation import cancellable
from backburner.queue.dependencies import Overrides, dependencies_of
from backburner.queue.pool import bridge, job
from backburner.queue.stacks import task_stack, tell_apart_on_loop

P = ParamSpec("P")
T = TypeVar("T")

_wants_results: ContextVar[bool] = ContextVar("backburner_wants_results", default=False)
"""Whether Celery is calling tasks here like functions, and takes what they return for their results."""


@cache  # Celery registers a function more than once, and recognises it by its identity
def runnable(function: Callable[..., Any], bound: bool = False, *, typed: bool = True) -> Callable[..., Any]:
    """The function itself or, if that is not enough, a wrapper that a worker can call with the arguments of a message.
    With ``typed=False``, annotations convert nothing.

    Called directly (``await task(…)``), the wrapper does what the function does, and supplies the dependencies that the
    caller does not pass.
    """
    arguments = Arguments(function, bound=bound)
    dependencies = dependencies_of(function, bound=bound)
    is_coroutine = iscoroutinefunction(function)
    if not is_coroutine and not (typed and arguments.may_convert) and not dependencies:
        return function
    call = dependencies.acall if is_coroutine else dependencies.call

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        task: Any = task_stack.top
        first, rest = args[:bound], args[bound:]
        request = task.request if task else None
        if not request or request.called_directly:
            if dependencies:
                result = call(dependencies.of_direct_call(rest, kwargs), first, _overrides(task))
            else:
                result = function(*args, **kwargs)
            if not is_coroutine or not _wants_results.get():
                return result
            with _calling(wants_results=False):  # inside the coroutine it is the user who calls tasks
                return _finish(task, request, result)
        decoded, named = arguments.decode(rest, kwargs) if typed else (rest, kwargs)
        if dependencies:
            result = call(dependencies.of_call(decoded, named), first, _overrides(task))
        else:
            result = function(*first, *decoded, **named)
        result = _finish(task, request, result) if is_coroutine else result
        return arguments.encode_result(result) if typed else result

    run.written_function = function  # type: ignore[attr-defined]  # read by `signature_source`
    if dependencies:
        run.__signature__ = dependencies.call_signature  # type: ignore[attr-defined]  # of the function's otherwise
    return run


def callers_view(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the parameters of a call: the one given to `runnable`, or its wrapper if that has fewer."""
    return function if "__signature__" in vars(function) else signature_source(function)


def _overrides(task: Any) -> Overrides:
    return getattr(task.app, "dependency_overrides", {}) if task else {}


@contextmanager
def _calling(*, wants_results: bool) -> Iterator[None]:
    token = _wants_results.set(wants_results)
    try:
        yield
    finally:
        _wants_results.reset(token)


def called_by_celery(function: Callable[P, T]) -> Callable[P, T]:
    """Celery's `function`, wrapped so that tasks it calls return results even if they are coroutine functions."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with _calling(wants_results=True):
            return function(*args, **kwargs)

    return call


def map_coroutines(sender: Any, **_: Any) -> None:
    """Teach `map`, `starmap` and `chunks` of a finalized app to handle coroutine functions."""
    for name in ("celery.map", "celery.starmap"):
        task = sender.tasks[name]
        task.run = called_by_celery(task.run)


def _finish(task: Any, request: Any, coroutine: Coroutine[Any, Any, Any]) -> Any:
    if bridge.is_here():
        return _finish_in_pool(task, request, coroutine)
    context = copy_context()
    context.run(reporting.attach, task, request)
    if not loop.is_busy_with_this():
        tell_apart_on_loop(task)
        return loop.run(coroutine if request.called_directly else cancellable(request.id, coroutine), context)
    # An eager task called from a coroutine: this thread's loop is busy with the caller.
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(context.run, asyncio.run, coroutine).result()


def _finish_in_pool(task: Any, request: Any, coroutine: Coroutine[Any, Any, Any]) -> Any:
    running = job.running.get()
    if not isinstance(running, job.CoroutineJob) or request.is_eager or request.called_directly:
        return bridge.wait_for(coroutine)  # of a task that a job calls directly
    reporting.attach(task, request)
    return running.complete(coroutine)
