"""The pipelined client and a server that stalls, cuts, resets, dies and returns: nobody waits beyond the budget."""

import asyncio
import time
from typing import Any

import pytest
import redis

from backburner.redis.pipelined import PipelinedClient
from backburner.testing import FaultProxy

BUDGET = 0.25
SLACK = 1.0


def _run(main: Any, url: str, timeout: float = BUDGET) -> None:
    async def with_client() -> None:
        client = PipelinedClient(url, timeout=timeout)
        try:
            await main(client)
        finally:
            await client.aclose()

    asyncio.run(with_client())


async def _asked(client: PipelinedClient, count: int = 100) -> tuple[list[Any], float]:
    """What `count` callers get, and how long the last one waits."""
    began = time.perf_counter()
    pings = [asyncio.ensure_future(client.execute_command("ECHO", n)) for n in range(count)]
    return await asyncio.gather(*pings, return_exceptions=True), time.perf_counter() - began


async def _again(client: PipelinedClient) -> None:
    async with asyncio.timeout(3):
        while True:
            try:
                assert await client.execute_command("ECHO", "again") == b"again"
            except redis.RedisError:
                await asyncio.sleep(0.02)
            else:
                return


FAULTS = {
    "refuses": FaultProxy.refuse,
    "cuts at once": lambda proxy: proxy.cut(0),
    "cuts in a reply": lambda proxy: proxy.cut(3),
}


def test_a_reset_connection_fails_what_it_carried_at_once(proxy: FaultProxy) -> None:
    async def main(client: PipelinedClient) -> None:
        await client.execute_command("PING")
        proxy.stall()
        asked = asyncio.create_task(_asked(client))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(proxy.reset)
        errors, took = await asked
        assert {type(error) for error in errors} == {redis.ConnectionError}
        assert took < 2.0  # not the budget
        proxy.pass_through()
        await _again(client)

    _run(main, proxy.url, timeout=3.0)


def test_a_long_handshake_costs_its_callers_their_budget_and_serves_the_next_ones(proxy: FaultProxy) -> None:
    async def main(client: PipelinedClient) -> None:
        proxy.delay(0.3)  # twice and more until logged in; the budget is 0.5
        began = time.perf_counter()
        with pytest.raises(redis.TimeoutError):
            await client.execute_command("PING")
        assert time.perf_counter() - began < 0.5 + SLACK
        await _again(client)
        assert proxy.connections == 1

    _run(main, proxy.url, timeout=0.5)


def test_a_loop_that_was_busy_for_longer_than_the_budget_blames_nobody(proxy: FaultProxy) -> None:
    async def main(client: PipelinedClient) -> None:
        await client.execute_command("PING")
        for wait_first in (True, False):
            asked = asyncio.ensure_future(client.execute_command("ECHO", "here"))
            if wait_first:
                await asyncio.sleep(0)  # it is sent
            time.sleep(BUDGET * 1.5)  # noqa: ASYNC251  # that is the fault
            assert await asked == b"here"
        assert proxy.connections == 1

    _run(main, proxy.url)


def test_large_replies_do_not_fail_small_ones(proxy: FaultProxy) -> None:
    async def main(client: PipelinedClient) -> None:
        await client.execute_command("SET", "large", b"x" * 4_000_000)

        async def large() -> None:
            for _ in range(5):
                assert len(await client.execute_command("GET", "large")) == 4_000_000

        async def small(number: int) -> None:
            for _ in range(20):
                assert await client.execute_command("ECHO", number) == b"%d" % number
                await asyncio.sleep(0.001)

        await asyncio.gather(large(), *map(small, range(16)))
        assert proxy.connections == 1

    _run(main, proxy.url, timeout=2.0)


def test_cancelled_callers_of_a_slow_server_leave_the_stream_in_step(proxy: FaultProxy) -> None:
    async def main(client: PipelinedClient) -> None:
        await client.execute_command("PING")
        proxy.delay(0.02)
        for number in range(30):
            asked = [asyncio.ensure_future(client.execute_command("ECHO", f"{number}.{n}")) for n in range(4)]
            await asyncio.sleep(0.005 * (number % 4))
            asked[number % 3].cancel()
            assert await asked[3] == f"{number}.3".encode()
            await asyncio.gather(*asked, return_exceptions=True)
        assert proxy.connections == 1

    _run(main, proxy.url, timeout=2.0)


def test_waiting_for_room_ends_with_the_connection(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backburner.redis.stream.MAX_PENDING", 10)

    async def main(client: PipelinedClient) -> None:
        await client.execute_command("PING")
        proxy.stall()
        errors, took = await _asked(client)
        assert {type(error) for error in errors} == {redis.TimeoutError}
        assert took < BUDGET + SLACK

    _run(main, proxy.url)
