"""The types of ``@app.task``: a task takes what its function takes, and its jobs return what its function returns.

For type checkers only; at run time the decorator is Celery's.
"""

from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from backburner.queue.task import Task

P = ParamSpec("P")
T = TypeVar("T")

__all__ = ["BoundTaskDecorator", "TaskDecorator"]


class TaskDecorator(Protocol):
    """``@app.task`` and ``@app.task(name=…)``."""

    @overload
    def __call__(self, fun: Callable[P, Coroutine[Any, Any, T]], /) -> Task[P, Coroutine[Any, Any, T], T]: ...
    @overload
    def __call__(self, fun: Callable[P, T], /) -> Task[P, T, T]: ...


class BoundTaskDecorator(Protocol):
    """``@app.task(bind=True)``: the function's first parameter is the task."""

    @overload
    def __call__(
        self, fun: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]], /
    ) -> Task[P, Coroutine[Any, Any, T], T]: ...
    @overload
    def __call__(self, fun: Callable[Concatenate[Any, P], T], /) -> Task[P, T, T]: ...
