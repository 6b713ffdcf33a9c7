"""For commands that block in the server, with asyncio: each caller has a connection of its own while it waits.

When all connections are in use, further callers wait for one as long as it takes; an error would be mistaken for a sign
of an ill server. Connections are `PipelinedClient`s, and end with their event loop like those.
"""

import asyncio
from functools import partial
from typing import Any, Final

from backburner.redis.pipelined import PipelinedClient

__all__ = ["PatientClient"]

_MOST: Final = 256
"""Connections in use at a time."""
_KEPT: Final = 8
"""Connections kept for the next callers."""


class PatientClient:
    """The part of `redis.asyncio.Redis` that blocking commands need; otherwise as `PipelinedClient`.

    Args:
        timeout: seconds for each step of connecting, and for each reply, including the time that a command may block.
    """

    def __init__(self, url: str, *, timeout: float, name: str) -> None:
        self._connect = partial(PipelinedClient, url, timeout=timeout, name=name)
        self._free: list[PipelinedClient] = []
        self._kept = _KEPT
        self._turn = asyncio.Semaphore(_MOST)

    async def execute_command(self, *command: Any) -> Any:
        """Send a command, and wait for the reply. Cancelling the wait closes the connection.

        Raises:
            redis.RedisError: as from redis-py.
        """
        async with self._turn:
            client = self._free.pop() if self._free else self._connect()
            try:
                reply = await client.execute_command(*command)
            except GeneratorExit:
                raise
            except BaseException:
                await client.aclose()
                raise
            if len(self._free) < self._kept:
                self._free.append(client)
            else:
                await client.aclose()
            return reply

    async def aclose(self) -> None:
        """Close the connections; those in use are closed when their command is done."""
        self._kept = 0
        while self._free:
            await self._free.pop().aclose()
