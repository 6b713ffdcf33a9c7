"""FastAPI's dependencies for tasks: what a function gets beside the arguments of the call, if that needs no request.

They are read where the task is declared, solved in the worker before the function runs, and closed after it in reverse
order, even if the job fails: what FastAPI does for a request is done here for a job. FastAPI is not imported here
unless a function names a dependency; its own solver is not public, and needs a request.
"""

import asyncio
import contextlib
import inspect
import sys
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cache, partial
from inspect import Parameter
from types import SimpleNamespace
from typing import Any, Final

from backburner.errors import ConfigError
from backburner.queue import loop
from backburner.queue.lifespan import Lifespan

INJECTED: Final[Any] = None
"""A default for parameters that are dependencies, so that type checkers let calls omit them. It is never used."""

Overrides = Mapping[Callable[..., Any], Callable[..., Any]]


class Dependencies:
    """The dependencies of a task's function. With `bound`, its first parameter is the task.

    Raises:
        ConfigError: one of them needs a request.
    """

    def __init__(self, function: Callable[..., Any], *, bound: bool = False) -> None:
        self._function = function
        self._signature = inspect.signature(function)
        parameters = list(self._signature.parameters.values())[bound:]
        self._own = self._signature.replace(parameters=parameters)
        self._wanted = {each.parameter.name: each for each in _declared(function) if each.depends is not None}
        self._call = self._own.replace(parameters=[each for each in parameters if each.name not in self._wanted])
        self._plans: dict[Collection[str], _Plan] = {}
        self._plan(self._wanted, {})

    def __bool__(self) -> bool:
        return bool(self._wanted)

    @property
    def call_signature(self) -> inspect.Signature:
        """The function's signature, without dependencies."""
        parameters = self._signature.parameters.values()
        return self._signature.replace(parameters=[each for each in parameters if each.name not in self._wanted])

    def of_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments, by name, of a call without dependencies."""
        return self._call.bind(*args, **kwargs).arguments

    def of_direct_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments, by name, of an ordinary call, which may pass dependencies."""
        return self._own.bind_partial(*args, **kwargs).arguments

    def call(self, given: Mapping[str, Any], first: Sequence[Any], overrides: Overrides) -> Any:
        """Call a ``def`` function with its dependencies. Those that are coroutine functions run on the process's
        loop."""
        failure: BaseException | None = None
        context = copy_context()  # one for all, on the loop and in this thread
        with ExitStack() as stack:
            try:
                plan = self._plan(self._wanted.keys() - given, overrides)
                values: list[Any] = []
                for step in plan.steps:
                    values.append(step.enter(values, stack, context))
                bound = self._completed(given, plan, values)
                return context.run(self._function, *first, *bound.args, **bound.kwargs)
            except BaseException as error:
                failure = error
                raise
        raise typing.cast("BaseException", failure)  # a dependency swallowed it, but the job must not succeed for that

    async def acall(self, given: Mapping[str, Any], first: Sequence[Any], overrides: Overrides) -> Any:
        """Call an ``async def`` function with its dependencies. Those that are plain functions run in threads."""
        failure: BaseException | None = None
        async with AsyncExitStack() as stack:
            try:
                plan = self._plan(self._wanted.keys() - given, overrides)
                values: list[Any] = []
                for step in plan.steps:
                    values.append(await step.aenter(values, stack))
                bound = self._completed(given, plan, values)
                return await self._function(*first, *bound.args, **bound.kwargs)
            except BaseException as error:
                failure = error
                raise
        raise typing.cast("BaseException", failure)  # as above

    def _plan(self, names: Collection[str], overrides: Overrides) -> "_Plan":
        key = frozenset(names)
        plan = self._plans.get(key)
        if plan is None or overrides:
            plan = _Plan(overrides, self._function)
            for name, wanted in self._wanted.items():
                if name in key:
                    plan.places[name] = plan.place(wanted, (self._function,))
            if not overrides:
                self._plans[key] = plan
        return plan

    def _completed(self, given: Mapping[str, Any], plan: "_Plan", values: list[Any]) -> inspect.BoundArguments:
        solved = {name: values[place] for name, place in plan.places.items()}
        return inspect.BoundArguments(self._own, typing.cast("Any", {**given, **solved}))


@cache
def dependencies_of(function: Callable[..., Any], *, bound: bool = False) -> Dependencies:
    """The function's `Dependencies`; to be called when everything that its annotations name exists."""
    return Dependencies(function, bound=bound)


def check(function: Callable[..., Any], *, bound: bool, base: Any) -> None:
    """Check a function that is to become a task, of class `base` if one is given, right where it is declared.

    Raises:
        ConfigError: it cannot be a task, or one of its dependencies needs a request.
    """
    name = getattr(function, "__qualname__", function)
    if inspect.isclass(function):
        raise ConfigError(
            f"{name} is a class, and a task is made of a function; app.register_task takes Celery's tasks"
        )
    if base is None and _Kind.of(function) in _GENERATORS:  # a custom class may know what to do with it
        raise ConfigError(f"{name} yields, and nobody would take what a job yields: have it return a list, or report")
    Dependencies(function, bound=bound)


# What is called for a job


class _Kind(Enum):
    """What calling a function returns; if a decorator and its function differ, the later one here counts."""

    VALUE = auto()
    COROUTINE = auto()
    GENERATOR = auto()
    ASYNC_GENERATOR = auto()

    @classmethod
    def of(cls, function: Any) -> "_Kind":
        function = _called(function)
        if inspect.isasyncgenfunction(function):
            return cls.ASYNC_GENERATOR
        if inspect.isgeneratorfunction(function):
            return cls.GENERATOR
        return cls.COROUTINE if inspect.iscoroutinefunction(function) else cls.VALUE

    @classmethod
    def of_dependency(cls, function: Any) -> "_Kind":
        """As FastAPI sees it, which also looks behind decorators, since these pass on what they get. Those that make a
        context manager of a generator do not."""
        behind = inspect.unwrap(
            _called(function), stop=lambda each: getattr(each, "__globals__", None) is vars(contextlib)
        )
        return max(cls.of(function), cls.of(behind), key=lambda kind: kind.value)


def _called(function: Any) -> Any:
    """The function that runs when the object is called."""
    while isinstance(function, partial):
        function = function.func
    return function if inspect.isroutine(function) or inspect.isclass(function) else type(function).__call__


_GENERATORS: Final = {_Kind.GENERATOR, _Kind.ASYNC_GENERATOR}


@dataclass(frozen=True, slots=True)
class _Step:
    """One call, which takes the values of earlier steps."""

    function: Callable[..., Any]
    kind: _Kind
    arguments: dict[str, int]

    def enter(self, values: list[Any], stack: ExitStack, context: Context) -> Any:
        arguments = {name: values[place] for name, place in self.arguments.items()}
        if self.kind is _Kind.GENERATOR:
            manager = contextmanager(self.function)(**arguments)
            value = context.run(manager.__enter__)
            stack.push(lambda *error: context.run(manager.__exit__, *error))
            return value
        if self.kind is _Kind.ASYNC_GENERATOR:
            living = _Living(asynccontextmanager(self.function)(**arguments))
            value = loop.run(living.enter(context), context)
            stack.push(lambda *error: loop.run(living.exit(*error), context))
            return value
        if self.kind is _Kind.COROUTINE:
            return loop.run(self.function(**arguments), context)
        return context.run(self.function, **arguments)

    async def aenter(self, values: list[Any], stack: AsyncExitStack) -> Any:
        from fastapi.concurrency import contextmanager_in_threadpool, run_in_threadpool

        arguments = {name: values[place] for name, place in self.arguments.items()}
        if self.kind is _Kind.GENERATOR:
            in_thread = contextmanager_in_threadpool(contextmanager(self.function)(**arguments))
            return await stack.enter_async_context(in_thread)
        if self.kind is _Kind.ASYNC_GENERATOR:
            return await stack.enter_async_context(asynccontextmanager(self.function)(**arguments))
        if self.kind is _Kind.COROUTINE:
            return await self.function(**arguments)
        if isinstance(self.function, Lifespan):
            return self.function()
        return await run_in_threadpool(self.function, **arguments)


class _Living:
    """A context manager that one asyncio task enters and exits, because cancel scopes in it require that."""

    _task: asyncio.Task[None]
    _news: asyncio.Future[Any]
    _over: asyncio.Future[Any]

    def __init__(self, manager: AbstractAsyncContextManager[Any]) -> None:
        self._manager = manager

    async def enter(self, context: Context) -> Any:
        loop = asyncio.get_running_loop()
        self._news, self._over = loop.create_future(), loop.create_future()
        self._task = loop.create_task(self._live(), context=context)
        return await self._hear()

    async def exit(self, *error: Any) -> Any:
        self._news = asyncio.get_running_loop().create_future()
        self._over.set_result(error)
        return await self._hear()

    async def _hear(self) -> Any:
        try:
            return await asyncio.shield(self._news)
        except asyncio.CancelledError:
            self._task.cancel()
            return await self._news  # it may have something to clean up

    async def _live(self) -> None:
        try:
            self._news.set_result(await self._manager.__aenter__())
            error = await self._over
            self._news.set_result(await self._manager.__aexit__(*error))
        except BaseException as error:  # noqa: BLE001  # it is for the caller; a SystemExit would end everybody's loop
            if not self._news.done():  # else the loop ends
                self._news.set_exception(error)


@dataclass(slots=True)
class _Plan:
    """All calls in order, and which of them yields which parameter of the task's function."""

    overrides: Overrides
    task: Callable[..., Any]
    steps: list[_Step] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    shared: dict[Callable[..., Any], int] = field(default_factory=dict)

    def place(self, wanted: "_Declared", users: tuple[Callable[..., Any], ...]) -> int:
        """Add a call, unless it is there already. Returns the number of its step."""
        depends: Any = wanted.depends
        function = depends.dependency or wanted.type
        function = self.overrides.get(function, function)
        if depends.use_cache and function in self.shared:
            return self.shared[function]
        users = (*users, function)
        if function in users[:-1]:
            raise ConfigError(f"{_chain(users)}: that has no end")
        if getattr(depends, "max_concurrency", None) is not None:
            raise ConfigError(f"{_chain(users)} with max_concurrency, which is for requests; jobs do not know it")
        arguments = {}
        for each in _declared(function):
            if each.depends is not None:
                arguments[each.parameter.name] = self.place(each, users)
            elif asks := each.asks_of_request():
                raise ConfigError(
                    f"{_chain(users)}, which needs {asks}, and a job has no request. Hand what the job needs from it "
                    "over as an argument"
                )
        self.steps.append(_Step(function, _Kind.of_dependency(function), arguments))
        return self.shared.setdefault(function, len(self.steps) - 1) if depends.use_cache else len(self.steps) - 1


def _chain(users: Sequence[Callable[..., Any]]) -> str:
    return " depends on ".join(f"{getattr(each, '__name__', type(each).__name__)}()" for each in users)


# What is declared


@dataclass(frozen=True, slots=True)
class _Declared:
    """A parameter of a function."""

    parameter: Parameter
    type: Any
    markers: tuple[Any, ...]
    """Its annotations besides the type, and its default."""

    @property
    def depends(self) -> Any:
        """FastAPI's mark of a dependency, if there is one."""
        return next((each for each in self.markers if isinstance(each, _params().Depends)), None)

    def asks_of_request(self) -> str | None:
        """The part of a request that it stands for, in words; ``None`` if it does not."""
        from fastapi import BackgroundTasks, Response
        from fastapi.requests import HTTPConnection
        from fastapi.security import SecurityScopes

        name = self.parameter.name
        if inspect.isclass(self.type) and issubclass(
            self.type, HTTPConnection | Response | BackgroundTasks | SecurityScopes
        ):
            return f"{name}, the {self.type.__name__}"
        for each in self.markers:
            if isinstance(each, _params().Param | _params().Body):
                return f"{name}, from the {type(each).__name__.lower()} of a request"
        return f"{name}, from the query of a request" if self.parameter.default is Parameter.empty else None


def _declared(function: Callable[..., Any]) -> Iterator[_Declared]:
    """The parameters of a function; none if FastAPI has not been imported, because then nobody can name a
    dependency."""
    if _params() is None:
        return
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a type written in C has no parameters that could be marked
        return
    for parameter in parameters:
        if parameter.kind not in {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD}:
            annotation = _resolved(parameter, function)
            markers = (*getattr(annotation, "__metadata__", ()), parameter.default)
            yield _Declared(
                parameter, getattr(annotation, "__origin__", annotation) if markers[:-1] else annotation, markers
            )


def _params() -> Any:
    return sys.modules.get("fastapi.params")


def _resolved(parameter: Parameter, function: Any) -> Any:
    """The annotation, resolved to an object where that is possible."""
    annotation = parameter.annotation
    if isinstance(annotation, str):
        names = getattr(inspect.unwrap(function), "__globals__", None)
        if names is None:  # a class, or a callable object
            names = getattr(sys.modules.get(getattr(function, "__module__", "")), "__dict__", {})
        one: Any = SimpleNamespace(__annotations__={"it": annotation})
        try:
            annotation = typing.get_type_hints(one, names, include_extras=True)["it"]
        except Exception:  # noqa: BLE001  # annotations are anybody's expressions
            return annotation
    while type(annotation).__name__ == "TypeAliasType":
        annotation = annotation.__value__
    return annotation
