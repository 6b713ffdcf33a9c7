"""The transport in a plain Celery app, and what Celery's own tools do on it: control, purging, events, lengths."""

import os
import threading
from collections.abc import Iterator
from typing import Any

import celery
import kombu
import pytest
import redis

from backburner.queue import Celery
from backburner.queue.keys import Keys
from tests.conftest import Eventually
from tests.processes import Program
from tests.queue.conftest import StartWorker

KEYS = Keys()
TRANSPORT = "backburner.queue.transport:Transport"


@pytest.fixture
def plain(url: str) -> Iterator[celery.Celery]:
    url = url.removesuffix("0") + "4"
    app = celery.Celery("plain", broker=url, backend=url, set_as_current=False)
    app.conf.broker_transport = TRANSPORT
    yield app
    app.close()
    app.backend.result_consumer.stop()


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_celery_project_needs_one_setting(
    plain: celery.Celery, start_worker: StartWorker, pool: str, eventually: Eventually
) -> None:
    url = plain.conf.broker_url
    double = plain.signature("plain.double")
    with (
        redis.Redis.from_url(url) as client,
        start_worker(url, f"-P {pool} -c 1 -n one@tests", app="plain", PLAIN_URL=url) as one,
    ):
        assert double.apply_async((2,)).get(timeout=10) == 4
        later = double.apply_async((3,), countdown=1)
        assert client.zrange(KEYS.delayed, 0, -1) == [later.id.encode()]
        assert later.get(timeout=10) == 6
        job = plain.signature("plain.slow").apply_async((1.5,))
        eventually(lambda: job.state == "STARTED")
        one.process.kill()
        with start_worker(url, f"-P {pool} -c 1 -n two@tests", app="plain", PLAIN_URL=url):
            assert job.get(timeout=20) == 1.5


def test_control_reaches_workers_and_leases_nothing(app: Celery, worker: Program, url: str) -> None:
    before = set(threading.enumerate())
    with redis.Redis.from_url(url) as client:
        inspect = app.control.inspect(timeout=5, limit=1)
        [name] = inspect.ping()
        assert "add" in inspect.registered()[name]
        assert app.control.broadcast("pool_grow", arguments={"n": 0}, reply=True, timeout=5, limit=1)[0][name]
        assert not [name for name in client.zrange(KEYS.consumers, 0, -1) if f":{os.getpid()}:".encode() in name]
    assert not set(threading.enumerate()) - before


def test_queue_lengths_and_purging_count_every_priority_and_leave_what_is_leased(app: Celery, url: str) -> None:
    from tests.queue.test_transport import Reader

    other = url.removesuffix("0") + "5"
    with kombu.Connection(other, transport=TRANSPORT) as connection, redis.Redis.from_url(other) as client:
        channel: Any = connection.channel()
        queue = kombu.Queue("q")(channel)
        queue.declare()
        for priority in (1, 1, 1, 4, 9, 0, 2):
            connection.Producer(serializer="json").publish(priority, routing_key="q", priority=priority)
        reader = Reader(other, prefetch=3)
        assert reader.drain(3) == [0, 1, 1]
        assert channel.queue_declare("q", passive=True).message_count == 4
        assert queue.purge() == 4
        assert client.hlen(reader.leased) == 3
        assert channel._size("q") == 0
        reader.close()
        assert queue.purge() == 3
        client.flushdb()


def test_events_tell_of_a_jobs_whole_way(app: Celery, worker: Program) -> None:
    seen: list[str] = []
    done = threading.Event()

    def hear(event: dict[str, Any]) -> None:
        seen.append(event["type"])
        if event["type"] == "task-succeeded":
            done.set()
            receiver.should_stop = True

    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": hear})
        consumer = receiver.itercapture(timeout=10)
        next(consumer)
        job = app.tasks["add"].delay(1, 2)
        for _ in consumer:
            pass
    assert done.is_set()
    assert [each for each in seen if each.startswith("task-")][-3:] == [
        "task-received",
        "task-started",
        "task-succeeded",
    ]
    assert job.get(timeout=5) == 3
