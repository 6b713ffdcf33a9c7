"""``async def`` tasks, and others of which a worker has to know more than Celery does.

Their coroutines run on the process's one event loop. In the pools that know nothing of asyncio (prefork, threads, solo)
`loop` runs it, while the thread or process that got the job waits; in the asyncio pool it is the pool's.
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
"""Whether Celery calls tasks here as functions, and takes what they give for their results."""


@cache  # Celery registers a function more than once, and tells by its identity that it is the same one
def runnable(function: Callable[..., Any], bound: bool = False, *, typed: bool = True) -> Callable[..., Any]:
    """The function itself, or where that is not enough one that a worker can call with what came in the message. With
    ``typed=False``, annotations have no say in it.

    Called directly (``await task(…)``) it does what the function does, as anybody would expect, with those of its
    dependencies that the caller does not give.
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
            with _calling(wants_results=False):  # what the coroutine calls is called by the user
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
    """The function whose parameters are those of a call: what `runnable` got, or what it gave if it leaves some out."""
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
    """Where `function`, which is Celery's, calls tasks, those that are coroutine functions give results like others."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with _calling(wants_results=True):
            return function(*args, **kwargs)

    return call


def map_coroutines(sender: Any, **_: Any) -> None:
    """Have `map`, `starmap` and `chunks` of an app, which is finalized, know what to do with coroutine functions."""
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
        return bridge.wait_for(coroutine)  # of a task that a job calls itself, there and then
    reporting.attach(task, request)
    return running.complete(coroutine)
