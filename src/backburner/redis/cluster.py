"""Connections to the node of a cluster that serves a certain slot, whichever node that is at the moment.

A cache keeps everything in one slot, by means of a hash tag in its prefix. So its scripts, pipelines and invalidations
concern one node, and everything works as with a single server, at the same speed. Each connection asks the cluster for
the node when it is made, and ends when that node reports that the slot has moved. One cache cannot be spread over
several nodes; several caches with different hash tags can.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import redis
import redis.asyncio
import redis.connection
from redis.exceptions import MovedError

Address = tuple[str, int]

_SLOTS: Final = ("CLUSTER", "SLOTS")
_TROUBLE: Final = (redis.RedisError, OSError)


def _keeper(reply: Any, slot: int, asked: Address) -> Address:
    """The node that keeps a slot, from a node's answer to CLUSTER SLOTS."""
    for first, last, (host, port, *_), *_ in reply:
        if first <= slot <= last:
            return (host.decode() if host else asked[0]), port
    raise redis.exceptions.ClusterDownError(f"no node of the cluster keeps slot {slot}")


def _moved(slot: int, error: Exception) -> redis.ConnectionError:
    return redis.ConnectionError(f"slot {slot} has moved to another node of the cluster: {error}")


def meaning_of_errors(slot: int | None) -> Callable[[Exception], Exception]:
    """A function that translates errors of a server: if a `slot` is given, MOVED is a lost connection."""

    def moved_or_as_it_is(error: Exception) -> Exception:
        return _moved(slot, error) if slot is not None and isinstance(error, MovedError) else error

    return moved_or_as_it_is


def _nobody(nodes: Sequence[Address], error: Exception | None) -> redis.ConnectionError:
    names = ", ".join(f"{host}:{port}" for host, port in nodes)
    return redis.ConnectionError(f"no node of the cluster at {names} answers: {error}")


class ClusterConnection(redis.Connection):
    """A blocking connection.

    Args:
        nodes: addresses of some nodes; the first one that answers is asked where the slot is.
        slot: the slot whose node to connect to.
        options: as for redis-py's own.
    """

    _plain: Any = redis.Connection

    def __init__(self, *, nodes: Sequence[Address], slot: int, **options: Any) -> None:
        self._nodes = nodes
        self._slot = slot
        self._options = options
        super().__init__(**options)  # type: ignore[no-untyped-call]

    def connect(self) -> None:
        if self._sock is None:
            self.host, self.port = self._locate()
        super().connect()  # type: ignore[no-untyped-call]

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().read_response(*args, **kwargs)
        except MovedError as error:
            self.disconnect()  # type: ignore[no-untyped-call]
            raise _moved(self._slot, error) from error

    def _locate(self) -> Address:
        trouble: Exception | None = None
        for host, port in self._nodes:
            connection = self._plain(**self._options | {"host": host, "port": port})
            try:
                connection.connect()
                connection.send_command(*_SLOTS)
                return _keeper(connection.read_response(), self._slot, (host, port))
            except _TROUBLE as error:
                trouble = error
            finally:
                connection.disconnect()
        raise _nobody(self._nodes, trouble) from trouble


class ClusterSSLConnection(ClusterConnection, redis.SSLConnection):
    """As `ClusterConnection`, through TLS."""

    _plain = redis.SSLConnection


class AsyncClusterConnection(redis.asyncio.Connection):
    """As `ClusterConnection`, for asyncio."""

    _plain: Any = redis.asyncio.Connection

    def __init__(self, *, nodes: Sequence[Address], slot: int, **options: Any) -> None:
        self._nodes = nodes
        self._slot = slot
        self._options = {name: option for name, option in options.items() if name != "parser_class"}  # this one's own
        super().__init__(**options)

    async def connect(self) -> None:
        if not self.is_connected:
            self.host, self.port = await self._locate()
        await super().connect()  # type: ignore[no-untyped-call]

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().read_response(*args, **kwargs)
        except MovedError as error:
            await self.disconnect(nowait=True)
            raise _moved(self._slot, error) from error

    async def _locate(self) -> Address:
        trouble: Exception | None = None
        for host, port in self._nodes:
            connection = self._plain(**self._options | {"host": host, "port": port})
            try:
                await connection.connect()
                await connection.send_command(*_SLOTS)
                return _keeper(await connection.read_response(), self._slot, (host, port))
            except _TROUBLE as error:
                trouble = error
            finally:
                await connection.disconnect(nowait=True)
        raise _nobody(self._nodes, trouble) from trouble


class AsyncClusterSSLConnection(AsyncClusterConnection, redis.asyncio.SSLConnection):
    """As `AsyncClusterConnection`, through TLS."""

    _plain = redis.asyncio.SSLConnection
