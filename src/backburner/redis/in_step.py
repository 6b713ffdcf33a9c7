"""Connections for redis-py's pools that are never left out of step with their server by an exception from elsewhere.

A signal's handler (a soft time limit's, Ctrl-C's) may raise between a command and its reply, or while one logs in.
redis-py gives such a connection back to its pool: who has it next reads another's reply, or another database.
"""

import math
from collections.abc import Iterable
from functools import cache
from typing import Any

import redis
from redis.connection import AbstractConnection

__all__ = ["in_step"]


@cache
def in_step(connection_class: Any) -> Any:
    """A subclass of a redis-py connection class, which connects anew if a pool hands it out with replies to come."""
    return type(f"InStep{connection_class.__name__}", (_InStep, connection_class), {})


class _InStep(AbstractConnection):
    _to_come: float = 0
    """Replies to what redis-py itself has sent; below zero if others read more than was counted."""

    def connect(self) -> None:
        if self._to_come > 0:
            self.disconnect()
        super().connect()  # type: ignore[no-untyped-call]  # untyped there, as are those below

    def connect_check_health(self, *args: Any, **options: Any) -> None:
        try:
            super().connect_check_health(*args, **options)
        except BaseException:
            self.disconnect()
            raise

    def disconnect(self, *args: Any, **options: Any) -> None:
        self._to_come = 0
        super().disconnect(*args, **options)  # type: ignore[no-untyped-call]

    def send_command(self, *args: Any, **options: Any) -> None:
        # Whoever subscribes is told any number of things, until that connection is closed.
        self._to_come += -math.inf if str(args[0]).endswith("SUBSCRIBE") else 1
        super().send_command(*args, **options)  # type: ignore[no-untyped-call]

    def pack_commands(self, commands: Iterable[Any]) -> Any:
        several = list(commands)
        self._to_come += len(several)
        return super().pack_commands(several)  # type: ignore[no-untyped-call]

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            reply = super().read_response(*args, **options)
        except redis.ResponseError:
            self._to_come -= 1
            raise
        self._to_come -= 1
        return reply
