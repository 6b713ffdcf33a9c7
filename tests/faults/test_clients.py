"""The pipelining clients, blocking and asyncio, and a server that stalls, cuts, resets, dies and returns: nobody waits
beyond the budget, and nobody gets another's reply."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from backburner.redis.embedded import EmbeddedServer
from backburner.testing import FaultProxy
from tests.conftest import Eventually
from tests.faults.callers import CALLERS

BUDGET = 0.25
SLACK = 1.0

Connect = Callable[..., Any]


@pytest.fixture(params=CALLERS)
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Makes callers of one client."""
    made: list[Any] = []

    def make(url: str, timeout: float = BUDGET) -> Any:
        made.append(CALLERS[request.param](url, timeout))
        return made[-1]

    yield make
    for callers in made:
        callers.end()


def _echoes(count: int) -> list[tuple[Any, ...]]:
    return [("ECHO", number) for number in range(count)]


def _answers(callers: Any) -> bool:
    try:
        return bool(callers.ask("ECHO", "again") == b"again")
    except redis.RedisError:
        return False


def test_replies_reach_who_asked_for_them(redis_url: str, connect: Connect) -> None:
    callers = connect(redis_url, timeout=5.0)
    callers.ask_together([("SET", f"key:{n}", n) for n in range(1000)])
    replies, _ = callers.ask_together([("GET", f"key:{n}") for n in range(1000)])
    assert replies == [b"%d" % n for n in range(1000)]
    with redis.Redis.from_url(redis_url, decode_responses=True) as observer:
        assert len([client for client in observer.client_list() if client["name"] == "ours"]) == 1


def test_an_error_reply_reaches_only_its_command(redis_url: str, connect: Connect) -> None:
    callers = connect(redis_url, timeout=5.0)
    callers.ask("SET", "text", "abc")
    commands = [("GET", "text"), ("LPUSH", "text", "x"), ("EVALSHA", "0" * 40, 0), ("NONSENSE",), ("STRLEN", "text")]
    replies, _ = callers.ask_together(commands * 20)
    kinds = [bytes, redis.ResponseError, redis.exceptions.NoScriptError, redis.ResponseError, int]
    assert [type(reply) for reply in replies] == kinds * 20


def test_a_pipeline_with_an_error_raises_it_and_carries_out_the_rest(redis_url: str, connect: Connect) -> None:
    callers = connect(redis_url, timeout=5.0)
    assert callers.pipelined() == []
    assert callers.pipelined(("SET", "a", 1), ("SET", "a", 2, "NX"), ("MGET", "a", "b")) == [b"OK", None, [b"1", None]]
    with pytest.raises(redis.ResponseError, match="integer"):
        callers.pipelined(("SET", "a", "text"), ("INCR", "a"), ("SET", "b", 1))
    assert callers.ask("GET", "b") == b"1"


def test_what_is_no_argument_is_refused_and_nothing_is_sent(redis_url: str, connect: Connect) -> None:
    callers = connect(redis_url, timeout=5.0)
    with pytest.raises(redis.DataError, match="str, bytes, int and float"):
        callers.ask("SET", "key", None)
    with pytest.raises(redis.DataError):
        callers.pipelined(("SET", "key", 1), ("SET", "key", object()))
    assert callers.ask("EXISTS", "key") == 0


def test_a_closed_client_can_be_used_again(redis_url: str, connect: Connect, eventually: Eventually) -> None:
    callers = connect(redis_url, timeout=5.0)
    callers.close()
    callers.ask("PING")
    callers.close()
    with redis.Redis.from_url(redis_url, decode_responses=True) as observer:
        eventually(lambda: not [client for client in observer.client_list() if client["name"] == "ours"])
    assert callers.ask("PING") == b"PONG"


def test_a_master_that_became_a_replica_is_left(redis_url: str, connect: Connect) -> None:
    callers = connect(redis_url, timeout=5.0)
    before = callers.ask("CLIENT", "ID")
    callers.ask("REPLICAOF", "127.0.0.1", 1)
    try:
        with pytest.raises(redis.ReadOnlyError):
            callers.ask("SET", "key", 1)
        assert callers.ask("CLIENT", "ID") != before
    finally:
        callers.ask("REPLICAOF", "NO", "ONE")


@pytest.mark.parametrize("connected", [True, False], ids=["connected", "not yet connected"])
def test_a_server_that_hangs_fails_all_that_wait_within_the_budget(
    proxy: FaultProxy, connect: Connect, connected: bool, eventually: Eventually
) -> None:
    callers = connect(proxy.url)
    if connected:
        callers.ask("PING")
    proxy.stall()
    errors, took = callers.ask_together(_echoes(100))
    assert {type(error) for error in errors} == {redis.TimeoutError}
    assert BUDGET * 0.9 < took < BUDGET + SLACK
    assert len({id(error) for error in errors}) == len(errors)
    proxy.pass_through()
    eventually(lambda: _answers(callers), timeout=3)


def test_a_hung_connection_is_dropped_and_not_used_again(
    proxy: FaultProxy, connect: Connect, eventually: Eventually
) -> None:
    callers = connect(proxy.url)
    callers.ask("SET", "key", "old")
    proxy.stall()
    with pytest.raises(redis.TimeoutError):
        callers.ask("GET", "key")
    proxy.pass_through()  # the late reply comes now, to nobody
    eventually(lambda: _answers(callers), timeout=3)
    assert proxy.connections == 2


FAULTS = {
    "refuses": FaultProxy.refuse,
    "cuts at once": lambda proxy: proxy.cut(0),
    "cuts in a reply": lambda proxy: proxy.cut(3),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_lost_connection_fails_what_it_carried_at_once(
    proxy: FaultProxy, connect: Connect, fault: Any, eventually: Eventually
) -> None:
    callers = connect(proxy.url, timeout=3.0)
    callers.ask("PING")
    fault(proxy)
    errors, took = callers.ask_together(_echoes(100))
    assert {type(error) for error in errors} == {redis.ConnectionError}
    assert took < 2.0  # not the budget
    proxy.pass_through()
    eventually(lambda: _answers(callers), timeout=3)


def test_replies_that_came_before_the_cut_are_kept(proxy: FaultProxy, connect: Connect) -> None:
    callers = connect(proxy.url)
    callers.ask("PING")
    proxy.cut(len(b"$1\r\n0\r\n") * 3 + 2)
    replies, _ = callers.ask_together(_echoes(6))
    assert sum(isinstance(reply, bytes) for reply in replies) >= 3
    assert any(isinstance(reply, redis.ConnectionError) for reply in replies)
    assert all(isinstance(reply, redis.ConnectionError) or reply == b"%d" % n for n, reply in enumerate(replies))


def test_large_replies_do_not_fail_small_ones(proxy: FaultProxy, connect: Connect) -> None:
    callers = connect(proxy.url, timeout=2.0)
    callers.ask("SET", "large", b"x" * 4_000_000)
    commands = [("GET", "large") if n % 20 == 0 else ("ECHO", n) for n in range(100)]
    replies, _ = callers.ask_together(commands)
    assert [len(reply) for reply in replies[::20]] == [4_000_000] * 5
    assert all(reply == b"%d" % n for n, reply in enumerate(replies) if n % 20)
    assert proxy.connections == 1


def test_a_server_that_stops_reading_fails_what_waits_within_the_budget(
    proxy: FaultProxy, connect: Connect, eventually: Eventually
) -> None:
    callers = connect(proxy.url)
    callers.ask("PING")
    proxy.stall()
    errors, took = callers.ask_together([("SET", f"key:{n}", b"x" * 1_000_000) for n in range(12)])
    assert {type(error) for error in errors} == {redis.TimeoutError}
    assert took < BUDGET * 2 + SLACK
    proxy.pass_through()
    eventually(lambda: _answers(callers), timeout=3)
    # The dropped connection is closed once its last bytes are read; before, a loop's end would leave it open.
    eventually(lambda: _answers(callers) and proxy.open_connections == 1, timeout=5)


def test_a_server_that_is_killed_and_started_again_is_used_again(
    tmp_path: Path, connect: Connect, eventually: Eventually
) -> None:
    server = EmbeddedServer(tmp_path / "valkey").start()
    try:
        callers = connect(server.url)
        callers.ask("PING")
        port = server.port
        os.kill(server.pid, signal.SIGKILL)
        server.stop()  # of a dead process: reaps it
        errors, _ = callers.ask_together(_echoes(10))
        assert {type(error) for error in errors} == {redis.ConnectionError}
        server = EmbeddedServer(tmp_path / "valkey", port=port).start()
        eventually(lambda: _answers(callers), timeout=3)
    finally:
        server.stop()
