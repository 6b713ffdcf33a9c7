"""The pipelined client against a server in good health: who gets which reply, and what cancelling leaves behind."""

import asyncio
import gc
import logging
import os
import random
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
import uvloop

from backburner.redis import stream
from backburner.redis.pipelined import PipelinedClient

LARGE = 1_000_000


def _run(main: Any, url: str, **options: Any) -> Any:
    async def with_client() -> Any:
        client = PipelinedClient(url, **{"timeout": 5.0} | options)
        try:
            return await main(client)
        finally:
            await client.aclose()

    return asyncio.run(with_client())


async def _until(predicate: Any) -> None:
    async with asyncio.timeout(5):
        while not predicate():  # noqa: ASYNC110  # what the server has noticed is no event here
            await asyncio.sleep(0.01)


def test_500_tasks_interleaved_each_see_their_own_writes(redis_url: str) -> None:
    async def main(client: PipelinedClient) -> None:
        async def task(number: int) -> None:
            dice = random.Random(number)
            for step in range(10):
                assert await client.execute_command("SET", f"key:{number}", f"{number}.{step}") == b"OK"
                if dice.random() < 0.3:
                    await asyncio.sleep(0)
                assert await client.execute_command("GET", f"key:{number}") == f"{number}.{step}".encode()

        await asyncio.gather(*map(task, range(500)))

    _run(main, redis_url)


def test_commands_of_one_tick_leave_in_one_write_on_one_connection(redis_url: str) -> None:
    async def main(client: PipelinedClient) -> None:
        await client.execute_command("PING")
        with redis.Redis.from_url(redis_url, decode_responses=True) as observer:
            before = observer.info("stats")["total_reads_processed"]
            await asyncio.gather(*(client.execute_command("GET", f"key:{n}") for n in range(200)))
            # One read by the server for ours, one for the observer's own question.
            assert observer.info("stats")["total_reads_processed"] - before <= 4
            assert len([other for other in observer.client_list() if other["name"] == "ours"]) == 1

    _run(main, redis_url, name="ours")


def test_cancelled_callers_leave_the_stream_in_step(redis_url: str) -> None:
    async def main(client: PipelinedClient) -> None:
        await client.execute_command("SET", "large", b"x" * LARGE)
        await client.execute_command("SET", "small", "y")
        for round_ in range(20):
            doomed = [asyncio.ensure_future(client.execute_command("GET", "large")) for _ in range(10)]
            kept = asyncio.ensure_future(client.execute_command("GET", "small"))
            for _ in range(round_ % 4):  # before it is sent, when it is, while replies arrive
                await asyncio.sleep(0)
            for task in doomed:
                task.cancel()
            assert await kept == b"y"
            assert all(
                isinstance(one, asyncio.CancelledError) for one in await asyncio.gather(*doomed, return_exceptions=True)
            )
        assert await client.execute_command("ECHO", "in step") == b"in step"

    _run(main, redis_url)


def test_a_caller_cancelled_while_connecting_does_not_cancel_the_others(redis_url: str) -> None:
    async def main(client: PipelinedClient) -> None:
        first = asyncio.ensure_future(client.execute_command("PING"))
        second = asyncio.ensure_future(client.execute_command("ECHO", "second"))
        first.cancel()
        assert await second == b"second"

    _run(main, redis_url)


def test_callers_beyond_the_limit_wait_and_all_are_served(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_PENDING", 10)
    highest = 0

    async def main(client: PipelinedClient) -> None:
        async def ask(number: int) -> Any:
            nonlocal highest
            reply = await client.execute_command("ECHO", number)
            assert client._stream is not None
            highest = max(highest, client._stream.pending)
            return reply

        tasks = [asyncio.create_task(ask(number)) for number in range(300)]
        await asyncio.sleep(0)
        for task in tasks[::3]:
            task.cancel()
        replies = await asyncio.gather(*tasks, return_exceptions=True)
        for number, reply in enumerate(replies):
            assert isinstance(reply, asyncio.CancelledError) if number % 3 == 0 else reply == b"%d" % number

    _run(main, redis_url)
    assert highest <= 10


def test_a_pipeline_beyond_the_limit_waits_and_keeps_its_order(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_PENDING", 10)

    async def main(client: PipelinedClient) -> None:
        async def appended(name: str) -> Any:
            pipeline = client.pipeline()
            for number in range(100):
                pipeline.execute_command("RPUSH", name, number)
            return await pipeline.execute()

        assert await asyncio.gather(*map(appended, "abc")) == [[*range(1, 101)]] * 3
        for name in "abc":
            assert await client.execute_command("LRANGE", name, 0, -1) == [b"%d" % number for number in range(100)]
        assert await client.pipeline().execute() == []

    _run(main, redis_url)


def test_of_several_errors_in_a_pipeline_the_first_is_raised_and_nothing_is_left_of_the_others(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(client: PipelinedClient) -> None:
        pipeline = client.pipeline().execute_command("SET", "text", "a").execute_command("INCR", "text")
        pipeline.execute_command("LPUSH", "text", 1).execute_command("SET", "after", 1)
        with pytest.raises(redis.ResponseError, match="not an integer"):
            await pipeline.execute()
        assert await client.execute_command("GET", "after") == b"1"

    _run(main, redis_url)
    gc.collect()  # a future whose error nobody saw would say so
    assert not caplog.records


def test_a_cancelled_pipeline_leaves_the_stream_in_step(redis_url: str) -> None:
    async def main(client: PipelinedClient) -> None:
        await client.execute_command("SET", "large", b"x" * LARGE)
        for round_ in range(5):
            pipeline = client.pipeline()
            for _ in range(10):
                pipeline.execute_command("GET", "large").execute_command("INCR", "large")
            task = asyncio.ensure_future(pipeline.execute())
            for _ in range(round_):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await client.execute_command("ECHO", round_) == b"%d" % round_

    _run(main, redis_url)


def test_unsent_bytes_are_bounded(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_UNSENT_BYTES", 2 * LARGE)

    async def main(client: PipelinedClient) -> None:
        sets = [asyncio.ensure_future(client.execute_command("SET", f"key:{n}", b"x" * LARGE)) for n in range(20)]
        assert client._stream is not None
        assert client._stream.full
        assert client._stream._unsent_bytes < 4 * LARGE
        assert await asyncio.gather(*sets) == [b"OK"] * 20
        assert not client._stream.full

    _run(main, redis_url)


def test_nothing_ticks_while_nobody_waits(redis_url: str) -> None:
    async def main(client: PipelinedClient) -> None:
        await client.execute_command("PING")
        stream = client._stream
        assert stream is not None
        assert stream._watchdog is not None
        await _until(lambda: stream._watchdog is None)
        assert await client.execute_command("PING") == b"PONG"
        assert stream._watchdog is not None
        assert client._stream is stream

    _run(main, redis_url, timeout=0.1)


def test_closing_fails_what_waits_and_the_client_can_be_used_again(redis_url: str) -> None:
    async def main(client: PipelinedClient) -> None:
        await client.execute_command("SET", "large", b"x" * LARGE)
        waiting = [asyncio.ensure_future(client.execute_command("GET", "large")) for _ in range(50)]
        await asyncio.sleep(0)
        await client.aclose()
        for error in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(error, redis.ConnectionError)
            assert "was closed" in str(error)
        assert await client.execute_command("PING") == b"PONG"

    _run(main, redis_url)


def test_a_loop_that_ends_without_closing_leaves_no_open_connection(redis_url: str, valkey: Any) -> None:
    client = PipelinedClient(redis_url, name="left", timeout=5.0)

    async def main() -> None:
        await client.execute_command("PING")

    asyncio.run(main())
    gc.collect()  # an unclosed transport would warn, and a warning is an error here
    with redis.Redis.from_url(redis_url, decode_responses=True) as observer:
        assert not [other for other in observer.client_list() if other["name"] == "left"]
    asyncio.run(main())  # and the next loop gets a connection of its own


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_task_that_ends_with_its_loop_opens_no_other_connection(
    redis_url: str, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    client = PipelinedClient(redis_url, name="left", timeout=5.0)
    ended: list[object] = []

    async def clean_up_at_the_end() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            for _ in range(3):
                ended.extend(await asyncio.gather(client.execute_command("PING"), return_exceptions=True))

    async def main() -> None:
        tasks.extend(asyncio.create_task(clean_up_at_the_end()) for _ in range(10))  # which of them ends first, varies
        assert await client.execute_command("PING") == b"PONG"

    for _ in range(10):
        tasks: list[asyncio.Task[None]] = []
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(main())
        gc.collect()  # an unclosed transport would warn, and a warning is an error here
        with redis.Redis.from_url(redis_url, decode_responses=True) as observer:
            assert not [other for other in observer.client_list() if other["name"] == "left"]
    assert ended


@pytest.mark.slow
@pytest.mark.parametrize(
    ("new_loop", "last"), [(asyncio.new_event_loop, 1), (uvloop.new_event_loop, 0)], ids=["asyncio", "uvloop"]
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of asyncio, whose transports end with their loops only
def test_a_loop_that_was_closed_with_all_that_was_at_work_leaves_no_more_than_the_last_connection(
    redis_url: str, caplog: pytest.LogCaptureFixture, new_loop: Callable[[], asyncio.AbstractEventLoop], last: int
) -> None:
    clients = [PipelinedClient(redis_url, name="left", timeout=5.0) for _ in range(5)]

    async def ask(client: PipelinedClient) -> "weakref.ref[asyncio.AbstractEventLoop]":
        await client.execute_command("PING")
        return weakref.ref(asyncio.get_running_loop())

    def open_connections() -> int:
        with redis.Redis.from_url(redis_url, decode_responses=True) as observer:
            return sum(other["name"] == "left" for other in observer.client_list())

    loops = []
    for client in clients:
        loop = new_loop()
        loops.append(loop.run_until_complete(ask(client)))
        loop.close()
    del loop
    gc.collect()
    assert open_connections() == last
    assert [each() is None for each in loops] == [True] * 4 + [False]
    asyncio.run(ask(PipelinedClient(redis_url, name="left", timeout=5.0)))
    gc.collect()
    assert open_connections() == 0
    assert caplog.messages == []


def test_a_forked_child_that_closes_a_loop_leaves_the_parents_connection_alone(redis_url: str) -> None:
    client = PipelinedClient(redis_url, timeout=5.0)

    async def ask(client: PipelinedClient) -> Any:
        return await client.execute_command("CLIENT", "ID")

    loop = asyncio.new_event_loop()
    mine = loop.run_until_complete(ask(client))
    child = os.fork()
    if not child:
        loop.close()
        os._exit(asyncio.run(ask(PipelinedClient(redis_url, timeout=5.0))) == mine)
    assert os.waitpid(child, 0)[1] == 0
    assert loop.run_until_complete(ask(client)) == mine
    loop.run_until_complete(client.aclose())
    loop.close()


def test_a_connection_is_retired_when_nothing_waits_for_a_reply(redis_url: str) -> None:
    async def main(client: PipelinedClient) -> None:
        await client.execute_command("PING")
        waiting = client.execute_command("ECHO", "waiting")
        await asyncio.to_thread(client.retire)
        assert await waiting == b"waiting"
        await _until(lambda: not client.is_idle)
        assert await client.execute_command("PING") == b"PONG"

    _run(main, redis_url, timeout=0.2)


def test_push_messages_reach_their_receiver_between_replies(redis_url: str) -> None:
    pushed: list[list[Any]] = []

    async def main(client: PipelinedClient) -> None:
        await client.execute_command("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "p:")
        with redis.Redis.from_url(redis_url) as other:
            other.set("p:key", 1)
        await _until(lambda: pushed)
        assert pushed == [[b"invalidate", [b"p:key"]]]
        assert await client.execute_command("GET", "p:key") == b"1"

    _run(main, redis_url, on_push=pushed.append)


def test_a_failing_receiver_of_push_messages_is_logged_and_harms_nobody(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: list[Any]) -> None:
        raise RuntimeError("the receiver is broken")

    async def main(client: PipelinedClient) -> None:
        await client.execute_command("CLIENT", "TRACKING", "ON", "BCAST")
        await client.execute_command("SET", "key", 1)
        assert await client.execute_command("GET", "key") == b"1"
        await _until(lambda: caplog.records)

    with caplog.at_level(logging.ERROR, "backburner.cache"):
        _run(main, redis_url, on_push=fail)
    assert "the receiver is broken" in caplog.text
    caplog.clear()


def test_a_lost_idle_connection_is_noticed_before_anybody_uses_it(redis_url: str) -> None:
    async def main(client: PipelinedClient) -> None:
        await client.execute_command("PING")
        with redis.Redis.from_url(redis_url) as other:
            other.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await _until(lambda: client._stream is None)
        assert await client.execute_command("PING") == b"PONG"

    _run(main, redis_url)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are new in Python 3.12")
def test_an_attempt_to_connect_that_fails_at_once_is_made_again_on_a_loop_of_eager_tasks(tmp_path: Path) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        client = PipelinedClient(f"unix://{tmp_path / 'nobody'}", timeout=60.0)
        for _ in range(2):
            async with asyncio.timeout(5):
                with pytest.raises(redis.ConnectionError, match="no connection to"):
                    await client.execute_command("PING")
        await client.aclose()

    asyncio.run(main())


def test_errors_pushes_and_a_lost_connection_while_callers_wait_for_their_turn(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "MAX_PENDING", 10)
    pushed: list[Any] = []

    async def main() -> None:
        client = PipelinedClient(redis_url, timeout=5.0, on_push=pushed.append)
        await client.execute_command("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "p:")
        asked = [client.execute_command("SET", f"p:{number}", b"x" * 50_000) for number in range(100)]
        asked += [client.execute_command("INCR", "p:1"), client.execute_command("ECHO", "still in step")]
        *stored, refused, echo = await asyncio.gather(*asked, return_exceptions=True)
        assert stored == [b"OK"] * 100
        assert isinstance(refused, redis.ResponseError)
        assert echo == b"still in step"
        with redis.Redis.from_url(redis_url) as other:
            other.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        async with asyncio.timeout(5):
            while client._stream is not None:  # noqa: ASYNC110  # until the loss is noticed
                await asyncio.sleep(0.01)
        assert await client.execute_command("ECHO", "again") == b"again"
        await client.aclose()

    asyncio.run(main())
    assert {name for _, names in pushed for name in names} >= {b"p:0", b"p:99"}
