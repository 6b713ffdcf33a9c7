"""Jobs that count as enqueued once replicas have them: they outlive a failover, or the caller is told."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from backburner.errors import ConfigError, PublishError
from backburner.queue import Celery
from backburner.queue.delivery import ENQUEUE, Place
from backburner.redis.embedded import EmbeddedServer
from backburner.settings import Settings
from tests.conftest import Eventually
from tests.queue.conftest import MakeApp

REPLICAS = {"replicas": 1}


@dataclass
class Pair:
    """A server and its replica."""

    url: str
    main: "redis.Redis"
    replica: "redis.Redis"

    @contextmanager
    def replica_stands_still(self) -> Iterator[None]:
        pid = self.replica.info("server")["process_id"]
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, eventually: Eventually) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("replicas")
    with (
        EmbeddedServer(folder / "main") as main,
        EmbeddedServer(folder / "replica") as other,
        redis.Redis.from_url(main.url) as client,
        redis.Redis.from_url(other.url) as replica,
    ):
        _follow(client, replica, main.port, eventually)
        yield Pair(main.url, client, replica)


@pytest.fixture
def pair(both: Pair) -> Pair:
    both.main.flushall()
    return both


def _follow(main: "redis.Redis", replica: "redis.Redis", port: int, eventually: Eventually) -> None:
    main.config_set("repl-diskless-sync-delay", 0)
    replica.replicaof("127.0.0.1", port)
    eventually(lambda: replica.info("replication")["master_link_status"] == "up", timeout=20)
    eventually(lambda: main.wait(1, 100) == 1)


def later(task: Any) -> Any:
    return task.apply_async((1, 2), eta=datetime.now(UTC) + timedelta(hours=1))


WAYS: dict[str, Callable[[Any], Any]] = {
    "delay": lambda add: add.delay(1, 2),
    "many": lambda add: add.delay_many([(1, 2)] * 500),
    "coroutine": lambda add: asyncio.run(_awaited(lambda: add.adelay(1, 2))),
    "many at once": lambda add: asyncio.run(_awaited(lambda: add.adelay_many([(1, 2)] * 500))),
    "later": later,
    "as Celery does it": lambda add: add.apply_async((1, 2), link=add.s(3)),
}


async def _awaited(call: Callable[[], Any]) -> Any:
    return await call()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_what_no_replica_has_was_not_enqueued(make_app: MakeApp, pair: Pair, way: Callable[[Any], Any]) -> None:
    add = make_app(pair.url, timeout=1.0, broker_transport_options=REPLICAS).tasks["add"]
    way(add)
    with (
        pair.replica_stands_still(),
        pytest.raises(PublishError, match="of the 1 replicas that CELERY_PUBLISH"),
    ):
        way(add)
    way(add)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_what_counts_as_enqueued_is_there_when_the_server_is_gone(
    make_app: MakeApp, tmp_path: Path, eventually: Eventually, way: Callable[[Any], Any]
) -> None:
    with EmbeddedServer(tmp_path / "replica") as other, redis.Redis.from_url(other.url) as replica:
        with EmbeddedServer(tmp_path / "main") as main, redis.Redis.from_url(main.url) as client:
            _follow(client, replica, main.port, eventually)
            add = make_app(main.url, broker_transport_options=REPLICAS).tasks["add"]
            pid, told = client.info("server")["process_id"], set()

            def enqueue(number: int) -> None:
                if number == 20:
                    os.kill(pid, signal.SIGKILL)
                try:
                    jobs = way(add)
                except PublishError:
                    return
                told.update(job.id for job in (jobs if isinstance(jobs, list) else [jobs]))

            with ThreadPoolExecutor(4) as executor:
                list(executor.map(enqueue, range(24)))
        replica.replicaof("NO", "ONE")
        assert told
        assert {job_id for job_id in told if not replica.exists(f"backburner:job:{job_id}")} == set()
        assert replica.llen("celery") + replica.zcard("backburner:delayed") >= len(told)


def test_a_second_attempt_waits_for_the_replicas_too(pair: Pair) -> None:
    place = Place("", "celery", "celery", "add", keep=60, replicas=1)
    call = (*place.keys(["id"]), *place.arguments(["message"], "token"))
    assert pair.main.eval(ENQUEUE.text, len(place.keys(["id"])), *call) == 0
    written = pair.main.info("replication")["master_repl_offset"]
    assert pair.main.eval(ENQUEUE.text, len(place.keys(["id"])), *call) == -1
    assert pair.main.info("replication")["master_repl_offset"] > written, "so WAIT on a new connection waits for it"
    assert pair.main.llen("celery") == 1


def test_the_settings_name_their_number(pair: Pair) -> None:
    settings = Settings(redis_url=pair.url, celery_publish_timeout=0.5, celery_publish_replicas=2)
    app = Celery("replicated", settings=settings)

    @app.task(name="replicated")
    def replicated() -> None: ...

    with pytest.raises(PublishError, match="of the 2 replicas that CELERY_PUBLISH_REPLICAS asks for only 1 had it"):
        replicated.delay()
    app.close()


@pytest.mark.parametrize("number", [-1, "one", None])
def test_a_number_that_is_none_is_refused(make_app: MakeApp, pair: Pair, number: Any) -> None:
    add = make_app(pair.url, broker_transport_options={"replicas": number}).tasks["add"]
    with pytest.raises(ConfigError, match="replicas"):
        add.delay(1, 2)
