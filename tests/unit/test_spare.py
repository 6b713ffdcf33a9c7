"""Connections for one caller at a time."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from backburner.redis import push
from backburner.redis.command import packed
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


@pytest.mark.parametrize("ahead", [True, False], ids=["read ahead", "read by redis-py"])
def test_of_several_commands_each_has_its_reply_and_errors_are_replies(
    spare: SpareConnections, monkeypatch: pytest.MonkeyPatch, *, ahead: bool
) -> None:
    if not ahead:
        monkeypatch.setattr(push, "parser_of", lambda _: None)
    long = b"x" * 1_000_000  # comes in many pieces
    commands = [packed(("ECHO", long)), packed(("NO-SUCH-COMMAND",)), packed(("ECHO", "last"))]
    first, wrong, last = spare.ask_all(b"".join(commands), 3)()
    assert first == long
    assert isinstance(wrong, redis.ResponseError)
    assert last == b"last"
    assert spare.ask("ECHO", "in step")() == b"in step"


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
