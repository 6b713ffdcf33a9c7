"""One time budget for everything that a call does on its sockets.

redis-py and kombu bound single socket operations, but a call consists of many: resolve, connect, greet,
declare, send, read, and all of them again after an error. Inside ``with deadline(1.0)``, connections made by
`limited` share what is left of the budget. Name resolution cannot be interrupted; nothing here tries.

A signal handler may raise anywhere, even between the start of a deadline and the block that would end it. So only the
block holds a strong reference to a deadline: once that object is gone, no deadline applies.
"""

import time
from contextvars import ContextVar, Token
from numbers import Real
from typing import Any, TypeVar
from weakref import ref

from redis.connection import AbstractConnection

T = TypeVar("T")

_SHARE = 3
"""A single operation gets a third of the budget, so that a dead connection leaves time to try another one."""
_CLOSE = 0.001
"""Seconds that make no difference to a socket's timeout, which the system rounds."""


class OutOfTime(Exception):
    """The budget is used up. Not a connection error, so that kombu's retry loops do not take it for one."""


class deadline:  # noqa: N801  # used as a function is; a generator would cost half as much again
    """Bound what the block does on `limited` connections. Of nested deadlines the earlier one counts."""

    __slots__ = ("__weakref__", "_seconds", "_token", "ends", "share")

    ends: float
    """In monotonic time."""
    share: float
    """Seconds for a single operation."""
    _token: Token["ref[deadline] | None"]

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        outer = kept(_current)
        ends = time.monotonic() + self._seconds
        self.ends = min(ends, outer.ends) if outer else ends
        self.share = self._seconds / _SHARE
        self._token = _current.set(ref(self))

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)


_current: ContextVar["ref[deadline] | None"] = ContextVar("backburner_deadline", default=None)


def kept(variable: ContextVar["ref[T] | None"]) -> T | None:
    """The object that a context variable refers to weakly, if the block that put it there still holds it."""
    current = variable.get()
    return None if current is None else current()


def remaining() -> float | None:
    """Seconds left, never less than zero; ``None`` outside of a deadline."""
    current = kept(_current)
    return None if current is None else max(0.0, current.ends - time.monotonic())


def limited(connection_class: type[Any]) -> type[Any]:
    """A subclass of a redis-py connection class that respects the deadline it is used in."""
    if issubclass(connection_class, _Limited):
        return connection_class
    return type(f"Limited{connection_class.__name__}", (_Limited, connection_class), {})


class _Limited(AbstractConnection):
    @property
    def socket_timeout(self) -> float | None:
        return at_most(self._socket_timeout)

    @socket_timeout.setter
    def socket_timeout(self, seconds: float | None) -> None:
        self._socket_timeout = seconds

    @property
    def socket_connect_timeout(self) -> float | None:
        return at_most(self._socket_connect_timeout)

    @socket_connect_timeout.setter
    def socket_connect_timeout(self, seconds: float | None) -> None:
        self._socket_connect_timeout = seconds

    def _connect(self) -> Any:
        if remaining() == 0:
            raise OutOfTime
        return super()._connect()  # type: ignore[no-untyped-call,safe-super]  # of the class this stands before

    def send_packed_command(self, *args: Any, **options: Any) -> Any:
        self._apply_deadline()
        return super().send_packed_command(*args, **options)  # type: ignore[no-untyped-call]  # untyped there

    def read_response(self, *args: Any, **options: Any) -> Any:
        self._apply_deadline()
        return super().read_response(*args, **options)

    def _apply_deadline(self) -> None:
        sock, seconds, current = self._sock, self._socket_timeout, kept(_current)
        if sock is None:
            return
        if current is not None:
            left = current.ends - time.monotonic()
            if left <= 0:
                # A reply may still be on its way, which the next user of this connection must not get.
                self.disconnect()
                raise OutOfTime
            seconds = _within(current, left, seconds)
        # Setting it is a system call, and the value is mostly the same as before.
        there = sock.gettimeout()
        if there != seconds and (there is None or seconds is None or abs(seconds - there) > _CLOSE):
            sock.settimeout(seconds)


def check_seconds(**named: Any) -> None:
    """Check that these arguments are seconds or ``None``, here where their names are still known.

    Raises:
        TypeError: one is neither.
    """
    for name, value in named.items():
        if value is not None and not isinstance(value, Real):
            raise TypeError(f"{name}={value!r}: write a number, of seconds")


def at_most(seconds: float | None) -> float | None:
    """Seconds that a single operation may take: the least of these, its share of the budget, and what is left of
    that."""
    current = kept(_current)
    return seconds if current is None else _within(current, current.ends - time.monotonic(), seconds)


def _within(current: deadline, left: float, seconds: float | None) -> float:
    least = current.share if seconds is None or seconds > current.share else seconds
    # Zero would mean "do not block" to a socket.
    return least if least < left else max(_CLOSE, left)
