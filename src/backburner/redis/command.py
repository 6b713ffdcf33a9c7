"""What the blocking and the asyncio client share: packing commands, pipelines, and one error for several callers."""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, Final, Generic, Self, TypeVar

import redis
from hiredis import pack_command

R = TypeVar("R")

_AS_THEY_ARE: Final = frozenset({str, bytes})


def packed(command: tuple[Any, ...]) -> bytes:
    """A command as the bytes that are sent, each word as an argument of its own.

    Raises:
        redis.DataError: a word is not text, bytes or a number.
    """
    if not _AS_THEY_ARE.issuperset(map(type, command)):
        # hiredis would do the same, but crashes if a signal's handler raises just then.
        command = tuple([word if type(word) in _AS_THEY_ARE else _said(word) for word in command])
    try:
        words: bytes = pack_command(command)
    except TypeError as error:
        raise redis.DataError(f"a command takes str, bytes, int and float only: {error}") from error
    return words


def _said(word: Any) -> Any:
    return repr(word) if isinstance(word, int | float) else word


class Pipeline(Generic[R]):
    """Commands that are sent together, and whose replies come together."""

    def __init__(self, send: Callable[[Sequence[bytes]], R]) -> None:
        """`send` is given the packed commands; `execute` returns what it returns."""
        self._send = send
        self._commands: list[bytes] = []

    def execute_command(self, *command: Any) -> Self:
        """Add a command.

        Raises:
            redis.DataError: a word is no text, bytes or number.
        """
        self._commands.append(packed(command))
        return self

    def execute(self) -> R:
        """Send the commands. Returns the replies in order; with the asyncio client, an awaitable of them.

        Raises:
            redis.RedisError: the first error among the replies; the other commands were executed all the same.
        """
        commands, self._commands = self._commands, []
        return self._send(commands)


def again(error: Exception) -> Exception:
    """A copy of an error for one more caller: raising one object in several places would mix up their tracebacks."""
    another = copy(error)
    another.__cause__ = error
    return another
