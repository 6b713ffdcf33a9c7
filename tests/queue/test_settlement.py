"""How states of jobs are stored: in one round trip, never over what has ended, never after an acknowledgement."""

import json
import os
import pickle
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import celery
import celery.result
import pytest
import redis
from billiard.einfo import ExceptionInfo
from celery import states
from celery.app.task import Context
from celery.app.trace import trace_ok_t
from celery.exceptions import BackendStoreError, Reject, SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded
from kombu.exceptions import EncodeError

from backburner.queue import Celery, carrying
from backburner.queue.cancellation import Request
from backburner.queue.carrying import OFFER, Carried, carry
from backburner.queue.keys import Keys
from backburner.queue.settlement import SETTLE, Offer, Stored, settling
from backburner.queue.starting import Starts
from backburner.queue.transport.consumer import Consumer, _at_work, offer_for, store_for
from backburner.queue.transport.failures import Teller
from backburner.redis.embedded import EmbeddedServer
from backburner.redis.spare import SpareConnections
from backburner.testing import FaultProxy
from tests.conftest import Eventually
from tests.queue.conftest import MakeApp, StartWorker, runs


@pytest.fixture
def client(url: str) -> Iterator["redis.Redis"]:
    with redis.Redis.from_url(url) as client:
        yield client


@pytest.fixture
def consumer(client: "redis.Redis", url: str) -> Iterator[Consumer]:
    """One that sends nothing by itself."""
    pool = client.connection_pool

    def connect(**options: Any) -> Any:
        return pool.connection_class(**pool.connection_kwargs | options)

    consumer = Consumer(connect, Keys(), lease=30, max_deliveries=3, watchdog=60)
    consumer._call(consumer._renewal(begin=True))
    others, _at_work[:] = _at_work[:], [consumer]  # other tests may have left some that still try to reach their server
    client.hset(Keys().leased(consumer.name), mapping={1: "celery\nm1", 2: "celery\nm2"})
    yield consumer
    consumer._decisions._states.clear()
    consumer.over = True
    _at_work[:] = others


def stored(app: Celery, job_id: str) -> str:
    state: str = app.backend.get_task_meta(job_id)["status"]
    return state


LASTING = [
    (states.SUCCESS, states.FAILURE, states.SUCCESS),
    (states.SUCCESS, states.RETRY, states.SUCCESS),
    (states.SUCCESS, states.STARTED, states.SUCCESS),
    (states.FAILURE, states.SUCCESS, states.FAILURE),
    (states.FAILURE, states.RETRY, states.FAILURE),
    (states.REVOKED, states.SUCCESS, states.REVOKED),
    (states.RETRY, states.SUCCESS, states.SUCCESS),
    ("WORKING", states.FAILURE, states.FAILURE),
    (states.SUCCESS, "WORKING", states.SUCCESS),
]


@pytest.mark.parametrize(("first", "then", "lasting"), LASTING)
def test_what_has_ended_is_not_overwritten_by_a_late_double(app: Celery, first: str, then: str, lasting: str) -> None:
    for state in (first, then):
        result = ValueError(state) if state in states.EXCEPTION_STATES else state
        app.backend.store_result("the-id", result, state)
        app.backend.starts.tell("the-id")
    assert stored(app, "the-id") == lasting


@pytest.mark.parametrize("told", [False, True], ids=["in a moment", "after a while"])
@pytest.mark.parametrize(("before", "after"), [("FAILURE", "SUCCESS"), ("REVOKED", "SUCCESS"), ("SUCCESS", "SUCCESS")])
def test_a_job_that_begins_again_ends_anew_unless_it_has_succeeded(
    app: Celery, before: str, after: str, told: bool
) -> None:
    backend = app.backend
    backend.store_result("the-id", KeyError("before") if before != "SUCCESS" else "before", before)
    backend.store_result("the-id", {"pid": 1}, states.STARTED)
    if told:
        backend.starts.tell("the-id")
        assert stored(app, "the-id") == ("SUCCESS" if before == "SUCCESS" else "STARTED")
    backend.store_result("the-id", "after", after)
    meta = backend.get_task_meta("the-id")
    assert (meta["status"], meta["result"]) == ("SUCCESS", "before" if before == "SUCCESS" else "after")


@pytest.mark.parametrize(
    ("error", "settled"),
    [(KeyError("own"), ["acknowledged"]), (Reject("no", requeue=False), ["rejected"]), (MemoryError(), ["given back"])],
    ids=["recorded", "rejected", "not recorded by the tracer"],
)
@pytest.mark.parametrize("answers", [True, False], ids=["answers", "is away"])
def test_a_message_is_acknowledged_when_the_failure_of_its_job_is_on_record_and_else_given_back(
    app: Celery, monkeypatch: pytest.MonkeyPatch, *, error: Exception, settled: list[str], answers: bool
) -> None:
    done: list[str] = []

    def record(*_: Any, **__: Any) -> None:
        assert not done, "the result comes first"
        if not answers:
            raise redis.ConnectionError("gone")

    monkeypatch.setattr(app.backend, "mark_as_failure", record)
    request = make_request(app, done)
    try:
        raise error
    except type(error):
        request.on_failure(ExceptionInfo())
    assert done == (settled if answers else ["given back"])


@pytest.mark.parametrize("following", [0, 1], ids=["alone", "in a chain"])
@pytest.mark.parametrize("answers", [True, False], ids=["answers", "is away"])
def test_a_failure_of_which_not_all_can_be_stored_is_on_record_and_the_job_is_not_done_again(
    app: Celery, monkeypatch: pytest.MonkeyPatch, *, following: int, answers: bool
) -> None:
    app.conf.result_extended = True
    chain = [app.tasks["add"].s({1}).set(task_id="the-next")] * following
    body, done, store = (({1},), {}, {"chain": chain}), list[str](), app.backend.store_result

    def answer(*args: Any, request: Any, **options: Any) -> Any:
        if not answers and isinstance(request.args, str):
            raise redis.ConnectionError("gone")
        return store(*args, request=request, **options)

    monkeypatch.setattr(app.backend, "store_result", answer)
    with pytest.raises(KeyError) as raised:
        raise KeyError("own")
    make_request(app, done, body).on_failure(ExceptionInfo((raised.type, raised.value, raised.tb)))
    make_request(app, done, body).on_timeout(soft=False, timeout=1)
    assert done == ["acknowledged" if answers else "given back"] * 2
    assert stored(app, "the-id") == ("FAILURE" if answers else "PENDING")


def test_a_job_whose_end_cannot_be_recorded_is_done_again_after_pauses_that_grow_and_then_kept_as_failed(
    consumer: Consumer, client: "redis.Redis"
) -> None:
    keys = Keys()
    message = json.dumps({"headers": {"id": "the-id"}, "properties": {"delivery_tag": "t", "delivery_info": {"x": 1}}})
    pauses, entry = [], f"celery\n{message}".encode()
    while not client.zcard(keys.failed):
        client.hset(keys.leased(consumer.name), "3", entry)
        consumer.unrecorded(3, "no room")
        consumer.flush()
        assert client.hkeys(keys.leased(consumer.name)) == [b"1", b"2"]
        if waiting := client.zpopmin(keys.delayed):
            [(member, due)] = waiting
            pauses.append(round(due - client.time()[0]))
            entry = client.hget(keys.delayed_entries, member)
            client.hdel(keys.delayed_entries, member)
            assert member == b"the-id"
            assert b'"redelivered": true' in entry
    assert pauses == pytest.approx([1, 4, 16, 64, 256, 600, 600, 600, 600], abs=1)
    failed = client.hgetall(keys.failure("the-id"))
    assert (failed[b"reason"], failed[b"detail"].endswith(b"10 times, and how could not be recorded: no room")) == (
        b"unrecorded",
        True,
    )
    assert not list(client.scan_iter(keys.unrecorded + "*")), "tried again by hand, it has as many attempts as at first"


def test_a_failure_that_the_server_never_takes_keeps_no_others_from_being_told(
    app: Celery, consumer: Consumer, client: "redis.Redis", eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    keys, jobs = Keys(), [f"job-{number}" for number in range(5)]
    for number, job in enumerate(jobs):
        message = json.dumps({"headers": {"id": job, "task": "add"}, "properties": {}})
        client.hset(keys.leased(consumer.name), str(number), f"celery\n{message}")
        consumer.bury(number, "unrecorded", "no room")
    consumer.flush()
    client.lpush(f"celery-task-meta-{jobs[0]}", "somebody else's")
    app.amqp.queues.select("celery")
    Teller(app).tell(consumer.connect, keys)
    eventually(lambda: not client.exists(keys.untold))
    consumer.flush()
    assert [stored(app, job) for job in jobs[1:]] == ["FAILURE"] * 4
    with pytest.raises(BackendStoreError, match="no room"):
        app.AsyncResult(jobs[1]).get(timeout=5)
    assert client.zcard(keys.failed) == 5
    assert f"that {jobs[0]} failed (unrecorded: no room) is not told to the result backend" in caplog.text


def make_request(app: Celery, done: list[str], body: Any = ((), {}, {})) -> Request:
    """A worker's request for a job of `add`, which notes in `done` what becomes of its message."""
    return Request(
        SimpleNamespace(
            headers={"id": "the-id", "task": "add"}, body=body, delivery_info={}, properties={}, unrecorded=""
        ),
        app=app,
        decoded=True,
        on_ack=lambda *_: done.append("acknowledged"),
        on_reject=lambda _, __, requeue: done.append("given back" if requeue else "rejected"),
    )


def test_a_job_that_ends_just_when_it_is_cancelled_settles_its_message_once(app: Celery) -> None:
    settled: list[str] = []
    request = make_request(app, settled)
    both_are_in = Barrier(2)

    def settle(*_: Any) -> None:
        settled.append("settled")
        with suppress(BrokenBarrierError):
            both_are_in.wait(0.2)

    request._on_ack = request._on_reject = settle
    with ThreadPoolExecutor() as threads:
        for ending in [threads.submit(request.acknowledge), threads.submit(request.reject)]:
            ending.result()
    assert settled == ["settled"]


@pytest.mark.parametrize(
    ("trouble", "settled"), [("", "acknowledged"), ("backend", "given back"), ("hook", "acknowledged")]
)
def test_a_job_that_hits_its_hard_limit_keeps_no_place_of_its_worker_whatever_goes_wrong(
    app: Celery, monkeypatch: pytest.MonkeyPatch, trouble: str, settled: str
) -> None:
    done: list[str] = []
    recorded = Mock(side_effect=redis.ConnectionError("gone") if trouble == "backend" else None)
    monkeypatch.setattr(app.backend, "store_result", recorded)
    monkeypatch.setattr(app.tasks["add"], "on_failure", Mock(side_effect=KeyError() if trouble == "hook" else None))
    request = make_request(app, done)
    with pytest.raises(TimeLimitExceeded) as raised:
        raise TimeLimitExceeded(1)
    # A prefork pool says it in both ways, and then kills the process.
    request.on_failure(ExceptionInfo((raised.type, raised.value, raised.tb)))
    assert not done, "it still runs"
    request.on_timeout(soft=False, timeout=1)
    assert done == [settled]
    recorded.assert_called_once()


@pytest.mark.parametrize("end", [states.FAILURE, states.REVOKED])
@pytest.mark.parametrize("told", [False, True], ids=["in a moment", "after a while"])
def test_what_somebody_else_says_of_a_job_after_its_start_is_not_undone_by_who_runs_it(
    app: Celery, make_app: MakeApp, url: str, end: str, told: bool
) -> None:
    app.backend.store_result("the-id", {"pid": 1}, states.STARTED)
    make_app(url).backend.store_result("the-id", KeyError("meanwhile, half: \ud800"), end)
    if told:
        app.backend.starts.tell("the-id")
    app.backend.store_result("the-id", 3, states.SUCCESS)
    assert stored(app, "the-id") == end


def test_a_job_that_ends_at_once_is_one_write(
    app: Celery, client: "redis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    ask = SpareConnections.ask

    def spy(self: Any, *words: Any) -> Any:
        sent.append(words[0])
        return ask(self, *words)

    app.backend.store_result("warm", 1, states.SUCCESS)
    monkeypatch.setattr(SpareConnections, "ask", spy)
    app.backend.store_result("the-id", {"pid": 1}, states.STARTED)
    app.backend.store_result("the-id", 3, states.SUCCESS)
    assert sent == ["EVALSHA"]
    assert stored(app, "the-id") == "SUCCESS"


def test_that_a_job_has_started_is_told_when_it_goes_on(app: Celery, eventually: Eventually) -> None:
    app.backend.store_result("the-id", {"pid": 7}, states.STARTED)
    eventually(lambda: stored(app, "the-id") == "STARTED")
    assert app.backend.get_task_meta("the-id")["result"] == {"pid": 7}
    assert not app.backend.starts.end("the-id"), "the server has heard of it"


@pytest.mark.parametrize("error", [redis.ConnectionError("gone"), KeyError("of a provider of logins")])
def test_starts_that_cannot_be_told_are_a_line_in_the_log_and_those_that_follow_are_told(
    caplog: pytest.LogCaptureFixture, eventually: Eventually, error: Exception
) -> None:
    told: list[Any] = []

    def refuse_once(states: Any) -> None:
        told.append(states)
        if len(told) == 1:
            raise error

    starts = Starts(refuse_once)
    starts.add("the-id", "2020", lambda: Stored(b"key", "{}", 1, "2020"))
    eventually(lambda: "that 1 jobs have started was not stored" in caplog.text)
    starts.add("another", "2020", lambda: Stored(b"key", "{}", 1, "2020"))
    eventually(lambda: len(told) == 2)


def test_results_expire_as_configured_and_are_published_once(
    make_app: MakeApp, url: str, client: "redis.Redis"
) -> None:
    app = make_app(url, result_expires=100, result_failure_expires=50)
    with client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.psubscribe("celery-task-meta-*")
        assert listener.get_message(timeout=5) is None, "the subscription itself, which is left out"
        app.backend.store_result("good", 1, states.SUCCESS)
        app.backend.store_result("good", 2, states.SUCCESS)
        app.backend.store_result("bad", ValueError("x"), states.FAILURE)
        heard = [json.loads(listener.get_message(timeout=5)["data"])["task_id"] for _ in range(2)]
        assert heard == ["good", "bad"]
    assert 90 < client.ttl("celery-task-meta-good") <= 100
    assert 40 < client.ttl("celery-task-meta-bad") <= 50


def test_a_worker_stores_results_and_acknowledges_in_one_step(
    app: Celery, consumer: Consumer, client: "redis.Redis"
) -> None:
    leases = Keys().leased(consumer.name)
    app.backend.store_result("the-id", 3, states.SUCCESS)
    assert stored(app, "the-id") == "PENDING", "it waits for its message to be acknowledged"
    consumer.acknowledge(1)
    assert consumer.take_acks() == [], "nobody may acknowledge before the result is there"
    assert client.hkeys(leases) == [b"1", b"2"]
    consumer.flush()
    assert stored(app, "the-id") == "SUCCESS"
    assert client.hkeys(leases) == [b"2"]
    consumer.acknowledge(2)
    assert consumer.take_acks() == [2]


def test_a_failure_is_stored_before_the_errbacks_of_its_job_are_called(app: Celery, consumer: Consumer) -> None:
    app.backend.store_result("one", ValueError(), states.FAILURE, request=Context(errbacks=[app.tasks["add"].s()]))
    app.backend.store_result("another", ValueError(), states.FAILURE, request=Context())
    assert [stored(app, job_id) for job_id in ("one", "another")] == ["FAILURE", "PENDING"]


def test_a_result_that_could_not_be_stored_keeps_its_message_leased(
    app: Celery, consumer: Consumer, client: "redis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = Keys().leased(consumer.name)
    app.backend.store_result("the-id", 3, states.SUCCESS)
    consumer.acknowledge(1)
    connect, consumer.connect = consumer.connect, refused
    with pytest.raises(redis.ConnectionError):
        consumer.flush()
    assert consumer.take_acks() == []
    assert client.hkeys(leases) == [b"1", b"2"]
    consumer.connect = connect
    consumer.flush()
    assert stored(app, "the-id") == "SUCCESS"
    assert client.hkeys(leases) == [b"2"]


def refused(*_: Any, **options: Any) -> Any:
    raise redis.ConnectionError("refused")


def test_results_for_another_server_are_not_given_to_the_consumer(
    make_app: MakeApp, url: str, consumer: Consumer
) -> None:
    elsewhere = url.removesuffix("0") + "5"
    app = make_app(url, elsewhere)
    app.backend.store_result("the-id", 3, states.SUCCESS)
    assert stored(app, "the-id") == "SUCCESS"
    consumer.over = True
    assert not store_for(consumer.server, Stored(b"key", "{}", 1))


@pytest.mark.parametrize("configuration", [{"result_serializer": "pickle", "accept_content": ["json", "pickle"]}])
def test_results_that_are_no_json_are_stored_as_stock_celery_does(
    make_app: MakeApp, url: str, configuration: dict[str, Any]
) -> None:
    app = make_app(url, **configuration)
    app.backend.store_result("the-id", {1, 2}, states.SUCCESS)
    assert app.backend.get_task_meta("the-id")["result"] == {1, 2}


@pytest.mark.parametrize("acknowledged", [[1], []])
def test_a_full_server_takes_results_with_acknowledgements_and_without(
    client: "redis.Redis", acknowledged: list[int]
) -> None:
    leases, message = "leases", "x" * 2000
    client.hset(leases, mapping={1: message, 2: message})
    words = settling(leases, acknowledged, [Stored(b"result", '{"status": "SUCCESS"}', 60)])
    used = client.info("memory")["used_memory"]
    client.config_set("maxmemory", used - 1000)
    try:
        assert client.execute_command("EVAL", SETTLE.text, *words) == 1
    finally:
        client.config_set("maxmemory", 0)
    assert client.hkeys(leases) == ([b"2"] if acknowledged else [b"1", b"2"])
    assert client.get("result") == b'{"status": "SUCCESS"}'


FAMILIES: list[dict[str, Any]] = [
    {},
    {"group": "a-group", "parent_id": "a-parent"},
    {"children": [celery.result.AsyncResult("c")]},
]
RESULTS: list[tuple[str, Any, str | None]] = [
    (states.SUCCESS, {"a": [1, None, "ä"]}, None),
    (states.SUCCESS, datetime(2026, 1, 2, tzinfo=UTC), None),
    (states.FAILURE, ValueError("x", 1), "Traceback …"),
    (states.RETRY, KeyError("x"), "Traceback …"),
    (states.REVOKED, TaskRevokedError("cancelled"), None),
    ("WORKING", {"step": 1}, None),
]


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # stock Celery's
@pytest.mark.parametrize("family", FAMILIES, ids=["alone", "in a group", "with children"])
@pytest.mark.parametrize(
    "configuration", [{}, {"timezone": "Europe/Berlin", "enable_utc": False}], ids=["UTC", "Berlin"]
)
def test_what_is_stored_is_what_stock_celery_stores(
    make_app: MakeApp, url: str, client: "redis.Redis", family: dict[str, Any], configuration: dict[str, Any]
) -> None:
    ours = make_app(url, **configuration)
    stock = celery.Celery("stock", backend=url, set_as_current=False, **configuration)
    request = Context({"id": "the-id", "task": "add", **family})
    for state, result, traceback in RESULTS:
        found = []
        for app in (ours, stock):
            app.backend.store_result("the-id", result, state, traceback=traceback, request=request)
            text = client.getdel("celery-task-meta-the-id")
            told = json.loads(text)
            done = told.pop("date_done")
            offset = datetime.fromisoformat(done).utcoffset() if done else None
            found.append((list(json.loads(text)), told, offset))
        assert found[0] == found[1]
    stock.close()


def test_what_is_no_json_is_an_error_that_celery_knows(app: Celery) -> None:
    with pytest.raises(EncodeError):
        app.backend.store_result("the-id", object(), states.SUCCESS)


def test_a_changed_configuration_changes_what_is_stored(app: Celery) -> None:
    request = Context({"id": "the-id", "task": "add", "args": [1]})
    app.backend.store_result("before", 1, states.SUCCESS, request=request)
    app.conf.result_extended = True
    app.backend.store_result("after", 1, states.SUCCESS, request=request)
    assert "name" not in app.backend.get_task_meta("before")
    assert app.backend.get_task_meta("after")["name"] == "add"


@pytest.mark.parametrize("configuration", [{}, {"result_extended": True}], ids=["our form", "Celery's form"])
def test_what_the_server_refuses_for_now_is_stored_when_it_takes_it(
    make_app: MakeApp, url: str, client: Any, monkeypatch: pytest.MonkeyPatch, configuration: dict[str, Any]
) -> None:
    app = make_app(url, **configuration)
    refusals: list[Exception] = []

    def promote(_: int, error: Exception, *__: Any) -> float:
        refusals.append(error)
        client.replicaof("NO", "ONE")
        return 0

    monkeypatch.setattr(app.backend, "on_connection_error", promote)
    client.replicaof("127.0.0.1", 1)
    try:
        app.backend.store_result("the-id", 3, states.SUCCESS)
    finally:
        client.replicaof("NO", "ONE")
    assert stored(app, "the-id") == "SUCCESS"
    assert len(refusals) == 1


SUCCEEDED = Stored(b"celery-task-meta-the-id", '{"status": "SUCCESS", "result": 3}', 60)


SERVER = ("", "localhost", "6379", "0", "")


@pytest.fixture
def process() -> Iterator[carrying._Job]:
    """As in a process of the prefork pool that runs a job."""
    job = carrying._Job("the-id", Offer(SERVER, "", 1))
    token = carrying._job.set(job)
    yield job
    carrying._job.reset(token)


def test_a_result_stays_where_nothing_would_take_it_along() -> None:
    assert not carry(Context({"id": "the-id", OFFER: Offer(SERVER, "", 1)}), SERVER, SUCCEEDED)
    assert not carry(Context({"id": "the-id", OFFER: ["", "of a message"]}), SERVER, SUCCEEDED)


def test_a_result_is_left_to_the_main_process_only_if_that_offered_it(process: carrying._Job) -> None:
    request = Context({"id": "the-id"})
    assert not carry(None, SERVER, SUCCEEDED)
    assert not carry(Context({"id": "of one that runs on the spot"}), SERVER, SUCCEEDED)
    assert not carry(request, (*SERVER[:3], "5", ""), SUCCEEDED), "it consumes elsewhere"
    assert not carry(Context({"id": "the-id", "chord": {"id": "body"}}), SERVER, SUCCEEDED), "parts are counted at once"
    assert not carry(request, SERVER, SUCCEEDED._replace(json="x" * 100_000)), "the pipe is narrow"
    assert process.came_to is None
    assert carry(request, SERVER, SUCCEEDED)
    assert process.came_to == SUCCEEDED


class _Task:
    """One whose results are kept where a test can see them.

    Args:
        answers: whether the server confirms what a process of the pool tells it.
    """

    def __init__(self, *, answers: bool = True) -> None:
        self.stored: list[Stored] = []
        self.settled: list[tuple[Stored, Offer]] = []
        self.backend = self
        self.answers = answers

    def store_carried(self, state: Stored) -> bool:
        self.stored.append(state)
        return True

    def settle_alone(self, state: Stored, offer: Offer) -> bool:
        self.settled.append((state, offer))
        return self.answers


BUSY, IDLE = Offer(("localhost",), "", 7), Offer(("localhost",), "leases", 7)


def carried(task: _Task, outcome: Any, offer: Offer = BUSY) -> Any:
    """What comes of a task that comes to that, after its result was left to the main process."""

    def trace(_id: str, _args: Any, _kwargs: Any, request: dict[str, Any]) -> Any:
        context = Context(request)
        assert context.headers is None, "what it does not know, Celery shows the task, and hands on"
        assert carry(context, ("localhost",), SUCCEEDED)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return carrying._loaded(task, trace)("the-id", (), {}, {"id": "the-id", OFFER: offer})


def test_what_is_carried_goes_along_with_how_the_result_reads_in_the_log() -> None:
    task, outcome = _Task(), trace_ok_t(3, None, 0.1, "three")
    *others, text = pickle.loads(pickle.dumps(tuple(carried(task, outcome))))
    assert (others, text, type(text)) == ([3, None, 0.1], "three", Carried)
    assert text.state == SUCCEEDED
    run = carrying._loaded(task, lambda *_: outcome)
    assert run("another", (), {}, {"id": "another", OFFER: BUSY}) is outcome, "nothing is left of the job before"
    assert run("another", (), {}, {"id": "another", OFFER: ["of a", "message"]}) is outcome
    assert task.stored == task.settled == []


@pytest.mark.parametrize("answers", [True, False], ids=["confirmed", "not confirmed"])
def test_a_process_that_nothing_waits_for_tells_the_server_itself(*, answers: bool) -> None:
    task = _Task(answers=answers)
    *_, text = pickle.loads(pickle.dumps(tuple(carried(task, trace_ok_t(3, None, 0.1, "three"), IDLE))))
    assert task.settled == [(SUCCEEDED, IDLE)]
    assert text == "three"
    assert text.state == (None if answers else SUCCEEDED)


@pytest.mark.parametrize("offer", [BUSY, IDLE])
def test_what_failed_after_the_end_of_a_job_takes_no_result_along(offer: Offer) -> None:
    failed, died = _Task(), _Task()
    outcome = trace_ok_t("the error", "its information", None, None)
    assert carried(failed, outcome, offer) is outcome
    with pytest.raises(MemoryError):
        carried(died, MemoryError(), offer)
    assert failed.stored == died.stored == [SUCCEEDED]
    assert failed.settled == died.settled == []


def test_a_job_is_offered_to_be_settled_by_its_process_while_nothing_waits_for_one(consumer: Consumer) -> None:
    consumer.live = {1}
    assert consumer.offer(1) == Offer(consumer.server, Keys().leased(consumer.name), 1)
    consumer.live = {1, 2}
    assert consumer.offer(2) == Offer(consumer.server, "", 2)
    assert offer_for(2) == consumer.offer(2)
    assert offer_for("a tag of a message that is not leased") is None


def test_what_a_process_settles_is_stored_and_acknowledged_at_once(
    app: Celery, consumer: Consumer, client: "redis.Redis"
) -> None:
    leases = Keys().leased(consumer.name)
    for _ in range(2):  # the second time does no harm
        assert app.backend.settle_alone(SUCCEEDED, Offer(consumer.server, leases, 1))
        assert stored(app, "the-id") == "SUCCESS"
        assert client.hkeys(leases) == [b"2"]


def test_what_a_process_cannot_settle_is_left_to_the_main_process(
    app: Celery, consumer: Consumer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    offer = consumer.offer(1)
    for error in (redis.ConnectionError("refused"), redis.OutOfMemoryError("full"), SoftTimeLimitExceeded()):

        def fails(*_: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(app.backend, "_settle", fails)
        assert not app.backend.settle_alone(SUCCEEDED, offer)
        assert repr(error) in caplog.text


def test_a_process_waits_a_quarter_of_a_second_for_a_server_that_does_not_answer(
    server: EmbeddedServer, make_app: MakeApp
) -> None:
    with FaultProxy("127.0.0.1", server.port) as proxy:
        app = make_app(proxy.url)
        assert app.backend.settle_alone(SUCCEEDED, IDLE)
        proxy.stall()
        began = time.monotonic()
        assert not app.backend.settle_alone(SUCCEEDED, IDLE)
        assert time.monotonic() - began < 2, "other requests wait longer"


def test_a_result_that_was_left_to_a_consumer_that_is_over_is_stored_at_once(
    app: Celery, consumer: Consumer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert app.backend.store_carried(SUCCEEDED)
    assert consumer._decisions._states.pop() == SUCCEEDED
    consumer.over = True
    assert app.backend.store_carried(SUCCEEDED)
    assert stored(app, "the-id") == "SUCCESS"
    monkeypatch.setattr(app.backend, "_settle", refused)
    assert not app.backend.store_carried(SUCCEEDED)
    assert "a result could not be stored: refused" in caplog.text


@pytest.mark.slow
def test_a_prefork_worker_stores_the_results_of_many_jobs_at_once(
    own_server: EmbeddedServer, make_app: MakeApp, start_worker: StartWorker
) -> None:
    app = make_app(own_server.url)
    with redis.Redis.from_url(own_server.url) as client:

        def scripts() -> int:
            calls: int = client.info("commandstats")["cmdstat_evalsha"]["calls"]
            return calls

        jobs = app.tasks["add"].delay_many([(n, 1) for n in range(300)])
        before = scripts()
        with start_worker(own_server.url, "-c 2 --prefetch-multiplier=50"):
            assert [job.get(timeout=20) for job in jobs] == [n + 1 for n in range(300)]
            assert scripts() - before < 200


@pytest.mark.slow
def test_a_process_that_dies_when_it_has_told_the_server_has_its_job_neither_failed_nor_repeated(
    own_server: EmbeddedServer, make_app: MakeApp, start_worker: StartWorker, released: Path, eventually: Eventually
) -> None:
    released.touch()
    app, url = make_app(own_server.url), own_server.url
    with (
        redis.Redis.from_url(url) as client,
        start_worker(url, "-c 1", "dying", DIES_ONCE=str(released.with_name("died"))) as worker,
    ):
        job = app.tasks["wait_for"].delay(str(released))
        assert job.get(timeout=20) == "released"
        eventually(lambda: worker.says("WorkerLostError"), timeout=20)
        for number in range(3):
            assert app.tasks["add"].delay(number, 1).get(timeout=20) == number + 1
        assert not worker.says("not confirmed")
        assert (job.state, runs(released)) == ("SUCCESS", 1)
        eventually(lambda: not list(client.scan_iter("backburner:leased:*")), timeout=20)
        assert client.llen("celery") == 0


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("pool", ["--pool=solo", "--pool=threads -c 4", "--pool=asyncio -c 50", "-c 2"])
def test_what_is_acknowledged_has_its_result_whenever_workers_are_killed_or_stopped(
    app: Celery, url: str, client: "redis.Redis", start_worker: StartWorker, eventually: Eventually, pool: str
) -> None:
    results = "celery-task-meta-{}".format
    jobs = {job.id: number for number, job in enumerate(app.tasks["add"].delay_many([(n, 1) for n in range(3000)]))}

    def done() -> int:
        return client.exists(*map(results, jobs))

    def waiting() -> set[str]:
        held = [text for key in client.scan_iter("backburner:leased:*") for text in client.hvals(key)]
        queued = [text for key in client.scan_iter("celery*", _type="list") for text in client.lrange(key, 0, -1)]
        return {json.loads(text[text.index(b"{") :])["headers"]["id"] for text in held + queued}

    def wait_for(count: int) -> None:
        eventually(lambda: done() >= count, timeout=60)

    for end in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        with start_worker(url, f"{pool} --prefetch-multiplier=20", "impatient") as worker:
            wait_for(min(done() + 200, len(jobs)))
            (os.killpg if end == signal.SIGKILL else os.kill)(worker.process.pid, end)
            worker.process.wait()
            left = waiting()
            assert [job for job in jobs if job not in left and not client.exists(results(job))] == []
    with start_worker(url, f"{pool} --prefetch-multiplier=20", "impatient"):
        wait_for(len(jobs))
    assert {job: app.AsyncResult(job).result for job in jobs} == {job: number + 1 for job, number in jobs.items()}


@pytest.mark.slow
@pytest.mark.parametrize("database", ["0", "1"], ids=["by the consumer", "by the job"])
def test_what_may_not_be_published_is_stored_and_the_job_goes_on(
    own_server: EmbeddedServer,
    start_worker: StartWorker,
    make_app: MakeApp,
    eventually: Eventually,
    tmp_path: Path,
    database: str,
) -> None:
    with redis.Redis.from_url(own_server.url) as client:
        client.acl_setuser("mute", enabled=True, passwords=["+x"], commands=["+@all"], keys=["*"], reset_channels=True)
    backend = own_server.url.removesuffix("0") + database
    mute = backend.replace("redis://", "redis://mute:x@")
    # Broadcasts are the broker's, so the worker itself needs channels there.
    with start_worker(own_server.url, CELERY_RESULT_BACKEND=mute) as worker, redis.Redis.from_url(backend) as client:
        app = make_app(own_server.url, backend)
        add = app.tasks["add"]
        told, added = app.tasks["tell"].delay(str(tmp_path / "told"), 3), celery.chain(add.s(1, 2), add.s(3)).delay()
        (tmp_path / "told").touch()
        eventually(lambda: told.state == added.state == "SUCCESS")
        assert added.result == 6
        events = f"celery-task-meta-{told.id}:events"
        reported = [event[b"event"] for _, event in client.xrange(events)]
        assert all(any(text in event for event in reported) for text in (b"line 0", b"line 2", b"the last"))
        assert client.ttl(events) > 0
        assert worker.says("is stored, but who waits for it is not told")
        assert not worker.says("raised unexpected")
        assert not worker.says("are lost")
        assert not worker.says("cannot be stored")
