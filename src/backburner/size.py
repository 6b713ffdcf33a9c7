"""Sizes in bytes, as people write them."""

from typing import Annotated, Final

from pydantic import ByteSize, Field, TypeAdapter, ValidationError

_SIZE: Final = TypeAdapter(Annotated[ByteSize, Field(gt=0)])


def byte_count(size: int | str) -> int:
    """A size in bytes, of a whole number or of text such as ``"64MB"`` (millions) and ``"64MiB"`` (1024 x 1024).

    Raises:
        ValueError: it is neither, or not positive.
    """
    try:
        if not isinstance(size, bool):
            return int(_SIZE.validate_python(size))
    except ValidationError:
        pass
    raise ValueError(f"{size!r} is no number of bytes; write text such as 64MB or 64MiB, or a whole number")
