"""Fingerprints of classes: a short text that changes whenever the names or declared types of a class's fields do.

Equivalent spellings of a type (``Optional[int]``, ``int | None``) give the same fingerprint, so that processes on
different versions of Python agree; an annotation that is text is taken literally. Classes that a field refers to are
not looked into: they have fingerprints of their own.
"""

import re
from collections.abc import Mapping
from hashlib import blake2b
from types import NoneType, UnionType
from typing import Annotated, Any, ForwardRef, Union, get_args, get_origin

__all__ = ["fingerprint"]


def fingerprint(fields: Mapping[str, object]) -> str:
    """The fingerprint of fields, a mapping from names to types; their order does not matter."""
    text = ";".join(f"{name}:{_written(fields[name])}" for name in sorted(fields))
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()


def _written(annotation: Any) -> str:
    if annotation is None or annotation is NoneType:
        return "None"
    if isinstance(annotation, str):
        return annotation
    if isinstance(annotation, ForwardRef):
        return annotation.__forward_arg__
    if isinstance(annotation, list):  # the parameters of a Callable
        return f"[{','.join(map(_written, annotation))}]"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _written(arguments[0])
    if origin is Union or origin is UnionType:
        return "|".join(sorted(map(_written, arguments)))
    if origin is not None:
        return f"{_written(origin)}[{','.join(map(_written, arguments))}]"
    if isinstance(annotation, type):
        return f"{annotation.__module__}.{annotation.__qualname__}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(annotation))
