"""Enqueueing: bounded, once, and independent of everything but the broker."""

import asyncio
import contextvars
import gc
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import celery
import pytest
import redis
from celery import signals
from celery.beat import ScheduleEntry, Scheduler
from kombu.exceptions import EncodeError, OperationalError

from backburner.errors import PublishError
from backburner.queue import Celery
from backburner.queue.deadline import deadline, remaining
from backburner.queue.sending import CHUNK
from backburner.queue.transport.redis import _delivery, delivery
from backburner.redis.embedded import EmbeddedServer
from backburner.testing import FaultProxy
from tests.processes import Program
from tests.queue.conftest import MakeApp

SLACK = 1.5
"""Seconds that a call may take beyond its budget on a machine that may stand still for one; unbounded takes longer."""


@contextmanager
def taking_at_most(seconds: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


@pytest.fixture
def url(url: str) -> str:
    """A database that no worker listens to."""
    return url.removesuffix("0") + "1"


@pytest.fixture
def proxied(proxy: FaultProxy) -> str:
    return proxy.url.removesuffix("0") + "1"


@pytest.fixture
def proxy(server: EmbeddedServer, url: str) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", server.port) as proxy:
        yield proxy


def queued(url: str) -> list[dict[str, Any]]:
    with redis.Redis.from_url(url) as client:
        return [json.loads(message) for message in client.lrange("celery", 0, -1)]


@pytest.mark.parametrize("fault", [FaultProxy.refuse, FaultProxy.stall], ids=["refused", "silent"])
@pytest.mark.parametrize("warm", [False, True], ids=["first call", "pooled connection"])
def test_a_sick_broker_is_an_error_within_the_budget(
    make_app: MakeApp, proxy: FaultProxy, proxied: str, fault: Callable[[FaultProxy], None], warm: bool
) -> None:
    add = make_app(proxied, timeout=0.3).tasks["add"]
    if warm:
        add.delay(1, 2)
    fault(proxy)
    for _ in range(2):
        with taking_at_most(0.3 + SLACK), pytest.raises(PublishError, match=r"'add' was not enqueued.*127\.0\.0\.1"):
            add.delay(1, 2)
    proxy.pass_through()
    assert add.delay(1, 2).state == "PENDING"


def test_what_is_interrupted_before_its_block_begins_leaves_no_deadline_behind() -> None:
    deadline(0.0).__enter__()  # a signal's handler raises here
    delivery().__enter__()
    assert remaining() is None
    assert (_delivery.get() or (lambda: "none"))() is None
    with deadline(5.0):
        deadline(0.0).__enter__()
        assert remaining() != 0
        with deadline(1.0):
            assert 0 < (remaining() or 0) <= 1
    assert remaining() is None


def test_who_waits_for_another_thread_waits_for_what_is_left_of_the_budget(app: Celery) -> None:
    app.tasks["add"].delay(1, 2)
    line = app.producer._setup.sender.line
    usual = line.patience()
    with deadline(usual / 2):
        assert 0 < line.patience() <= usual / 2


def test_the_error_is_one_that_celery_programs_know_and_holds_no_password(make_app: MakeApp) -> None:
    app = make_app("redis://user:secret@127.0.0.1:1/0")
    with pytest.raises(OperationalError) as caught:
        app.send_task("add", (1, 2))
    assert "secret" not in str(caught.value)
    assert "CELERY_BROKER_URL" in str(caught.value)


def test_beat_waits_for_a_broker_that_is_restarted(
    make_app: MakeApp, proxy: FaultProxy, proxied: str, url: str
) -> None:
    app = make_app(proxied, timeout=0.3)
    beat = Scheduler(app, lazy=True)
    entry = ScheduleEntry("nightly", "add", schedule=timedelta(days=1), args=(1, 2), app=app)
    beat.apply_async(entry, producer=beat.producer, advance=False)
    proxy.refuse()
    back = threading.Timer(1, proxy.pass_through)
    back.start()
    try:
        with taking_at_most(3 + SLACK):
            beat.apply_async(entry, producer=beat.producer, advance=False)
    finally:
        back.join()
    assert len(queued(url)) == 2


def test_groups_are_bounded_too(make_app: MakeApp, proxy: FaultProxy, proxied: str) -> None:
    add = make_app(proxied, timeout=0.3).tasks["add"]
    proxy.stall()
    with taking_at_most(0.3 + SLACK), pytest.raises(PublishError):
        celery.group(add.s(1, 1), add.s(2, 2)).delay()


def test_threads_that_wait_for_a_connection_are_bounded_too(make_app: MakeApp, proxy: FaultProxy, proxied: str) -> None:
    add = make_app(proxied, timeout=0.3).tasks["add"]
    proxy.stall()
    with taking_at_most(0.3 + 2 * SLACK), ThreadPoolExecutor(30) as threads:
        calls = [threads.submit(add.delay, 1, 2) for _ in range(30)]
        assert all(isinstance(call.exception(), PublishError) for call in calls)


def test_a_restarted_broker_causes_no_error(make_app: MakeApp, tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "restarted")
    server.start()
    port = server.port
    add = make_app(server.url).tasks["add"]
    try:
        add.delay(1, 2)
        os.kill(server.pid, signal.SIGKILL)
        server.stop()
        with pytest.raises(PublishError):
            add.delay(1, 2)
        server = EmbeddedServer(tmp_path / "restarted", port=port)
        server.start()
        assert add.delay(1, 2).state == "PENDING"
        server.stop()
        server.start()
        assert add.delay(1, 2).state == "PENDING", "nothing was tried while it was down"
    finally:
        server.stop()


def test_a_lost_reply_does_not_enqueue_the_job_twice(
    make_app: MakeApp, proxy: FaultProxy, proxied: str, url: str
) -> None:
    add = make_app(proxied).tasks["add"]
    add.delay(0, 0)
    proxy.cut(after=0)
    # The server does the work, the reply is lost, and the second attempt finds the job there.
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(add.delay, 1, 2)
        while proxy.open_connections:
            time.sleep(0.001)
        proxy.pass_through()
        call.result()
    assert len(queued(url)) == 2


def test_a_dead_result_backend_does_not_keep_jobs_from_being_enqueued(
    make_app: MakeApp, proxy: FaultProxy, server: EmbeddedServer, worker: Program
) -> None:
    add = make_app(server.url, proxy.url).tasks["add"]
    for fail in (proxy.refuse, proxy.stall):
        fail()
        with taking_at_most(SLACK):
            job = add.delay(1, 2)
        proxy.pass_through()
        assert job.get(timeout=5) == 3


def test_enqueueing_asks_the_result_backend_nothing(make_app: MakeApp, proxy: FaultProxy, url: str) -> None:
    make_app(url, proxy.url).tasks["add"].delay(1, 2)
    assert proxy.connections == 0


def test_a_lost_reply_to_a_coroutine_does_not_enqueue_the_jobs_twice(
    make_app: MakeApp, proxy: FaultProxy, proxied: str, url: str
) -> None:
    add = make_app(proxied).tasks["add"]

    async def main() -> None:
        await add.adelay(0, 0)
        for enqueue in (lambda: add.adelay(1, 2), lambda: add.adelay_many([(1, 2)] * 3)):
            proxy.cut(after=0)
            call = asyncio.ensure_future(enqueue())
            while proxy.open_connections:  # noqa: ASYNC110  # the proxy runs in a thread
                await asyncio.sleep(0.001)
            proxy.pass_through()
            await call

    asyncio.run(main())
    assert len(queued(url)) == 5


@pytest.mark.parametrize("fault", [FaultProxy.refuse, FaultProxy.stall], ids=["refused", "silent"])
@pytest.mark.parametrize("warm", [False, True], ids=["first call", "connected"])
def test_awaiting_a_sick_broker_is_an_error_within_the_budget(
    make_app: MakeApp, proxy: FaultProxy, proxied: str, fault: Callable[[FaultProxy], None], warm: bool
) -> None:
    add = make_app(proxied, timeout=0.3).tasks["add"]

    async def main() -> None:
        if warm:
            await add.adelay(1, 2)
        fault(proxy)
        for enqueue in (lambda: add.adelay(1, 2), lambda: add.adelay_many([(1, 2)] * 3)):
            with (
                taking_at_most(0.3 + SLACK),
                pytest.raises(PublishError, match=r"'add' was not enqueued.*127\.0\.0\.1"),
            ):
                await enqueue()
        proxy.pass_through()
        await add.adelay(1, 2)

    asyncio.run(main())


def test_awaiting_is_bounded_though_no_single_step_takes_too_long(
    make_app: MakeApp, proxy: FaultProxy, proxied: str, url: str
) -> None:
    add = make_app(proxied, timeout=0.5).tasks["add"]

    async def main() -> None:
        await add.adelay(1, 2)
        add.app.producer._setup.sender._declared.clear()
        with redis.Redis.from_url(url) as client:
            client.script_flush()
        proxy.delay(0.2)  # to declare the queue, to find that the script is not there, to send it
        with taking_at_most(0.5 + SLACK), pytest.raises(PublishError):
            await add.adelay(1, 2)

    asyncio.run(main())


def test_a_budget_for_a_block_holds_for_what_it_awaits_and_for_nobody_else(
    make_app: MakeApp, proxy: FaultProxy, proxied: str
) -> None:
    add = make_app(proxied, timeout=4).tasks["add"]

    async def main() -> None:
        await add.adelay(1, 2)
        proxy.stall()
        with deadline(0.2), taking_at_most(0.2 + SLACK):
            mine = [add.adelay(1, 2), add.adelay(1, 2), add.aapply_async((1, 2), countdown=60)]
            mine += [add.adelay_many([(1, 2)] * (CHUNK + 1))]
            tasks = [asyncio.create_task(each) for each in mine]
            others = asyncio.create_task(add.adelay(1, 2), context=contextvars.Context())
            for task in tasks:
                with pytest.raises(PublishError, match="'add' was not enqueued"):
                    await task
            for late in (add.adelay(1, 2), add.adelay_many([(1, 2)] * (CHUNK + 1))):
                with pytest.raises(PublishError):
                    await late
        proxy.pass_through()
        await others

    asyncio.run(main())


def test_awaiting_needs_none_of_the_loops_own_threads(app: Celery) -> None:
    occupied = threading.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        task = loop.run_in_executor(None, occupied.wait, 20)
        await app.tasks["add"].adelay(1, 2)
        await app.tasks["add"].aapply_async((1, 2), shadow="in Celery's way")
        assert not task.done()
        occupied.set()
        await task

    asyncio.run(main())


def test_a_changed_configuration_leaves_no_connection_behind(
    app: Celery, url: str, eventually: Callable[..., Any]
) -> None:
    def connections() -> int:
        with redis.Redis.from_url(url, decode_responses=True) as client:
            return sum(other["name"] == "backburner-producer" for other in client.client_list())

    async def main() -> None:
        before = connections()
        for number in range(5):
            app.conf.update(task_default_priority=number)
            await app.tasks["add"].adelay(1, 2)
        await asyncio.to_thread(eventually, lambda: connections() <= before + 1)

    asyncio.run(main())


def test_many_jobs_are_bounded_too_and_the_error_tells_how_many_are_enqueued(
    make_app: MakeApp, proxy: FaultProxy, proxied: str, url: str
) -> None:
    add = make_app(proxied, timeout=0.3).tasks["add"]
    add.delay(0, 0)
    proxy.stall()
    with taking_at_most(0.3 + SLACK), pytest.raises(PublishError) as caught:
        add.delay_many([(1, 2)] * CHUNK * 2)
    assert not hasattr(caught.value, "__notes__")
    proxy.pass_through()
    add.delay(0, 0)
    sent = 0

    def stall_after_the_first(*command: Any) -> Any:
        nonlocal sent
        sent += 1
        if sent == 2:
            proxy.stall()
        return ask(*command)

    ahead = add.app.producer._setup.sender.line._ahead
    ask, ahead.ask = ahead.ask, stall_after_the_first
    with pytest.raises(PublishError) as caught:
        add.delay_many([(1, 2)] * CHUNK * 2)
    assert caught.value.__notes__ == [f"The first {CHUNK} of {2 * CHUNK} jobs were enqueued."]


def test_of_many_jobs_in_celerys_way_the_error_tells_how_many_are_enqueued(
    make_app: MakeApp, proxy: FaultProxy, proxied: str
) -> None:
    add = make_app(proxied, timeout=0.3).tasks["add"]
    begun = 0

    def stall_at_each_third(**_: Any) -> None:
        nonlocal begun
        begun += 1
        if begun % 3 == 0:
            proxy.stall()

    signals.before_task_publish.connect(stall_at_each_third)
    try:
        for enqueue in (add.delay_many, lambda calls: asyncio.run(add.adelay_many(calls))):
            with pytest.raises(PublishError) as caught:
                enqueue([(1, 2)] * 5)
            assert caught.value.__notes__ == ["The first 2 of 5 jobs were enqueued."]
            proxy.pass_through()
    finally:
        signals.before_task_publish.disconnect(stall_at_each_third)


def test_what_was_sent_ahead_is_not_enqueued_twice_if_its_reply_is_lost(app: Celery, url: str) -> None:
    add = app.tasks["add"]
    add.delay(0, 0)
    ahead = app.producer._setup.sender.line._ahead
    lost: list[int] = []

    def ask(*command: Any) -> Any:
        reply = real(*command)

        def lose() -> Any:
            lost.append(reply())
            raise redis.ConnectionError("lost")

        return lose

    real, ahead.ask = ahead.ask, ask
    assert len(add.delay_many([(1, 2)] * (2 * CHUNK + 1))) == 2 * CHUNK + 1
    assert lost == [0] * 3
    assert len(queued(url)) == 1 + 2 * CHUNK + 1


def test_who_is_interrupted_between_two_chunks_leaves_nothing_behind_that_hurts(app: Celery, url: str) -> None:
    add = app.tasks["add"]
    add.delay(0, 0)
    ahead = app.producer._setup.sender.line._ahead

    def interrupted(*command: Any) -> Any:
        reply = real(*command)

        def never_read() -> Any:
            raise KeyboardInterrupt

        return never_read if reply else None

    real, ahead.ask = ahead.ask, interrupted
    with pytest.raises(KeyboardInterrupt):
        add.delay_many([(1, 2)] * 2 * CHUNK)
    ahead.ask = real
    add.delay_many([(1, 2)] * 2 * CHUNK)
    assert len(queued(url)) == 1 + CHUNK + 2 * CHUNK


def seconds_lived() -> float:
    """Time without that in which this thread could have run and others had the processor, where the system tells it."""
    waiting = 0
    with suppress(OSError):
        waiting = int(Path("/proc/thread-self/schedstat").read_text().split()[1])
    return time.perf_counter() - waiting / 1e9


def test_awaiting_a_hanging_broker_does_not_hold_up_the_loop(
    make_app: MakeApp, proxy: FaultProxy, proxied: str
) -> None:
    add = make_app(proxied, timeout=0.2).tasks["add"]

    async def longest_lag() -> float:
        longest, last = 0.0, seconds_lived()
        outcome = asyncio.gather(*(add.adelay(1, 2) for _ in range(5)), return_exceptions=True)
        while not outcome.done():
            await asyncio.sleep(0.001)
            now = seconds_lived()
            longest, last = max(longest, now - last - 0.001), now
        assert all(isinstance(error, PublishError) for error in outcome.result())
        return longest

    async def main() -> float:
        await add.adelay(1, 2)
        proxy.stall()
        # The machine holds up the loop now and then, but not each time. What the collector finds in the memory of a
        # whole test run is not the producer's either.
        lag = 1.0
        gc.disable()
        try:
            for _ in range(30):
                lag = min(lag, await longest_lag())
                if lag < 0.005:
                    break
        finally:
            gc.enable()
        return lag

    assert asyncio.run(main()) < 0.005


def test_a_restarted_broker_causes_no_error_in_a_coroutine(make_app: MakeApp, tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "restarted")
    server.start()
    port = server.port
    add = make_app(server.url).tasks["add"]

    async def main() -> None:
        nonlocal server
        await add.adelay(1, 2)
        server.stop()
        server = EmbeddedServer(tmp_path / "restarted", port=port)
        server.start()
        await add.adelay(1, 2)

    try:
        asyncio.run(main())
    finally:
        server.stop()


def test_a_full_server_is_an_error_at_once(make_app: MakeApp, tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "full") as server, redis.Redis.from_url(server.url) as client:
        add = make_app(server.url).tasks["add"]
        add.delay(1, 2)
        client.config_set("maxmemory", "1")
        refusal = r"refuses it \(.*used memory.*It can be reached: see to its memory"
        with pytest.raises(PublishError, match=refusal):
            add.delay(1, 2)
        with pytest.raises(PublishError, match=refusal):
            asyncio.run(add.adelay(1, 2))
        with pytest.raises(PublishError, match=refusal):
            celery.Task.apply_async(add, (1, 2))


def test_awaited_jobs_get_their_options(app: Celery, url: str) -> None:
    due = datetime.now(UTC) + timedelta(hours=1)
    job = asyncio.run(app.tasks["add"].aapply_async((1,), {"b": 2}, eta=due, queue="later"))
    with redis.Redis.from_url(url) as client:
        [message] = client.lrange("later", 0, -1)
    headers = json.loads(message)["headers"]
    assert headers["id"] == job.id
    assert headers["eta"] == due.isoformat()


def test_a_job_enqueued_by_a_coroutine_inside_a_task_has_a_parent(make_app: MakeApp, url: str) -> None:
    app = make_app(url)
    task = app.tasks["add"]
    task.push_request(id="the-parent", root_id="the-root", called_directly=False)
    celery._state._task_stack.push(task)
    try:
        asyncio.run(task.adelay(1, 2))
    finally:
        celery._state._task_stack.pop()
        task.pop_request()
    headers = queued(url)[0]["headers"]
    assert (headers["parent_id"], headers["root_id"]) == ("the-parent", "the-root")


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York"])
def test_a_naive_eta_is_utc_wherever_the_machine_is(
    app: Celery, url: str, zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        due = datetime.fromtimestamp(2_000_000_000, UTC).replace(tzinfo=None)
        app.tasks["add"].apply_async((1, 2), eta=due, expires=due)
    finally:
        monkeypatch.undo()
        time.tzset()
    headers = queued(url)[0]["headers"]
    assert datetime.fromisoformat(headers["eta"]).timestamp() == 2_000_000_000
    assert datetime.fromisoformat(headers["expires"]).timestamp() == 2_000_000_000


def test_the_record_of_a_job_outlives_its_eta(app: Celery, url: str) -> None:
    job = app.tasks["add"].apply_async((1, 2), countdown=7 * 86_400)
    with redis.Redis.from_url(url) as client:
        assert client.ttl(f"backburner:job:{job.id}") > 7 * 86_400
        assert all(client.ttl(key) > 0 for key in client.keys("backburner:*"))


def test_options_in_the_servers_url_are_for_all_that_know_them(make_app: MakeApp, url: str) -> None:
    app = make_app(f"{url}?protocol=3&client_name=shop&health_check_interval=10")
    job = app.tasks["add"].delay(1, 2)
    app.tasks["add"].apply_async((1, 2), shadow="in Celery's way")
    assert job.state == "PENDING"
    assert app.control.ping(timeout=0.01) == []
    assert len(queued(url)) == 2


def test_a_key_prefix_holds_for_the_record_too(make_app: MakeApp, url: str) -> None:
    app = make_app(url, broker_transport_options={"global_keyprefix": "shop:"})
    job = app.tasks["add"].delay(1, 2)
    with redis.Redis.from_url(url) as client:
        assert client.llen("shop:celery") == 1
        assert client.exists(f"shop:backburner:job:{job.id}")
    assert job.state == "PENDING"


def test_transport_options_that_nobody_knows_are_told_once(
    make_app: MakeApp, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    of_kombu = {"visibility_timeout": 60, "fanout_patterns": True, "max_retries": 1, "min_other_sentinels": 1}
    app = make_app(url, broker_transport_options={**of_kombu, "leese": 30, "confirm_publish": True})
    app.tasks["add"].delay(1, 2)
    app.control.ping(timeout=0.01)
    app.close()
    app.tasks["add"].delay(1, 2)
    confirm, lease = sorted(caplog.messages)
    assert "['confirm_publish'] has no effect: there is no such option. There are lease, max_deliveries, " in confirm
    assert lease == "broker_transport_options['leese'] has no effect: there is no such option. Do you mean 'lease'?"


def test_priorities_go_to_the_lists_that_stock_workers_read(app: Celery, url: str) -> None:
    app.tasks["add"].apply_async((1, 2), priority=6)
    with redis.Redis.from_url(url) as client:
        assert client.llen("celery\x06\x166") == 1


def test_what_is_no_json_is_refused_before_anything_is_sent(app: Celery, url: str) -> None:
    with pytest.raises(EncodeError, match="not JSON serializable") as refused:
        app.tasks["add"].delay(object(), 1)
    assert refused.value.__notes__[0].startswith(
        "The argument 1 of the task add, of type object, cannot be sent. Give plain values"
    )
    assert queued(url) == []


def test_threads_share_few_connections(make_app: MakeApp, url: str) -> None:
    add = make_app(url).tasks["add"]
    with ThreadPoolExecutor(20) as executor, redis.Redis.from_url(url) as client:
        before = {each["id"] for each in client.client_list()}  # those of earlier tests' loops go when collected
        add.delay(1, 2)  # threads that begin at the same moment have one each, for this one job
        jobs = list(executor.map(lambda number: add.delay(number, number), range(600)))
        connections = [
            each for each in client.client_list() if each["name"] == "backburner-producer" and each["id"] not in before
        ]
    assert len({job.id for job in jobs}) == len(queued(url)) - 1 == 600
    assert 1 <= len(connections) <= 3, "one of a thread alone, one for all others; rarely two threads were alone"


# One job at a time, from one thread: a transaction in place of the script


def line_of(app: Celery) -> Any:
    """What sends for threads; connected, and the queue declared."""
    app.tasks["add"].delay(0, 0)
    return app.producer._setup.sender.line


@pytest.fixture
def transactions(app: Celery, monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """The replies to each that was sent."""
    told: list[list[Any]] = []
    ahead = line_of(app)._ahead
    ask_all = ahead.ask_all

    def spy(commands: bytes, count: int) -> Callable[[], list[Any]]:
        replies = ask_all(commands, count)

        def reply() -> list[Any]:
            found: list[Any] = replies()
            if count > 1:
                told.append(found)
            return found

        return reply

    monkeypatch.setattr(ahead, "ask_all", spy)
    return told


def test_a_transaction_leaves_what_the_script_does(app: Celery, url: str, transactions: list[list[Any]]) -> None:
    add, line = app.tasks["add"], app.producer._setup.sender.line
    before = time.time()
    transacted = add.delay(1, 2)
    line._may_transact = False
    scripted = add.delay(1, 2)
    assert len(transactions) == 1
    records = [app.AsyncResult(job.id)._record() for job in (transacted, scripted)]
    assert [(record.name, record.queue) for record in records] == [("add", "celery")] * 2
    for record in records:
        assert 0 <= record.enqueued - int(1000 * before) < 1000 * SLACK
    with redis.Redis.from_url(url) as client:
        kept = [client.pttl(f"backburner:job:{job.id}") for job in (transacted, scripted)]
    assert abs(kept[0] - kept[1]) < 1000 * SLACK
    later, sooner = (message["headers"] for message in queued(url)[:2])
    assert sooner.pop("id") == sooner.pop("root_id") == transacted.id
    assert later.pop("id") == later.pop("root_id") == scripted.id
    assert sooner == later


def test_a_job_that_is_enqueued_again_was_first_enqueued_when_it_was(
    app: Celery, transactions: list[list[Any]]
) -> None:
    job = app.tasks["add"].delay(1, 2)
    assert len(transactions) == 1
    first = app.AsyncResult(job.id).snapshot().enqueued_at
    app.tasks["add"].apply_async((1, 2), task_id=job.id)  # as a retry does
    assert app.AsyncResult(job.id).snapshot().enqueued_at == first


def test_a_transaction_whose_reply_is_lost_is_not_repeated(
    app: Celery, url: str, transactions: list[list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = app.producer._setup.sender.line._ahead
    ask_all = ahead.ask_all

    def ask(commands: bytes, count: int) -> Callable[[], list[Any]]:
        replies = ask_all(commands, count)

        def lose() -> list[Any]:
            replies()
            raise redis.ConnectionError("lost")

        return lose

    monkeypatch.setattr(ahead, "ask_all", ask)
    app.tasks["add"].delay(1, 2)
    assert len(transactions) == 1
    assert len(queued(url)) == 2


def test_what_the_list_does_not_take_is_not_enqueued(app: Celery, url: str, transactions: list[list[Any]]) -> None:
    with redis.Redis.from_url(url) as client:
        client.set("celery", "something else")
        with pytest.raises(PublishError, match="WRONGTYPE"):
            app.tasks["add"].delay(1, 2)
        assert len(transactions) == 1
        client.delete("celery")
        app.tasks["add"].delay(1, 2)
    assert len(queued(url)) == 1


def test_an_error_that_somebody_keeps_does_not_keep_others_from_transactions(
    app: Celery, url: str, transactions: list[list[Any]]
) -> None:
    with redis.Redis.from_url(url) as client:
        client.set("celery", "something else")
        with pytest.raises(PublishError, match="WRONGTYPE") as kept:
            app.tasks["add"].delay(1, 2)
        client.delete("celery")
    app.tasks["add"].delay(1, 2)
    app.tasks["add"].delay(1, 2)
    assert len(transactions) == 2, kept


def test_who_may_not_use_transactions_does_without(make_app: MakeApp, url: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.acl_setuser(
            "plain", enabled=True, passwords=["+x"], commands=["+@all", "-multi"], keys=["*"], channels=["*"]
        )
    try:
        app = make_app(url.replace("redis://", "redis://plain:x@"))
        line = line_of(app)
        for _ in range(3):
            app.tasks["add"].delay(1, 2)
        assert not line._may_transact
        assert len(queued(url)) == 4
    finally:
        with redis.Redis.from_url(url) as client:
            client.acl_deluser("plain")


def test_who_may_not_tell_monitors_enqueues_all_the_same(
    make_app: MakeApp, url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backburner.queue.sending._LOOK_FOR_LISTENERS", 0.0)
    with redis.Redis.from_url(url) as client:
        client.acl_setuser("quiet", enabled=True, passwords=["+x"], commands=["+@all"], keys=["*"], reset_channels=True)
    try:
        app = make_app(url.replace("redis://", "redis://quiet:x@"))
        add = app.tasks["add"]
        add.delay(1, 2)
        add.delay_many([(1, 2)] * 3)
        asyncio.run(add.adelay(1, 2))
        assert len(queued(url)) == 5
        [told] = [record.message for record in caplog.records if record.name == "backburner.queue"]
        assert told.startswith("jobs are enqueued, but monitors do not hear of it:")
        assert "channel" in told
    finally:
        with redis.Redis.from_url(url) as client:
            client.acl_deluser("quiet")
