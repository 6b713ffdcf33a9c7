"""redis-py's pools, in threads that a signal's handler interrupts anywhere: the next caller gets his own reply."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from redis.connection import AbstractConnection

from backburner import Celery
from backburner.redis.client import connect
from tests.alarms import Alarm


@pytest.fixture(params=["the cache's", "the results'"])
def client(request: pytest.FixtureRequest, redis_url: str) -> Iterator[redis.Redis]:
    """Reads database 1."""
    url = redis_url.rstrip("/0").rstrip("/") + "/1"
    if request.param == "the cache's":
        client = connect(url, timeout=5)
    else:
        client = Celery("jobs", broker=url, backend=url).backend.client
    yield client
    client.connection_pool.disconnect()


def _struck_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    calls = 0

    def struck(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Alarm
        return function(*args, **options)

    return struck


def test_the_next_caller_does_not_get_the_reply_to_a_command_that_was_interrupted(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(client, "parse_response", _struck_at(1, client.parse_response))
        with pytest.raises(Alarm):
            client.blpop(["nothing"], 0.1)
    assert client.echo("mine") == b"mine"


def test_nor_those_to_a_pipeline(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = client.pipeline(transaction=False)
    pipeline.echo("first").blpop(["nothing"], 0.1).echo("last")
    monkeypatch.setattr(pipeline, "parse_response", _struck_at(2, pipeline.parse_response))
    with pytest.raises(Alarm):
        pipeline.execute()
    assert client.echo("mine") == b"mine"


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_login_that_was_interrupted_is_begun_again(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(AbstractConnection, "send_command", _struck_at(call, AbstractConnection.send_command))
        with pytest.raises(Alarm):
            client.ping()
    assert client.client_info()["db"] == 1


def test_what_goes_well_or_is_refused_costs_no_connection(client: redis.Redis) -> None:
    number = client.client_id()
    with pytest.raises(redis.ResponseError):
        client.execute_command("NONSENSE")
    pipeline = client.pipeline()
    assert pipeline.set("key", 1).incr("key").execute() == [True, 2]
    with pytest.raises(redis.ResponseError):
        client.pipeline(transaction=False).lpush("key", 1).get("key").execute()
    assert client.client_id() == number


def test_who_subscribes_is_told_everything_on_one_connection(client: redis.Redis) -> None:
    with client.pubsub() as listener:
        listener.subscribe("one", "two")
        listener.subscribe("three")
        told = [next(listener.listen())["type"] for _ in range(3)]
        for channel in ("one", "two", "three"):
            assert client.publish(channel, "news") == 1
        told += [next(listener.listen())["type"] for _ in range(3)]
    assert told == ["subscribe"] * 3 + ["message"] * 3
