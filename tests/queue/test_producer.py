"""The producer beside Celery: the same messages, the same signals, and Celery's own path wherever it is needed."""

import asyncio
import functools
import gc
import json
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any
from unittest import mock
from uuid import UUID

import celery
import kombu
import pytest
import redis
from celery import signals
from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.saferepr import saferepr
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu.common import Broadcast
from kombu.exceptions import EncodeError

from backburner.errors import ResultTimeout
from backburner.queue import Celery, Job, producer
from backburner.queue.delivery import ENQUEUE
from backburner.queue.producer import Producer
from backburner.queue.sending import CHUNK, GATHERED, Chunk
from backburner.queue.template import representation
from backburner.redis.blocking import BlockingClient
from backburner.redis.embedded import EmbeddedServer
from backburner.redis.pipelined import PipelinedClient
from backburner.redis.spare import SpareConnections
from tests.conftest import Eventually
from tests.queue.conftest import MakeApp, StartWorker

Lists = dict[str, list[dict[str, Any]]]


@pytest.fixture
def url(url: str) -> str:
    """A database that no worker listens to."""
    return url.removesuffix("0") + "2"


@pytest.fixture
def server_lists(url: str) -> Callable[[], Lists]:
    """What waits on the server, by list; taken away by looking."""

    def take() -> Lists:
        with redis.Redis.from_url(url) as client:
            keys = [key.decode() for key in client.scan_iter() if client.type(key) == b"list"]
            taken = {key: [json.loads(message) for message in client.lrange(key, 0, -1)[::-1]] for key in keys}
            client.delete("no such key", *keys)
        return taken

    return take


in_celerys_way = celery.Task.apply_async


@contextmanager
def ways(app: Celery) -> Iterator[list[str]]:
    """Which way each call takes: ours, or Celery's."""
    taken: list[str] = []
    publish = app.producer.publish

    def spy(*args: Any) -> Any:
        jobs = publish(*args)
        taken.append("Celery's" if jobs is None else "ours")
        return jobs

    app.producer.publish = spy  # type: ignore[method-assign]
    try:
        yield taken
    finally:
        del app.producer.publish


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands sent by producers."""
    commands: list[str] = []
    for client, name in (
        (BlockingClient, "execute_command"),
        (SpareConnections, "ask"),
        (PipelinedClient, "execute_command"),
        (PipelinedClient, "execute_now"),
    ):
        original = getattr(client, name)

        def spy(self: Any, *words: Any, execute: Any = original) -> Any:
            commands.append(words[0])
            return execute(self, *words)

        monkeypatch.setattr(client, name, spy)
    return commands


def settled(message: dict[str, Any]) -> tuple[str, list[datetime]]:
    """A message as text, in its order, without what is never the same; and its times."""
    times = []
    for name in ("eta", "expires"):
        if message["headers"][name] is not None:
            times.append(datetime.fromisoformat(message["headers"][name]))
            message["headers"][name] = "a time"
    if "expiration" in message["properties"]:
        times.append(datetime.fromtimestamp(int(message["properties"]["expiration"]) / 1000, UTC))
        message["properties"]["expiration"] = "a time"
    assert message["properties"].pop("delivery_tag")
    return json.dumps(message), times


def same(ours: Lists, theirs: Lists) -> None:
    assert ours.keys() == theirs.keys()
    for key, messages in ours.items():
        for mine, celerys in zip(messages, theirs[key], strict=True):
            (text, times), (expected, expected_times) = settled(mine), settled(celerys)
            assert text == expected
            assert len(times) == len(expected_times)
            assert all(abs(a - b) < timedelta(seconds=5) for a, b in zip(times, expected_times, strict=True))


def anything(*args: Any, **kwargs: Any) -> None: ...


class Colour(IntEnum):
    RED = 1


DUE = datetime(2040, 1, 2, 3, 4, 5, tzinfo=UTC)

ARGUMENTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "by position": ((1, 2), {}),
    "by name": ((), {"a": 1, "b": "two"}),
    "a list": ([1, 2.5], {}),
    "texts that need care": (('it\'s "100%" {0} %(id)s \\ \n\t\x00', "Brontë, 日本 \U0001f600"), {}),
    "long": (("x" * 2000,), {"b": ["y" * 2000]}),
    "nested": (([1, [2, [3, [4]]]], {"k": {"l": (1, {"m": None})}}), {}),
    "sets are not JSON, but their likes are": ((True, None), {}),
    "typed": ((datetime(2026, 1, 2, tzinfo=UTC), Decimal("1.50")), {}),
    "more types": ((UUID(int=5), date(2026, 1, 2)), {}),
    "bytes": ((b"text", b"\xff\xfe"), {}),
    "an enum and nothing": ((Colour.RED, float("nan")), {}),
}


@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
def test_the_message_is_celerys_whatever_the_arguments(
    app: Celery, server_lists: Callable[[], Lists], arguments: tuple[Any, dict[str, Any]]
) -> None:
    args, kwargs = arguments
    task = app.task(anything, name="anything", shared=False)
    with ways(app) as taken:
        job = task.apply_async(args, kwargs)
    ours = server_lists()
    in_celerys_way(task, args, kwargs, task_id=job.id)
    same(ours, server_lists())
    assert taken == ["ours"]


OPTIONS: dict[str, dict[str, Any]] = {
    "countdown": {"countdown": 60},
    "eta": {"eta": DUE},
    "eta elsewhere": {"eta": DUE.astimezone(), "expires": DUE + timedelta(days=1)},
    "expires in seconds": {"expires": 30.5},
    "queue": {"queue": "later"},
    "queue that is declared": {"queue": "declared"},
    "priority": {"priority": 6},
    "limits": {"time_limit": 10, "soft_time_limit": 5},
    "ignored": {"ignore_result": True},
    "family": {"root_id": "the-root", "parent_id": "the-parent"},
    "everything": {"countdown": 1, "expires": 9, "queue": "later", "priority": 3, "ignore_result": True},
    "nothing": {"countdown": None, "eta": None, "expires": None, "queue": None},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_message_is_celerys_whatever_the_options(
    make_app: MakeApp, url: str, server_lists: Callable[[], Lists], options: dict[str, Any]
) -> None:
    app = make_app(url)
    app.conf.task_queues = [
        kombu.Queue("celery"),
        kombu.Queue("declared", kombu.Exchange("shop", "direct"), routing_key="key", durable=False),
    ]
    task = app.tasks["add"]
    with ways(app) as taken:
        job = task.apply_async((1, 2), task_id="the-id", **options)
    ours = server_lists()
    in_celerys_way(task, (1, 2), {}, task_id=job.id, **options)
    same(ours, server_lists())
    assert taken == ["ours"]


@pytest.mark.parametrize(
    "attributes",
    [
        {"ignore_result": True},
        {"expires": 60},
        {"time_limit": 9, "soft_time_limit": 3},
        {"priority": 9},
        {"serializer": "json"},
        {"typing": False},
    ],
    ids=str,
)
def test_the_message_is_celerys_whatever_the_task_says(
    app: Celery, server_lists: Callable[[], Lists], attributes: dict[str, Any]
) -> None:
    with pytest.warns(celery.exceptions.CDeprecationWarning) if "priority" in attributes else nothing():
        task = app.task(anything, name="particular", shared=False, **attributes)
        assert task.name
    with ways(app) as taken:
        job = task.delay(1)
    ours = server_lists()
    in_celerys_way(task, (1,), {}, task_id=job.id)
    same(ours, server_lists())
    assert taken == ["ours"]
    assert job.ignored == bool(attributes.get("ignore_result"))


@contextmanager
def nothing() -> Iterator[None]:
    yield


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "routes by name": {"task_routes": {"add": {"queue": "named", "priority": 3}}},
    "routes by pattern": {"task_routes": [{"a*": "patterned"}]},
    "another default queue": {"task_default_queue": "mine", "task_default_exchange": "mine"},
    "a prefix and other steps": {"broker_transport_options": {"global_keyprefix": "shop:", "priority_steps": [0, 5]}},
    "a priority": {"task_default_priority": 7},
    "transient": {"task_default_delivery_mode": "transient"},
    "no events": {"task_send_sent_event": False},
}


@pytest.mark.parametrize("configuration", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_the_message_is_celerys_whatever_is_configured(
    make_app: MakeApp, url: str, server_lists: Callable[[], Lists], configuration: dict[str, Any]
) -> None:
    app = make_app(url, **configuration)
    with ways(app) as taken:
        job = app.tasks["add"].delay(1, 2)
    ours = server_lists()
    in_celerys_way(app.tasks["add"], (1, 2), {}, task_id=job.id)
    same(ours, server_lists())
    assert taken == ["ours"]


def test_the_message_is_that_of_a_program_which_knows_nothing_of_us(
    app: Celery, url: str, server_lists: Callable[[], Lists]
) -> None:
    stock = celery.Celery("stock", broker=url, backend=url, set_as_current=False)
    task = stock.task(anything, name="add", shared=False)
    app.tasks["add"].apply_async((1, 2), task_id="the-id", countdown=60)
    ours = server_lists()
    task.apply_async((1, 2), task_id="the-id", countdown=60)
    theirs = server_lists()
    for message in (*ours["celery"], *theirs["celery"]):
        message["properties"]["reply_to"] = "of the app and the thread"
    same(ours, theirs)
    stock.close()


def test_the_queue_is_declared_as_celery_declares_it(make_app: MakeApp, url: str) -> None:
    def declared(publish: Callable[[Any], Any]) -> dict[bytes, Any]:
        with redis.Redis.from_url(url) as client:
            client.flushdb()
            publish(make_app(url, broker_transport_options={"global_keyprefix": "shop:"}).tasks["add"])
            return {key: client.smembers(key) for key in client.keys("*_kombu*")}

    ours = declared(lambda task: task.delay(1, 2))
    assert ours
    assert ours == declared(lambda task: in_celerys_way(task, (1, 2), {}))


CELERYS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "link": lambda add: {"link": add.s(1)},
    "link_error": lambda add: {"link_error": add.s(1)},
    "shadow": lambda _: {"shadow": "another name"},
    "headers": lambda _: {"headers": {"tenant": 5}},
    "stamps": lambda _: {"stamped_headers": ["tenant"], "tenant": 5},
    "compression": lambda _: {"compression": "zlib"},
    "serializer": lambda _: {"serializer": "yaml"},
    "retries": lambda _: {"retries": 2},
    "exchange": lambda _: {"exchange": "celery", "routing_key": "celery"},
    "a queue object": lambda _: {"queue": kombu.Queue("object")},
    "eta as text": lambda _: {"eta": DUE.isoformat()},
    "expired": lambda _: {"expires": datetime(2020, 1, 1, tzinfo=UTC)},
    "reply_to": lambda _: {"reply_to": "somebody"},
    "a queue that expires": lambda _: {"queue": "expiring"},
    "group": lambda _: {"group_id": "a-group", "group_index": 1},
    "a priority of another type": lambda _: {"priority": Decimal(3)},
}


@pytest.mark.parametrize("options", CELERYS.values(), ids=CELERYS)
def test_what_the_producer_does_not_do_celery_does(
    make_app: MakeApp, url: str, server_lists: Callable[[], Lists], options: Callable[[Any], dict[str, Any]]
) -> None:
    app = make_app(url)
    app.conf.task_queues = [kombu.Queue("celery"), kombu.Queue("expiring", expires=60)]
    add = app.tasks["add"]
    with ways(app) as taken:
        add.apply_async((1, 2), task_id="the-id", **options(add))
    ours = server_lists()
    in_celerys_way(add, (1, 2), {}, task_id="the-id", **options(add))
    same(ours, server_lists())
    assert taken == ["Celery's"]


def test_who_listens_before_a_job_is_published_may_change_it(app: Celery, server_lists: Callable[[], Lists]) -> None:
    traces = iter(range(3))

    def stamp(headers: dict[str, Any], **_: Any) -> None:
        headers["trace"] = next(traces)

    add = app.tasks["add"]
    add.delay(1, 2)
    server_lists()
    signals.before_task_publish.connect(stamp)
    try:
        add.delay(1, 2)
        add.delay_many([(1, 2)])
        asyncio.run(add.adelay(1, 2))
    finally:
        signals.before_task_publish.disconnect(stamp)
    assert [message["headers"]["trace"] for message in server_lists()["celery"]] == [0, 1, 2]


def test_who_listens_after_a_job_was_published_hears_what_celery_says(app: Celery) -> None:
    heard: list[dict[str, Any]] = []

    def listen(**told: Any) -> None:
        del told["signal"]
        heard.append(told)

    add = app.tasks["add"]
    signals.after_task_publish.connect(listen)
    try:
        in_celerys_way(add, (1,), {"b": 2}, task_id="the-id")
        add.apply_async((1,), {"b": 2}, task_id="the-id")
        asyncio.run(add.aapply_async((1,), {"b": 2}, task_id="the-id"))
        add.delay_many([(1, 2), (3, 4)])
    finally:
        signals.after_task_publish.disconnect(listen)
    assert heard[0] == heard[1] == heard[2]
    assert [told["body"][0] for told in heard[3:]] == [(1, 2), (3, 4)]


def test_who_listens_after_a_job_was_published_hears_of_arguments_as_they_are_sent(app: Celery) -> None:
    class Shade(Enum):
        DARK = "dark"

    def paint(shade: Shade) -> None: ...

    task, heard = app.task(paint, name="paint", shared=False), []

    def listen(body: Any, **_: Any) -> None:
        heard.append(body[0])

    signals.after_task_publish.connect(listen)
    try:
        task.delay(Shade.DARK)
        in_celerys_way(task, (Shade.DARK,), {})
        task.delay_many([(Shade.DARK,)])
    finally:
        signals.after_task_publish.disconnect(listen)
    assert [list(args) for args in heard] == [["dark"]] * 3


@pytest.mark.parametrize(
    ("owner", "name"), [(celery.Celery, "send_task"), (celery.Task, "apply_async"), (kombu.Producer, "publish")]
)
def test_who_has_wrapped_a_function_of_celerys_sees_each_job(
    app: Celery, server_lists: Callable[[], Lists], monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    add, seen, original = app.tasks["add"], [], getattr(owner, name)
    add.delay(0, 0)

    @functools.wraps(original)  # as Sentry, Datadog and New Relic do
    def traced(*args: Any, **options: Any) -> Any:
        seen.append(1)
        return original(*args, **options)

    monkeypatch.setattr(owner, name, traced)
    add.delay(1, 2)
    asyncio.run(add.adelay(1, 2))
    add.delay_many([(1, 2)] * 2)
    assert len(seen) >= 4  # events are published too
    monkeypatch.undo()
    with ways(app) as taken:
        add.delay(1, 2)
    assert taken == ["ours"]
    assert len(server_lists()["celery"]) == 6


def test_an_app_whose_send_task_was_replaced_is_asked(app: Celery, server_lists: Callable[[], Lists]) -> None:
    app.tasks["add"].delay(0, 0)
    with mock.patch.object(app, "send_task") as replaced:
        app.tasks["add"].delay(1, 2)
    assert replaced.called
    assert len(server_lists()["celery"]) == 1


def test_routers_that_look_at_the_arguments_are_asked_each_time(
    make_app: MakeApp, url: str, server_lists: Callable[[], Lists]
) -> None:
    def route(name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **_: Any) -> dict[str, Any]:
        return {"queue": f"customer-{args[0]}"}

    add = make_app(url, task_routes=[route]).tasks["add"]
    add.delay(1, 2)
    add.delay_many([(2, 2), (3, 2)])
    assert sorted(server_lists()) == ["customer-1", "customer-2", "customer-3"]


def test_a_switch_to_eager_is_seen_at_once_wherever_it_is_made(app: Celery, server_lists: Callable[[], Lists]) -> None:
    class Settings:
        task_always_eager = False

    app.config_from_object(Settings)
    add = app.tasks["add"]
    assert add.delay(1, 2).state == "PENDING"
    Settings.task_always_eager = True
    assert add.delay(1, 2).get() == 3
    assert [job.get() for job in add.delay_many([(1, 2), (3, 4)])] == [3, 7]
    Settings.task_always_eager = False
    assert add.delay(1, 2).state == "PENDING"
    app.conf.task_always_eager = True
    assert add.delay(1, 2).get() == 3
    assert len(server_lists()["celery"]) == 2


def test_a_changed_configuration_changes_messages(app: Celery, server_lists: Callable[[], Lists]) -> None:
    app.tasks["add"].delay(1, 2)
    app.conf.update(task_routes={"add": "elsewhere"})
    app.tasks["add"].delay(1, 2)
    assert sorted(server_lists()) == ["celery", "elsewhere"]


def test_a_configuration_from_another_object_changes_messages(
    app: Celery, url: str, server_lists: Callable[[], Lists]
) -> None:
    for queue in ("first", "second"):
        settings = {"task_default_queue": queue, "broker_url": url, "result_backend": url}
        app.config_from_object(settings, force=True)
        app.tasks["add"].delay(1, 2)
    assert sorted(server_lists()) == ["first", "second"]


def test_who_asked_the_old_router_while_routes_changed_does_not_ask_it_for_ever(
    app: Celery, server_lists: Callable[[], Lists]
) -> None:
    routes = {"task_routes": {"add": "elsewhere"}}
    app.tasks["add"].delay(1, 2)
    app.conf.changes.update(routes)  # Celery does this first, and then tells its router
    app.tasks["add"].delay(1, 2)
    app.conf.update(routes)
    server_lists()
    app.tasks["add"].delay(1, 2)
    assert list(server_lists()) == ["elsewhere"]


def test_what_changes_while_the_configuration_is_read_is_seen(
    app: Celery, url: str, server_lists: Callable[[], Lists], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = producer._server

    def read_and_change(conf: Any) -> str:
        found = read(conf)
        monkeypatch.undo()
        conf.broker_url = url
        return found

    app.conf.update(broker_url=url.removesuffix("2") + "3", result_backend=url)
    monkeypatch.setattr(producer, "_server", read_and_change)
    app.tasks["add"].delay(1, 2)
    server_lists()
    app.tasks["add"].delay(1, 2)
    assert len(server_lists()["celery"]) == 1


def test_what_people_are_shown_of_arguments_may_be_said_by_a_route(
    make_app: MakeApp, url: str, server_lists: Callable[[], Lists]
) -> None:
    app = make_app(url, task_routes={"add": {"queue": "celery", "argsrepr": "(<hidden>)"}})
    app.tasks["add"].delay("secret", "secret")
    assert [message["headers"]["argsrepr"] for message in server_lists()["celery"]] == ["(<hidden>)"]


def test_options_that_differ_from_call_to_call_do_not_fill_the_memory(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producer, "_MOST_TEMPLATES", 2)
    with ways(app) as taken:
        for limit in (1, 2, 3, 1):
            app.tasks["add"].apply_async((1, 2), time_limit=limit)
    assert taken == ["ours", "ours", "Celery's", "ours"]


def test_options_that_are_equal_but_not_the_same_make_different_messages(
    app: Celery, server_lists: Callable[[], Lists]
) -> None:
    values = [1.0, 1, True, 1]
    for value in values:
        app.tasks["add"].apply_async((1, 2), time_limit=value)
    limits = [message["headers"]["timelimit"][0] for message in server_lists()["celery"]]
    assert list(map(repr, limits)) == list(map(repr, values))


def test_a_time_limit_that_strikes_while_a_template_is_made_counts_and_the_next_call_makes_it(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def strikes(*_: Any, **__: Any) -> None:
        raise SoftTimeLimitExceeded

    monkeypatch.setattr(producer, "Template", strikes)
    with pytest.raises(SoftTimeLimitExceeded):
        app.tasks["add"].delay(1, 2)
    monkeypatch.undo()
    with ways(app) as taken:
        app.tasks["add"].delay(1, 2)
    assert taken == ["ours"]


def test_a_record_is_read_line_by_line_whatever_the_task_is_called(app: Celery, url: str) -> None:
    task = app.task(anything, name="two\nlines", shared=False)
    job = task.delay()
    [template] = [each for each in app.producer._setup.templates.values() if each]
    chunk = Chunk(template, [job.id], [], ["the message"], [], "token", None, has_new_ids=True)
    with redis.Redis.from_url(url) as client:
        delivered = [client.execute_command("EVAL", ENQUEUE.text, *chunk.words()) for _ in range(2)]
    assert delivered == [0, -1], "the second time it is known"
    assert job.snapshot().name == "two lines"


@pytest.mark.parametrize(
    "configuration",
    [
        {"task_protocol": 1},
        {"task_serializer": "yaml"},
        {"task_compression": "zlib"},
        {"broker_transport": "redis"},
        {"broker_transport_options": {"body_encoding": None}},
    ],
    ids=str,
)
def test_unusual_configurations_are_celerys_affair(
    make_app: MakeApp, url: str, server_lists: Callable[[], Lists], configuration: dict[str, Any]
) -> None:
    app = make_app(url, **configuration)
    with ways(app) as taken:
        app.tasks["add"].delay(1, 2)
    assert taken == ["Celery's"]
    assert server_lists()


def test_broadcasts_are_celerys_affair(make_app: MakeApp, url: str, server_lists: Callable[[], Lists]) -> None:
    app = make_app(url)
    app.conf.task_queues = [kombu.Queue("celery"), Broadcast("everybody")]
    app.conf.task_routes = {"add": {"queue": "everybody"}}
    with ways(app) as taken:
        app.tasks["add"].delay(1, 2)
    assert taken == ["Celery's"]
    assert not server_lists()


def test_a_task_that_has_its_own_way_to_be_enqueued_keeps_it(app: Celery, server_lists: Callable[[], Lists]) -> None:
    class Tenant(celery.Task):
        def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
            return super().apply_async(args, {**(kwargs or {}), "tenant": 5}, **options)

    @app.task(base=Tenant, shared=False)
    def tenanted(tenant: int) -> None: ...

    tenanted.delay()
    asyncio.run(tenanted.adelay())
    tenanted.delay_many([()])
    asyncio.run(tenanted.adelay_many([()]))
    assert [message["headers"]["kwargsrepr"] for message in server_lists()["celery"]] == ["{'tenant': 5}"] * 4


@pytest.mark.parametrize("options", [{}, {"shadow": "Celery's path"}], ids=["ours", "Celery's"])
def test_a_task_written_as_a_class_is_enqueued(
    app: Celery, server_lists: Callable[[], Lists], options: dict[str, Any]
) -> None:
    class Upload(app.Task):  # type: ignore[name-defined, misc]  # the app's own class
        name = "upload"

        def run(self, file: str) -> None: ...

    upload: Any = app.register_task(Upload())
    upload.apply_async(("a",), **options)
    asyncio.run(upload.aapply_async(("a",), **options))
    upload.delay_many([("a",), {"file": "a"}], **options)
    asyncio.run(upload.adelay_many([("a",), {"file": "a"}], **options))
    assert [message["headers"]["task"] for message in server_lists()["celery"]] == ["upload"] * 6


def test_an_overridden_shadow_name_counts(app: Celery, server_lists: Callable[[], Lists]) -> None:
    task = app.task(anything, name="s", shared=False, shadow_name=lambda *_: "shadow")
    task.delay()
    assert server_lists()["celery"][0]["headers"]["shadow"] == "shadow"


def test_what_is_no_json_is_refused_before_anything_is_sent(app: Celery, server_lists: Callable[[], Lists]) -> None:
    add = app.tasks["add"]
    endless: list[Any] = []
    endless.append(endless)
    for value in (object(), endless):
        with pytest.raises(EncodeError):
            add.delay_many([(1, 2), (value, 2)])
        with pytest.raises(EncodeError):
            asyncio.run(add.adelay(value, 2))
    assert not server_lists()


def test_wrong_calls_are_errors_before_anything_is_sent(app: Celery, server_lists: Callable[[], Lists]) -> None:
    add = app.tasks["add"]
    wrong: list[tuple[Callable[[], Any], str]] = [
        (lambda: add.delay(1), "missing 1 required positional argument"),
        (lambda: add.apply_async("ab"), "must be a list or tuple"),
        (lambda: add.delay_many([(1, 2), (3,)]), "missing 1 required positional argument"),
        (lambda: add.delay_many(["ab"]), "a tuple or list of arguments, or a dict"),
        (lambda: add.delay_many([(1, 2)], task_id="x"), "task_id names one job"),
        (lambda: asyncio.run(add.adelay_many([(1, 2), (3,)])), "missing 1 required positional argument"),
    ]
    for call, message in wrong:
        with pytest.raises(TypeError, match=message):
            call()
    assert not server_lists()


@pytest.mark.parametrize("awaited", [False, True])
def test_of_many_calls_in_celerys_way_none_is_enqueued_if_one_is_wrong(
    app: Celery, server_lists: Callable[[], Lists], awaited: bool
) -> None:
    add = app.tasks["add"]
    for call, error in (((1,), TypeError), ((object(), 2), EncodeError)):
        calls = [(1, 2), call]
        enqueue = (lambda calls=calls: asyncio.run(add.adelay_many(calls, shadow="s"))) if awaited else None
        with pytest.raises(error):
            (enqueue or (lambda calls=calls: add.delay_many(calls, shadow="s")))()
    assert not server_lists()


def test_an_id_may_be_given_by_position_as_to_celery(app: Celery, server_lists: Callable[[], Lists]) -> None:
    assert app.tasks["add"].apply_async((1, 2), {}, "the-id").id == "the-id"
    assert server_lists()["celery"][0]["headers"]["id"] == "the-id"


@pytest.mark.parametrize("count", [0, 1, CHUNK, 2 * CHUNK + 1])
def test_many_jobs_are_enqueued_in_their_order_with_one_call_for_each_chunk(
    app: Celery, server_lists: Callable[[], Lists], sent: list[str], count: int
) -> None:
    jobs = app.tasks["add"].delay_many([(number, 2) for number in range(count)], queue="many")
    assert sent.count("EVALSHA") == -(-count // CHUNK)
    messages = server_lists().get("many", [])
    assert [message["headers"]["argsrepr"] for message in messages] == [f"({number}, 2)" for number in range(count)]
    assert [message["headers"]["id"] for message in messages] == [job.id for job in jobs]
    assert len({message["properties"]["delivery_tag"] for message in messages}) == count
    assert all(job.state == "PENDING" for job in jobs[:3])


@pytest.mark.parametrize("awaited", [False, True])
def test_while_the_server_takes_one_chunk_its_jobs_and_the_next_one_are_made_and_not_sent(
    app: Celery, url: str, eventually: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, awaited: bool
) -> None:
    add, few = app.tasks["add"], 5
    make, jobs_of, begun = Producer._chunk, Producer._jobs, [0]

    def there() -> int:
        with redis.Redis.from_url(url) as client:
            return int(client.llen("celery")) - 1

    # Whoever is asked here blocks thread and loop, so what is not on its way yet does not get there.
    def chunk(self: Producer, *args: Any) -> Any:
        eventually(lambda: there() == few * (len(begun) - 1))
        begun.append(0)
        return make(self, *args)

    def jobs(self: Producer, *args: Any) -> Any:
        eventually(lambda: there() == few * (len(begun) - 1))
        return jobs_of(self, *args)

    async def in_a_loop() -> list[Job[Any]]:
        await add.adelay(1, 2)
        watch()
        return await many(add, 3 * few)

    def watch() -> None:
        monkeypatch.setattr(producer, "CHUNK", few)
        monkeypatch.setattr(Producer, "_chunk", chunk)
        monkeypatch.setattr(Producer, "_jobs", jobs)

    if awaited:
        enqueued = asyncio.run(in_a_loop())
    else:
        add.delay(1, 2)
        watch()
        enqueued = add.delay_many([(1, 2)] * 3 * few)
    assert len(enqueued) == there() == 3 * few


async def many(task: Any, count: int) -> list[Job[Any]]:
    jobs: list[Job[Any]] = await task.adelay_many([(1, 2)] * count)
    return jobs


def test_many_calls_may_be_by_name_and_awaited(app: Celery, server_lists: Callable[[], Lists]) -> None:
    jobs = asyncio.run(app.tasks["add"].adelay_many([{"a": 1, "b": 2}, [3, 4]], countdown=60))
    assert all(isinstance(job, Job) for job in jobs)
    assert [message["headers"]["kwargsrepr"] for message in server_lists()["celery"]] == ["{'a': 1, 'b': 2}", "{}"]


def test_what_coroutines_enqueue_together_leaves_together(
    app: Celery, server_lists: Callable[[], Lists], sent: list[str]
) -> None:
    add = app.tasks["add"]
    add.delay(0, 0)
    server_lists()
    sent.clear()

    async def main() -> list[Job]:
        return await asyncio.gather(*(add.adelay(number, 2) for number in range(GATHERED + 10)))

    jobs = asyncio.run(main())
    assert sent == ["EVALSHA", "EVALSHA"]
    assert [message["headers"]["id"] for message in server_lists()["celery"]] == [job.id for job in jobs]


def test_what_comes_alone_leaves_at_once_and_what_comes_meanwhile_together(
    app: Celery, url: str, eventually: Eventually, sent: list[str]
) -> None:
    add = app.tasks["add"]

    async def main(client: "redis.Redis") -> list[Job]:
        await add.adelay(0, 0)
        client.delete("celery")
        sent.clear()
        enqueueing = [asyncio.ensure_future(add.adelay(number, 2)) for number in range(5)]
        await asyncio.sleep(0)
        eventually(lambda: client.llen("celery") == 1)  # the loop stands still meanwhile
        return await asyncio.gather(*enqueueing)

    with redis.Redis.from_url(url) as client:
        jobs = asyncio.run(main(client))
        queued = [json.loads(message)["headers"]["id"] for message in client.lrange("celery", 0, -1)[::-1]]
    assert sent == ["EVALSHA", "EVALSHA"]
    assert queued == [job.id for job in jobs]


def test_a_cancelled_caller_harms_nobody_else(app: Celery, server_lists: Callable[[], Lists]) -> None:
    add = app.tasks["add"]
    add.delay(0, 0)
    server_lists()

    async def main() -> Job:
        first, second = (asyncio.ensure_future(add.adelay(number, 2)) for number in range(2))
        await asyncio.sleep(0)
        first.cancel()
        job = await second
        assert first.cancelled()
        return job

    job = asyncio.run(main())
    assert job.id in [message["headers"]["id"] for message in server_lists()["celery"]]


def test_event_loops_that_have_ended_are_forgotten(app: Celery) -> None:
    async def enqueue() -> "weakref.ref[asyncio.AbstractEventLoop]":
        await app.tasks["add"].adelay(1, 2)
        return weakref.ref(asyncio.get_running_loop())

    loops = [asyncio.run(enqueue()) for _ in range(3)]
    gc.collect()
    assert [loop() for loop in loops] == [None] * 3


def test_threads_enqueue_at_the_same_time(make_app: MakeApp, url: str, server_lists: Callable[[], Lists]) -> None:
    add = make_app(url, timeout=10).tasks["add"]
    start = threading.Barrier(8)

    def enqueue(thread: int) -> list[str]:
        start.wait(10)
        return [add.delay(thread, number).id for number in range(25)]

    with ThreadPoolExecutor(8) as threads:
        ids = [job_id for enqueued in threads.map(enqueue, range(8)) for job_id in enqueued]
    messages = server_lists()["celery"]
    assert sorted(ids) == sorted(message["headers"]["id"] for message in messages)
    assert len({message["properties"]["delivery_tag"] for message in messages}) == 200


def test_a_forked_child_enqueues_as_itself(app: Celery, server_lists: Callable[[], Lists]) -> None:
    add = app.tasks["add"]
    add.delay(0, 0)
    child = os.fork()
    if not child:
        try:
            add.delay(1, 1)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    add.delay(2, 2)
    origins = [message["headers"]["origin"] for message in server_lists()["celery"]]
    assert [origin.partition("@")[0] for origin in origins] == [
        f"gen{pid}" for pid in (os.getpid(), child, os.getpid())
    ]


@contextmanager
def running_in(task: Any, **request: Any) -> Iterator[None]:
    task.push_request(called_directly=False, **request)
    celery._state._task_stack.push(task)
    try:
        yield
    finally:
        celery._state._task_stack.pop()
        task.pop_request()


@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize("special", [{}, {"shadow": "Celery's path"}], ids=["ours", "Celery's"])
def test_a_job_inherits_from_the_one_that_enqueues_it(
    make_app: MakeApp, url: str, server_lists: Callable[[], Lists], awaited: bool, special: dict[str, Any]
) -> None:
    app = make_app(url, task_inherit_parent_priority=True)
    add = app.tasks["add"]
    with running_in(add, id="the-parent", root_id="the-root", delivery_info={"priority": 6}, children=[]):
        call = asyncio.run(add.aapply_async((1, 2), **special)) if awaited else add.apply_async((1, 2), **special)
        assert add.request.children == [call]
    [(name, [message])] = server_lists().items()
    assert name == "celery\x06\x166"
    assert (message["headers"]["root_id"], message["headers"]["parent_id"]) == ("the-root", "the-parent")


INHERITING: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "the task has one": ({}, {"priority": 5}, {}),
    "there is a default": ({"task_default_priority": 5}, {}, {}),
    "the route has one": ({"task_routes": {"x": {"queue": "celery", "priority": 5}}}, {}, {}),
    "there is none": ({}, {}, {}),
    "the call names a queue": ({}, {}, {"queue": "q"}),
    "the call names it": ({}, {}, {"priority": 3}),
}


@pytest.mark.filterwarnings("ignore::celery.exceptions.CDeprecationWarning")
@pytest.mark.parametrize(("configuration", "attributes", "options"), INHERITING.values(), ids=INHERITING)
def test_a_priority_is_inherited_where_celery_does_so(
    make_app: MakeApp,
    url: str,
    server_lists: Callable[[], Lists],
    configuration: dict[str, Any],
    attributes: dict[str, Any],
    options: dict[str, Any],
) -> None:
    app = make_app(url, task_inherit_parent_priority=True, **configuration)
    task = app.task(anything, name="x", shared=False, **attributes)
    found = []
    for enqueue in (
        lambda: in_celerys_way(task, (1,), {}, task_id="the-id", **options),
        lambda: task.apply_async((1,), task_id="the-id", **options),
        lambda: asyncio.run(task.aapply_async((1,), task_id="the-id", **options)),
        lambda: asyncio.run(task.aapply_async((1,), task_id="the-id", shadow="x", **options)),
    ):
        request = {"id": "the-parent", "root_id": "the-root", "delivery_info": {"priority": 0}, "children": []}
        with running_in(app.tasks["add"], **request):
            enqueue()
        [(name, [message])] = server_lists().items()
        found.append((name, message["properties"]["priority"], message["headers"]["parent_id"]))
    assert found == [found[0]] * 4


def test_events_about_jobs_are_celerys_and_only_made_while_somebody_listens(
    app: Celery, url: str, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    add = app.tasks["add"]
    with redis.Redis.from_url(url) as client, client.pubsub() as listener:
        database = url.rpartition("/")[2]  # on others there may be workers, which tell of themselves
        listener.psubscribe(f"/{database}.celeryev*")
        listener.get_message(timeout=1)

        def heard() -> dict[str, Any]:
            return json.loads(listener.get_message(timeout=5)["data"])

        add.apply_async((1,), {"b": "'"}, task_id="the-id", countdown=60)
        ours = heard()
        in_celerys_way(add, (1,), {"b": "'"}, task_id="the-id", countdown=60)
        theirs = heard()
        add.delay_many([(1, 2)] * 3)
        assert {read(heard())["type"] for _ in range(3)} == {"task-sent"}
    ours_read, theirs_read = read(ours), read(theirs)
    assert ours_read.keys() == theirs_read.keys()
    varying = {"eta", "clock", "timestamp"}
    assert {k: v for k, v in ours_read.items() if k not in varying} == {
        k: v for k, v in theirs_read.items() if k not in varying
    }
    assert ours_read["clock"] < theirs_read["clock"]
    for message in (ours, theirs):
        del message["body"], message["properties"]["delivery_tag"]
    assert ours == theirs
    # Nobody listens any more: that is found out once, and not asked again for a moment.
    with redis.Redis.from_url(url) as client:
        eventually(lambda: client.publish("/2.celeryev/task.sent", "") == 0)
    monkeypatch.setattr("backburner.queue.sending.time.monotonic", lambda: 1e9)
    add.delay(1, 2)
    clock = app.clock.value
    add.delay_many([(1, 2)] * 3)
    assert app.clock.value == clock


def read(message: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(kombu.transport.virtual.Channel.codecs["base64"].decode(message["body"]))
    return found


def test_what_is_delayed_waits_in_the_server_if_somebody_looks_after_it(app: Celery, url: str) -> None:
    add = app.tasks["add"]
    with redis.Redis.from_url(url) as client:
        add.apply_async((1, 2), countdown=60)
        assert client.llen("celery") == 1, "only stock workers may be there, and they wait themselves"
        client.zadd("backburner:consumers", {"somebody": 4_000_000_000})
        job = add.apply_async((1, 2), eta=DUE, priority=3)
        in_celerys_way(add, (1, 2), {}, eta=DUE)
        add.apply_async((1, 2), eta=datetime(2020, 1, 1, tzinfo=UTC))
        assert client.llen("celery") == 2, "what is due does not wait"
        assert client.zrange("backburner:delayed", 0, -1, withscores=True)[0][1] == DUE.timestamp()
        name, _, message = client.hget("backburner:delayed:entries", job.id).partition(b"\n")
    assert name == b"celery\x06\x163"
    assert json.loads(message)["headers"]["id"] == job.id


def test_the_servers_forgetting_its_scripts_is_not_noticed(app: Celery, url: str) -> None:
    add = app.tasks["add"]
    add.delay(1, 2)
    with redis.Redis.from_url(url) as client:
        client.script_flush()
        add.delay(1, 2)
        client.script_flush()
        asyncio.run(add.adelay(1, 2))
        assert client.llen("celery") == 3


def test_canvas_is_celerys(app: Celery, server_lists: Callable[[], Lists]) -> None:
    add = app.tasks["add"]
    celery.chain(add.s(1, 2), add.s(3)).delay()
    celery.group(add.s(1, 1), add.s(2, 2)).delay()
    celery.chord([add.s(1, 1), add.s(2, 2)], add.si(3, 3)).delay()
    add.s(1, 2).set(countdown=5).delay()
    headers = [message["headers"] for message in server_lists()["celery"]]
    assert [each["argsrepr"] for each in headers] == ["(1, 2)", "(1, 1)", "(2, 2)", "(1, 1)", "(2, 2)", "(1, 2)"]
    assert len({each["group"] for each in headers}) == 3


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.decimals() | st.datetimes() | st.uuids(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner)
    | st.sets(st.integers()) | st.binary(),
    max_leaves=12,
)  # fmt: skip


CANVASES: dict[str, Callable[[Any], Any]] = {
    "chain": lambda add: add.s(1, 1) | add.s(1) | add.s(1),
    "chord": lambda add: celery.chord([add.s(1, 1), add.s(2, 2)], add.si(0, 0)),
    "chord in a chain": lambda add: add.s(1, 1) | celery.group(add.s(1), add.s(2)) | add.si(0, 0) | add.s(1),
    "chains in a chord": lambda add: celery.chord([add.s(1, 1) | add.s(1), add.s(1, 2)], add.si(0, 0) | add.s(1)),
    "group at the end": lambda add: add.s(1, 1) | celery.group(add.s(1), add.s(2)),
}


@pytest.mark.parametrize("canvas", CANVASES.values(), ids=CANVASES)
def test_the_jobs_that_a_canvas_enqueues_later_are_known_by_their_ids(
    app: Celery, canvas: Callable[[Any], Any], server_lists: Callable[[], Lists]
) -> None:
    def ids(result: Any) -> Iterator[str]:
        for each in getattr(result, "results", [result]):
            yield each.id
        if result.parent is not None:
            yield from ids(result.parent)

    for job_id in ids(canvas(app.tasks["add"]).apply_async()):
        known = app.AsyncResult(job_id).snapshot()
        assert (known.state, known.name) == ("PENDING", "add")
        with pytest.raises(ResultTimeout):
            app.AsyncResult(job_id).get(timeout=0.01)


def test_of_a_job_that_a_canvas_enqueues_later_it_is_known_that_its_result_is_ignored(app: Celery) -> None:
    ignored = app.task(anything, name="ignored", shared=False, ignore_result=True)
    add = app.tasks["add"]
    for last in (ignored.s(), add.s(1).set(ignore_result=True)):
        assert app.AsyncResult((add.s(1, 1) | last).apply_async().id).get(timeout=5) is None


def test_a_chord_that_is_applied_again_is_new_before_any_job_of_it_is_sent(app: Celery) -> None:
    add, backend = app.tasks["add"], app.backend
    again = celery.chord([add.s(1, 1), add.s(2, 2)], add.si(0, 0), app=app)
    again.freeze()
    ended = backend.get_key_for_group(again.apply_async().parent.id, ".c")
    backend.client.set(ended, "done")
    seen = []

    def look(**_: Any) -> None:
        seen.append(backend.client.exists(ended))

    signals.before_task_publish.connect(look)
    try:
        again.apply_async()
    finally:
        signals.before_task_publish.disconnect(look)
    assert seen == [0, 0]


@settings(max_examples=50)
@given(st.lists(VALUES).map(tuple), st.sampled_from([20, 1024]), st.sampled_from([1, 2, 3]))
def test_arguments_are_shown_as_celery_shows_them(value: Any, size: int, levels: int) -> None:
    assert representation(value, size, levels) == saferepr(value, size, maxlevels=levels)


@pytest.mark.slow
def test_a_stock_worker_runs_what_is_enqueued_here(
    app: Celery, server: EmbeddedServer, start_worker: StartWorker
) -> None:
    url = server.url.removesuffix("0") + "3"
    app.conf.update(broker_url=url, result_backend=url)
    double = app.task(anything, name="stock.double", shared=False)
    with start_worker(url, "--pool=threads -c 2", "stock", STOCK_URL=url):

        async def enqueue() -> list[Any]:
            return [await double.adelay(1), await double.aapply_async((2,), countdown=0.5, expires=60)]

        jobs = [*asyncio.run(enqueue()), double.delay(3), *double.delay_many([(4,), [5]], priority=6)]
        assert [job.get(timeout=20) for job in jobs] == [2, 4, 6, 8, 10]
