"""Many callers at once of either client, the blocking and the asyncio one, for tests that hold for both."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from backburner.redis.blocking import BlockingClient
from backburner.redis.pipelined import PipelinedClient

MOST = 100


class Threads:
    """Callers of one blocking client."""

    def __init__(self, url: str, timeout: float) -> None:
        self._client = BlockingClient(url, timeout=timeout, name="ours")
        self._pool = ThreadPoolExecutor(MOST)

    def ask(self, *command: Any) -> Any:
        """One reply."""
        return self._client.execute_command(*command)

    def ask_together(self, commands: list[tuple[Any, ...]]) -> tuple[list[Any], float]:
        """What as many callers get, replies or errors, and how many seconds the last one waits."""
        began = time.perf_counter()
        asked = [self._pool.submit(self.ask, *command) for command in commands]
        return [one.exception() or one.result() for one in asked], time.perf_counter() - began

    def pipelined(self, *commands: tuple[Any, ...]) -> Any:
        """The replies to commands that are sent together."""
        pipeline = self._client.pipeline()
        for command in commands:
            pipeline.execute_command(*command)
        return pipeline.execute()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def end(self) -> None:
        """No more callers."""
        self._pool.shutdown()
        self._client.close()


class Tasks:
    """Callers of one asyncio client."""

    def __init__(self, url: str, timeout: float) -> None:
        self._client = PipelinedClient(url, timeout=timeout, name="ours")
        self._runner = asyncio.Runner()

    def ask(self, *command: Any) -> Any:
        return self._runner.run(self._ask(*command))

    async def _ask(self, *command: Any) -> Any:
        return await self._client.execute_command(*command)

    def ask_together(self, commands: list[tuple[Any, ...]]) -> tuple[list[Any], float]:
        async def ask() -> list[Any]:
            return await asyncio.gather(*(self._ask(*command) for command in commands), return_exceptions=True)

        began = time.perf_counter()
        return self._runner.run(ask()), time.perf_counter() - began

    def pipelined(self, *commands: tuple[Any, ...]) -> Any:
        async def ask() -> Any:
            pipeline = self._client.pipeline()
            for command in commands:
                pipeline.execute_command(*command)
            return await pipeline.execute()

        return self._runner.run(ask())

    def close(self) -> None:
        self._runner.run(self._client.aclose())

    def end(self) -> None:
        self.close()
        self._runner.close()


CALLERS = {"threads": Threads, "tasks": Tasks}
