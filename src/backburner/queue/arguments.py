"""What a task's annotations say about a call: checked where the job is enqueued, turned into JSON there and back again
in the worker.

Numbers, text, lists, dates, UUIDs and the like travel as Celery sends them. For what JSON does not have (pydantic
models, dataclasses, enums, sets, …) pydantic makes it, for arguments and for results. An annotation that pydantic
cannot make sense of, or that names something that does not exist at run time, checks nothing.
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
"""Types that Celery's JSON brings back as they were."""
_CHECKED_BY_TYPE: Final = (int, float, str, bool, bytes)
"""Of these, every value is what pydantic would make of it."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Kind:
    """What one annotation says."""

    adapter: TypeAdapter[Any]
    converts: bool
    exact: Any = None
    """A type whose values need no look."""

    def encoded(self, value: Any) -> Any:
        if type(value) is self.exact:
            return value
        valid = self.adapter.validate_python(value)
        if self.converts:
            return self.adapter.dump_python(valid, mode="json")
        return value if valid == value else valid  # 1 stays 1 where a float is asked for


class Arguments:
    """The parameters of a task's function, and its result. With `bound`, the first parameter is the task."""

    def __init__(self, function: Callable[..., Any], *, bound: bool = False) -> None:
        self._function = function
        signature = dependencies_of(function, bound=bound).call_signature
        self._parameters = list(signature.parameters.values())[bound:]
        self._positional = [each.name for each in self._parameters if each.kind in _BY_POSITION]
        annotations = [parameter.annotation for parameter in self._parameters]
        result = signature.return_annotation
        self.may_convert = any(not _is_plain(each) for each in (*annotations, result))
        """Whether anything may have to be turned into JSON and back."""

    def encode(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """A call as it is sent. Whether these are arguments at all is for Celery to say.

        Raises:
            TypeError: an argument is not what its annotation says.
        """
        args, kwargs = args or (), kwargs or {}
        if not self._kinds or not isinstance(args, tuple | list) or not isinstance(kwargs, dict):
            return args, kwargs
        return self._converted(args, kwargs, _Kind.encoded)

    def decode(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A call as the function wants it.

        Raises:
            TypeError: as from `encode`: somebody else enqueued it.
        """
        return self._converted(args, kwargs, lambda kind, value: kind.adapter.validate_python(value))

    def encode_result(self, result: Any) -> Any:
        """What the function returned, as it is stored. What is not what its annotation says stays as it is."""
        kind = self._kinds.get("return")
        if kind is None or not kind.converts:
            return result
        return kind.adapter.dump_python(result, mode="json", warnings="none")

    def decode_result(self, result: Any) -> Any:
        """The stored result, as the function returned it, if that was what its annotation says."""
        kind = self._kinds.get("return")
        if kind is not None and kind.converts:
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
        """By parameter, and for ``return``. Made when first needed: names may not exist before."""
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
                kinds[name] = _Kind(TypeAdapter(hint), not _is_plain(hint), exact)
            except (PydanticSchemaGenerationError, PydanticUserError):
                continue
        return kinds


def positional_checker(function: Callable[..., Any], *, bound: bool) -> Any:
    """What checks calls of a function with positional-only parameters, which Celery's check knows nothing of; ``None``
    for other functions, as Celery's is quick.
    """
    signature = inspect.signature(function, follow_wrapped=False)
    if not any(each.kind is inspect.Parameter.POSITIONAL_ONLY for each in signature.parameters.values()):
        return None
    task = (None,) if bound else ()

    def check(*args: Any, **kwargs: Any) -> None:
        try:
            signature.bind(*task, *args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{function.__name__}() got a wrong call: {error}") from None

    return staticmethod(check)


_BY_POSITION: Final = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
_MANY: Final = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


def signature_source(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function whose parameters count: what `backburner.queue.coroutines.runnable` got."""
    return getattr(function, "written_function", function)


def _is_plain(annotation: Any) -> bool:
    if annotation is inspect.Parameter.empty:
        return True
    origin = typing.get_origin(annotation)
    if origin is None:
        return any(annotation is each for each in _SENT_AS_THEY_ARE)
    parts = typing.get_args(annotation)
    if origin is typing.Annotated:
        return _is_plain(parts[0])
    if origin is typing.Literal:
        return True
    return origin in (list, dict, typing.Union, types.UnionType) and all(map(_is_plain, parts))
