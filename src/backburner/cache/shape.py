"""The type that a reader requires of a value: an annotation such as ``list[Book]``, checked and converted by pydantic.

It does not affect how values are stored, so each reader may require a different type, or none. Turning values into
bytes is up to `codec`.
"""

import inspect
from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, Final, get_origin, get_type_hints

from pydantic import ConfigDict, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from backburner.errors import CodecError, ConfigError
from backburner.interruptions import interruptions

_KEPT: Final = 1024
"""How many annotations are cached: building a validator takes a millisecond."""
_TOLD: Final = 3
"""How many problems of a value an error message lists."""


class Shape:
    """An annotation that values can be checked against.

    Raises:
        ConfigError: pydantic cannot check values against it.
    """

    __slots__ = ("_validate", "name")

    def __init__(self, annotation: Any) -> None:
        self.name = annotation.__qualname__ if _is_class(annotation) else repr(annotation).replace("typing.", "")
        """Its name in messages."""
        if isinstance(annotation, str):
            raise ConfigError(f"type={annotation!r} is text: give the type itself")
        try:
            self._validate = _adapter(annotation).validate_python
        except interruptions():
            raise
        except Exception as error:
            problem = str(error).partition("\n")[0]
            raise ConfigError(f"values cannot be checked by the type {self.name}: {problem}") from error

    def __repr__(self) -> str:
        return f"<Shape {self.name}>"

    def fit(self, value: object) -> object:
        """The value as this type: unchanged if it is one, converted where pydantic converts (a dict to a model).

        Raises:
            CodecError: the value does not fit.
            ConfigError: the type refers to another one that does not exist (yet).
        """
        try:
            return self._validate(value)
        except ValidationError as error:
            problems = [
                ": ".join(filter(None, (".".join(map(str, each["loc"])), each["msg"])))
                for each in error.errors(include_url=False, include_input=False, include_context=False)
            ]
            more = f"; and {len(problems) - _TOLD} more" if len(problems) > _TOLD else ""
            raise CodecError(f"it is no {self.name}: {'; '.join(problems[:_TOLD])}{more}") from error
        except PydanticUserError as error:
            raise ConfigError(f"values cannot be checked by the type {self.name}: {error.message}") from error
        except interruptions():
            raise
        except Exception as error:  # a validator of the user's, which did not expect such a value
            raise CodecError(f"it is no {self.name}: {type(error).__name__}: {error}") from error


def shape_of(annotation: Any) -> Shape | None:
    """The shape of an annotation; a shape is returned unchanged, and so is ``None``, which requires nothing.

    Raises:
        ConfigError: as `Shape`.
    """
    if annotation is None or isinstance(annotation, Shape):
        return annotation
    try:
        return _known(annotation)
    except TypeError:  # not hashable, such as ``Annotated[int, []]``
        return Shape(annotation)


def shape_of_result(function: Callable[..., Any]) -> Shape:
    """The shape of a function's return annotation; for a coroutine function, of what awaiting it returns.

    Raises:
        ConfigError: there is no annotation, a name in it cannot be found, or as `Shape`.
    """
    name = getattr(function, "__qualname__", repr(function))
    annotation = inspect.signature(function).return_annotation
    if annotation is inspect.Signature.empty:
        raise ConfigError(f"{name}() does not say what it gives, which typed=True goes by: write -> and a type")
    plain = inspect.unwrap(getattr(function, "func", function))
    names = getattr(getattr(plain, "__func__", plain), "__globals__", {})
    # Of the result alone: what the arguments are may be known to type checkers only.
    said = SimpleNamespace(__annotations__={"return": annotation})
    try:
        return Shape(get_type_hints(said, names, include_extras=True)["return"])
    except ConfigError as error:
        raise ConfigError(f"{name}(): {error}") from error
    except Exception as error:  # annotations are anybody's expressions
        raise ConfigError(
            f"{name}() is annotated -> {annotation}, which makes no sense here: {error}. With typed=True, what it "
            "names must exist in its module when @cached runs"
        ) from error


@lru_cache(_KEPT)
def _known(annotation: Any) -> Shape:
    return Shape(annotation)


def _is_class(annotation: Any) -> bool:
    return isinstance(annotation, type) and get_origin(annotation) is None


def _adapter(annotation: Any) -> "TypeAdapter[Any]":
    try:
        return TypeAdapter(annotation)
    except PydanticSchemaGenerationError:
        # A class that pydantic does not know, such as a database model: the value must be an instance.
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
