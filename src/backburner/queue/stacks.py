"""Celery's stacks of what is being run, of tasks and of each task's requests, which it keeps for each thread.

Many coroutines run in one thread. Where they do, the stacks are told apart by what `loop.ident` says.
"""

from typing import Any

from celery import _state
from celery.utils.threads import LocalStack

from backburner.queue import loop

task_stack: Any = _state._task_stack  # type: ignore[attr-defined]  # noqa: SLF001  # has no other name
"""That of tasks."""


def tell_apart_on_loop(task: Any) -> None:
    """Have Celery find what runs by the context, in a task that is about to run on the loop."""
    for stack in (task_stack, task.request_stack):
        stack.__ident_func__ = loop.ident


def tell_coroutines_apart(app: Any) -> None:
    """Have Celery find what runs by the context, and not by the thread, in all tasks of the app. None may run yet."""
    for stack in (task_stack, *(task.request_stack for task in app.tasks.values())):
        stack._local = _Stacks()  # noqa: SLF001  # nothing public does
        stack.__class__ = _Stack


class _Stack(LocalStack):  # type: ignore[misc, valid-type]  # the stubs know a variable
    """Celery's `LocalStack` on `_Stacks`, where the lack of a stack is no exception."""

    _local: "_Stacks"

    @property
    def top(self) -> Any:
        stack = self._local.stack
        return stack[-1] if stack else None


class _Stacks:
    """Does what Celery's `Local` does for a stack. That one finds by two exceptions that there is nothing yet, which
    is so for each job, and is asked ten times in each."""

    def __init__(self) -> None:
        self._stacks: dict[Any, list[Any]] = {}

    @property
    def stack(self) -> list[Any] | None:
        return self._stacks.get(loop.ident())

    @stack.setter
    def stack(self, stack: list[Any]) -> None:
        self._stacks[loop.ident()] = stack

    def __release_local__(self) -> None:
        self._stacks.pop(loop.ident(), None)
