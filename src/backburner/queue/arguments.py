"""Calls checked against a task's annotations where the job is enqueued, converted to JSON there and back in the worker.

Numbers, text, lists, dates, UUIDs and the like travel as Celery sends them. Types that JSON lacks (pydantic models,
dataclasses, enums, sets, …) are converted by pydantic, in arguments and in results. An annotation that pydantic does
not understand, or that names something that does not exist at run time, checks nothing.
"""

import contextlib
import dataclasses
import datetime as dt
import decimal
import inspect
import types
import typing
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Final

from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from backburner.queue.dependencies import dependencies_of

_SENT_AS_THEY_ARE: Final = (
    int, float, str, bool, bytes, list, dict, type(None), None, Any, object,
    dt.datetime, dt.date, dt.time, decimal.Decimal, uuid.UUID,
)  # fmt: skip
"""Types that survive Celery's JSON unchanged."""
_TEXT: Final = (str, Any, object)
"""Types of keys that survive it; those of other dicts are text afterwards."""
_SENT_AS_TEXT: Final = (*_TEXT, int, float, bool, type(None), None)
"""Types of keys that it takes."""
_CHECKED_BY_TYPE: Final = (int, float, str, bool, bytes)
"""Types of which pydantic returns every value unchanged."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Kind:
    """How values of one annotation are checked and converted."""

    adapter: TypeAdapter[Any]
    converts: bool
    """Whether pydantic makes JSON of them."""
    restores: bool
    """Whether it makes them of what has arrived, too."""
    exact: Any = None
    """A type whose values need no check."""

    def encoded(self, value: Any) -> Any:
        if type(value) is self.exact:
            return value
        valid = self.adapter.validate_python(value)
        if self.converts:
            return self.adapter.dump_python(valid, mode="json")
        return value if valid == value else valid  # keeps 1 where pydantic would return 1.0


class Arguments:
    """The parameters and the result of a task's function. With `bound`, the first parameter is the task."""

    def __init__(self, function: Callable[..., Any], *, bound: bool = False) -> None:
        self._function = function
        signature = dependencies_of(function, bound=bound).call_signature
        self._parameters = list(signature.parameters.values())[bound:]
        self._positional = [each.name for each in self._parameters if each.kind in _BY_POSITION]
        annotations = [parameter.annotation for parameter in self._parameters]
        result = signature.return_annotation
        self.may_convert = any(not _survives(each) for each in (*annotations, result))
        """Whether anything may have to be converted."""

    def encode(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The arguments of a call as they are sent. Whether they fit the signature is for Celery to check.

        Raises:
            TypeError: an argument does not match its annotation.
        """
        args, kwargs = args or (), kwargs or {}
        if not self._kinds or not isinstance(args, tuple | list) or not isinstance(kwargs, dict):
            return args, kwargs
        return self._converted(args, kwargs, _Kind.encoded)

    def decode(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call as the function takes them.

        Raises:
            TypeError: an argument does not match its annotation: the job was not enqueued by way of `encode`.
        """
        return self._converted(args, kwargs, lambda kind, value: kind.adapter.validate_python(value))

    def encode_result(self, result: Any) -> Any:
        """A function's result as it is stored. One that does not match the annotation is stored as it is."""
        kind = self._kinds.get("return")
        if kind is None or not kind.converts:
            return result
        return kind.adapter.dump_python(result, mode="json", warnings="none")

    def decode_result(self, result: Any) -> Any:
        """The stored result as the function returned it, if that matches the annotation."""
        kind = self._kinds.get("return")
        if kind is not None and kind.restores:
            with contextlib.suppress(ValidationError):
                return kind.adapter.validate_python(result)
        return result

    def _converted(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], convert: Callable[[_Kind, Any], Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not args and not kwargs:
            return (), {}
        names = self._positional
        checked = [self._convert(name, value, convert) for name, value in zip(names, args, strict=False)]
        return (
            (*checked, *args[len(names) :]),
            {name: self._convert(name, value, convert) for name, value in kwargs.items()},
        )

    def _convert(self, name: str, value: Any, convert: Callable[[_Kind, Any], Any]) -> Any:
        kind = self._kinds.get(name)
        if kind is None:
            return value
        try:
            return convert(kind, value)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, (name, *each['loc'])))}: {each['msg']}"
                for each in error.errors(include_url=False, include_input=False)
            )
            raise TypeError(f"{self._function.__name__}() got a wrong argument: {problems}") from None

    @cached_property
    def _kinds(self) -> dict[str, _Kind]:
        """By parameter, and for ``return``. Made on first use: the names in annotations may not exist before."""
        try:
            hints = typing.get_type_hints(self._function, include_extras=True)
        except Exception:  # noqa: BLE001  # annotations are anybody's expressions
            return {}
        kinds = {}
        for name in [each.name for each in self._parameters if each.kind not in _MANY] + ["return"]:
            hint = hints.get(name, Any)
            if hint in (Any, object):
                continue
            try:
                exact = hint if any(hint is each for each in _CHECKED_BY_TYPE) else None
                kinds[name] = _Kind(TypeAdapter(hint), not _is_plain(hint), not _survives(hint), exact)
            except (PydanticSchemaGenerationError, PydanticUserError):
                continue
        return kinds


def positional_checker(function: Callable[..., Any], *, bound: bool) -> Any:
    """The check for calls of a function with positional-only parameters, which Celery's does not know; ``None`` for
    other functions, because Celery's own check is quick.
    """
    signature = inspect.signature(function, follow_wrapped=False)
    kinds = {name: each.kind for name, each in signature.parameters.items()}
    if inspect.Parameter.POSITIONAL_ONLY not in kinds.values():
        return None
    task = (None,) if bound else ()
    # What `**names` takes may be called as one of those is. Python 3.11 to 3.13.0 are each mistaken about such a name.
    takes_any = inspect.Parameter.VAR_KEYWORD in kinds.values()
    for_names = {name for name, kind in kinds.items() if takes_any and kind is inspect.Parameter.POSITIONAL_ONLY}

    def check(*args: Any, **kwargs: Any) -> None:
        try:
            signature.bind(*task, *args, **{name: kwargs[name] for name in kwargs.keys() - for_names})
        except TypeError as error:
            raise TypeError(f"{function.__name__}() got a wrong call: {error}") from None

    return staticmethod(check)


_BY_POSITION: Final = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
_MANY: Final = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


def signature_source(function: Callable[..., Any]) -> Callable[..., Any]:
    """The user's function, whose parameters count: the one that `backburner.queue.coroutines.runnable` wrapped."""
    return getattr(function, "written_function", function)


def _is_plain(
    annotation: Any, leaves: tuple[Any, ...] = _SENT_AS_THEY_ARE, keys: tuple[Any, ...] = _SENT_AS_TEXT
) -> bool:
    """Whether it consists of these types, and dicts in it have keys of those."""
    if annotation is inspect.Parameter.empty:
        return True
    origin = typing.get_origin(annotation)
    if origin is None:
        return any(annotation is each for each in leaves)
    parts = typing.get_args(annotation)
    if origin is typing.Annotated:
        return _is_plain(parts[0], leaves, keys)
    if origin is typing.Literal:
        return all(type(each) in leaves for each in parts)
    if origin is dict and not _is_plain(parts[0], keys):
        return False
    return origin in (list, dict, typing.Union, types.UnionType) and all(
        _is_plain(each, leaves, keys) for each in parts
    )


def _survives(annotation: Any) -> bool:
    return _is_plain(annotation, keys=_TEXT)
