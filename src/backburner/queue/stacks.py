"""Celery's per-thread stacks of what is running (tasks, and each task's requests), kept apart by coroutine.

Many coroutines run in one thread. There, `loop.ident` tells their stacks apart.
"""

from typing import Any

from celery import _state
from celery.utils.threads import LocalStack

from backburner.queue import loop

task_stack: Any = _state._task_stack  # type: ignore[attr-defined]  # noqa: SLF001  # has no other name
"""Celery's stack of running tasks."""


def tell_apart_on_loop(task: Any) -> None:
    """Have Celery look up what is running by context instead of thread, for a task that is about to run on the loop."""
    for stack in (task_stack, task.request_stack):
        stack.__ident_func__ = loop.ident


def tell_coroutines_apart(app: Any) -> None:
    """Have Celery look up what is running by context, not by thread, for all tasks of the app. None may be running
    yet."""
    for stack in (task_stack, *(task.request_stack for task in app.tasks.values())):
        stack._local = _Stacks()  # noqa: SLF001  # nothing public does
        stack.__class__ = _Stack


class _Stack(LocalStack):  # type: ignore[misc, valid-type]  # the stubs know a variable
    """Celery's `LocalStack` on `_Stacks`, where a missing stack raises no exception."""

    _local: "_Stacks"

    @property
    def top(self) -> Any:
        stack = self._local.stack
        return stack[-1] if stack else None


class _Stacks:
    """Replaces Celery's `Local` for a stack, which raises two exceptions to find that there is none yet. That is so in
    each job, and each job asks ten times."""

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
