"""Short jobs are taken ahead, as many as begin within a moment, and none waits behind a long one for longer."""

import time
from pathlib import Path
from typing import Any

import kombu
import pytest
import redis

from backburner.queue.transport import claims as claims_module
from backburner.queue.transport.pace import LATEST, Pace
from backburner.redis.embedded import EmbeddedServer
from tests.conftest import Eventually
from tests.queue.conftest import MakeApp, StartWorker, runs


def asked(pace: Pace, seconds_for_each: float, claims: int) -> list[int]:
    """How many are taken with each claim, one at least."""
    now, counts = 0.0, []
    for _ in range(claims):
        counts.append(max(1, pace.ask(now)))
        pace.took(counts[-1], now)
        now += counts[-1] * seconds_for_each
    return counts


def test_as_long_as_jobs_are_short_twice_as_many_are_taken_each_time() -> None:
    assert asked(Pace(), 0.0001, 9) == [1, 2, 4, 8, 16, 32, 64, 100, 100]


@pytest.mark.parametrize("seconds", [0.0101, 1, 3600])
def test_long_jobs_are_taken_one_at_a_time(seconds: float) -> None:
    assert asked(Pace(), seconds, 5) == [1] * 5


def test_all_begins_anew_when_nothing_more_is_to_be_had_or_it_takes_too_long() -> None:
    pace = Pace()
    assert asked(pace, 0.0001, 5)[-1] == 16
    pace.stop()
    assert pace.ask(1.0) == 0


def test_what_was_taken_is_overdue_after_five_times_the_time_it_was_to_take() -> None:
    pace = Pace()
    pace.took(3, 100.0)
    assert pace.overdue_in(100.0) == pytest.approx(LATEST)
    assert pace.overdue_in(100.0 + LATEST) <= 0


def test_only_what_was_taken_ahead_is_put_back_however_long_the_first_takes(
    own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = []

    def take(_: Any, message: kombu.Message) -> None:
        if not left:  # it takes an hour
            with monkeypatch.context() as later:
                later.setattr(claims_module, "monotonic", lambda: time.monotonic() + 3600)
                channel.claims.release()
            left.append(len(channel.claims.unseen))
        message.ack()

    with kombu.Connection(own_server.url, transport="backburner.queue.transport:Transport") as connection:
        producer = connection.Producer()
        for number in range(3):
            producer.publish(number, routing_key="q")
        channel: Any = connection.channel()
        channel.basic_qos(0, 3, False)
        with kombu.Consumer(channel, kombu.Queue("q"), callbacks=[take]):
            while not left:
                connection.drain_events(timeout=5)
    assert left == [2]


def claims(server: EmbeddedServer) -> int:
    """How often messages were leased since the server was started."""
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        return client.info("commandstats")["cmdstat_hset"]["calls"]


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["solo", "threads -c 1", "prefork -c 1"])
def test_a_worker_asks_for_many_short_jobs_at_once(
    own_server: EmbeddedServer, make_app: MakeApp, start_worker: StartWorker, pool: str
) -> None:
    app = make_app(own_server.url)
    jobs = app.tasks["add"].delay_many([(n, 1) for n in range(2000)])
    with start_worker(own_server.url, f"--pool={pool}"):
        assert [job.get(timeout=30) for job in jobs] == list(range(1, 2001))
    assert claims(own_server) < 500, "2,000, if jobs are taken one at a time"


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["solo", "threads -c 1", "prefork -c 1"])
def test_nothing_waits_behind_a_long_job_while_another_worker_is_free(
    own_server: EmbeddedServer,
    make_app: MakeApp,
    start_worker: StartWorker,
    released: Path,
    eventually: Eventually,
    pool: str,
) -> None:
    app = make_app(own_server.url)
    before = app.tasks["add"].delay_many([(n, 1) for n in range(1000)])
    long = app.tasks["wait_for"].delay(str(released))
    behind = app.tasks["add"].delay_many([(n, 1) for n in range(200)])
    with start_worker(own_server.url, f"--pool={pool} -n first@tests"):
        eventually(lambda: runs(released) == 1, timeout=20)
        with start_worker(own_server.url, f"--pool={pool} -n second@tests"):
            assert [job.get(timeout=20) for job in (*before, *behind)] == [*range(1, 1001), *range(1, 201)]
        assert not released.exists()
        released.touch()
        assert long.get(timeout=20) == "released"
    assert runs(released) == 1
