"""Events of workers: in a thread, and hardly any while nobody listens."""

import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import kombu
import pytest
import redis
from kombu.transport.virtual import Channel

from backburner.queue import Celery
from backburner.queue.announcing import Announced, Announcing

Ticks = Callable[[float], None]


@pytest.fixture
def client(url: str) -> Iterator["redis.Redis"]:
    with redis.Redis.from_url(url) as client:
        yield client


@pytest.fixture
def dispatcher(app: Celery) -> Iterator[Any]:
    with app.connection_for_write() as connection, app.events.Dispatcher(connection) as dispatcher:
        yield dispatcher


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Ticks:
    def set_to(moment: float) -> None:
        monkeypatch.setattr("backburner.queue.announcing.monotonic", lambda: moment)

    set_to(1000.0)
    return set_to


def published(client: "redis.Redis") -> int:
    calls: int = client.info("commandstats").get("cmdstat_publish", {"calls": 0})["calls"]
    return calls


def test_while_nobody_listens_events_of_tasks_are_sent_now_and_then(
    dispatcher: Any, client: "redis.Redis", at: Ticks
) -> None:
    announcing, before = Announcing(dispatcher), published(client)

    def announce(name: str) -> int:
        dispatcher._publish([{"type": name}], dispatcher.producer, "task.multi")
        announcing.flush()
        return published(client) - before

    assert announce("first") == 1
    assert [announce("more") for _ in range(5)] == [1] * 5
    dispatcher._publish({"type": "worker-heartbeat"}, dispatcher.producer, "worker.heartbeat")
    announcing.flush()
    assert published(client) - before == 2, "those of workers are always sent"
    with client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.psubscribe("/*celeryev*")
        listener.get_message(timeout=5)
        at(1001.0)
        for name in ("heard", "heard too"):
            announce(name)
            body = json.loads(listener.get_message(timeout=5)["data"])["body"]
            assert json.loads(Channel.codecs["base64"].decode(body)) == [{"type": name}]
    announcing.close()


def test_events_of_workers_in_every_pool_leave_in_a_thread_where_it_is_worth_one(dispatcher: Any) -> None:
    publish = dispatcher._publish
    worker = SimpleNamespace(pool=object(), event_dispatcher=dispatcher)
    step = Announced(worker)
    step.start(worker)
    assert dispatcher._publish != publish
    step.shutdown(worker)
    with kombu.Connection("memory://") as connection:
        elsewhere = SimpleNamespace(enabled=True, producer=connection.Producer(), _publish=publish)
        step.start(SimpleNamespace(pool=object(), event_dispatcher=elsewhere))
        assert elsewhere._publish is publish
    step.start(SimpleNamespace(pool=object(), event_dispatcher=None))
