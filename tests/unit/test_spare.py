"""Connections for one caller at a time."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from backburner.redis.spare import SpareConnections


@pytest.fixture
def client(redis_url: str) -> Iterator["redis.Redis"]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def spare(client: "redis.Redis") -> Iterator[SpareConnections]:
    connections = SpareConnections(client.connection_pool)
    yield connections
    connections.close()


def number(spare: SpareConnections) -> int:
    """Of the connection that is asked."""
    found: int = spare.ask("CLIENT", "ID")()
    return found


def test_a_connection_is_used_again_also_after_an_error_of_the_servers(spare: SpareConnections) -> None:
    first = number(spare)
    with pytest.raises(redis.ResponseError, match="unknown command"):
        spare.ask("NO-SUCH-COMMAND")()
    assert number(spare) == first


def test_a_server_that_became_a_replica_is_not_asked_again(spare: SpareConnections) -> None:
    first = number(spare)
    with pytest.raises(redis.ReadOnlyError):
        spare.ask("EVAL", "return redis.error_reply('READONLY You cannot write against a read only replica.')", 0)()
    assert number(spare) != first


def test_replies_are_read_when_the_caller_likes(spare: SpareConnections, client: "redis.Redis") -> None:
    replies = [spare.ask("INCR", "n") for _ in range(3)]
    assert sorted(reply() for reply in reversed(replies)) == [1, 2, 3]
    assert len({number(spare) for _ in range(5)}) == 1
    client.delete("n")


def test_a_lost_connection_is_an_error_once(spare: SpareConnections, client: "redis.Redis") -> None:
    client.client_kill_filter(_id=number(spare))
    with pytest.raises(redis.ConnectionError):
        spare.ask("PING")()
    assert spare.ask("PING")() in (b"PONG", "PONG")


def test_one_that_is_not_given_back_is_missed_by_nobody(spare: SpareConnections) -> None:
    first = number(spare)
    spare.ask("PING")  # and never read
    assert number(spare) != first


def test_a_forked_child_has_its_own(spare: SpareConnections, tmp_path: Path) -> None:
    mine, told = number(spare), tmp_path / "told"
    child = os.fork()
    if child == 0:
        told.write_text(str(number(spare)))
        os._exit(0)
    os.waitpid(child, 0)
    assert int(told.read_text()) != mine
    assert number(spare) == mine
