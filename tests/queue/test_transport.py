"""The transport by itself, on a real server: what is leased, delayed, recovered, and what is kept when it failed."""

import gc
import hashlib
import json
import re
import statistics
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, cast
from unittest.mock import Mock

import kombu
import pytest
import redis
from kombu.asynchronous import Hub

from backburner.errors import ConfigError
from backburner.queue.keys import Keys
from backburner.queue.settlement import Stored
from backburner.queue.transport import channel as channel_module
from backburner.queue.transport import consumer as consumer_module
from backburner.queue.transport import decisions, worker
from backburner.queue.transport.claims import _CLAIM as CLAIM
from backburner.queue.transport.claims import Claims
from backburner.queue.transport.consumer import Consumer, check_version
from backburner.queue.transport.held import QoS
from backburner.queue.transport.native import Thread
from backburner.queue.transport.wire import Wire, pack
from backburner.redis import command
from backburner.testing import FaultProxy
from tests.conftest import Eventually

TRANSPORT = "backburner.queue.transport:Transport"
KEYS = Keys()


class Reader:
    """A consumer of some queues, as any program that uses kombu has it."""

    def __init__(self, url: str, *queues: str, prefetch: int = 10, no_ack: bool = False, **options: Any) -> None:
        self.url = url
        self.connection = kombu.Connection(url, transport=TRANSPORT, transport_options=options)
        self.messages: list[Any] = []
        self.channel: Any = self.connection.channel()
        self.channel.basic_qos(0, prefetch, False)
        consumer = kombu.Consumer(
            self.channel,
            [kombu.Queue(queue) for queue in queues or ("q",)],
            callbacks=[lambda _, message: self.messages.append(message)],
            accept=["json"],
            no_ack=no_ack,
            on_decode_error=lambda message, _: message.ack(),  # as Celery's consumer does
        )
        consumer.consume()

    @property
    def consumer(self) -> Any:
        return self.channel.consumer

    @property
    def leased(self) -> str:
        return KEYS.leased(self.consumer.name)

    def drain(self, count: int, timeout: float = 5) -> list[Any]:
        """Wait until so many messages have come; they are the payloads."""
        until = time.monotonic() + timeout
        while len(self.messages) < count and time.monotonic() < until:
            try:
                self.connection.drain_events(timeout=0.1)
            except TimeoutError:
                continue
        return [message.payload for message in self.messages]

    def take(self, count: int) -> list[Any]:
        """As `drain`, and acknowledge them."""
        payloads = self.drain(count)
        for message in self.messages:
            message.ack()
        self.messages.clear()
        return payloads

    def die(self) -> None:
        """As by SIGKILL: not another word to the server, which finds it dead."""
        consumer = self.consumer
        consumer._stopping = True
        consumer._decisions.hurry()
        assert consumer._thread.join(10)
        consumer.over = True
        self.channel.claims.close()
        self.channel.claims = None
        with redis.Redis.from_url(self.url) as client:
            client.zadd(KEYS.consumers, {consumer.name: 1})

    def close(self) -> None:
        self.messages.clear()
        self.connection.release()


MakeReader = Callable[..., Reader]
Send = Callable[..., None]


@pytest.fixture
def redis_url(request: pytest.FixtureRequest, redis_url: str) -> str:
    if getattr(request, "param", "Valkey") == "Redis":
        url: str = request.getfixturevalue("redis7_url")
        return url
    return redis_url


on_both_servers = pytest.mark.parametrize(
    "redis_url", ["Valkey", pytest.param("Redis", marks=pytest.mark.slow)], indirect=True
)


@pytest.fixture
def client(redis_url: str) -> Iterator["redis.Redis"]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture
def reader(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeReader]:
    monkeypatch.setattr(channel_module, "_idle", {})  # with whatever another test has left on this server
    readers = []

    def make(*queues: str, url: str = redis_url, **options: Any) -> Reader:
        readers.append(Reader(url, *queues, **options))
        return readers[-1]

    yield make
    for each in readers:
        each.close()


@pytest.fixture
def send(redis_url: str) -> Iterator[Send]:
    """Publish with stock kombu, as a stock producer does."""
    with kombu.Connection(redis_url) as connection:
        producer = connection.Producer(serializer="json")

        def send(payload: Any, queue: str = "q", **options: Any) -> None:
            producer.publish(payload, routing_key=queue, **options)

        yield send


def failed(client: Any) -> list[dict[str, str]]:
    return [client.hgetall(f"{KEYS.failed}:{member}") for member in client.zrange(KEYS.failed, 0, -1)]


@pytest.mark.parametrize("version", ["6.2.14", "5.0"])
def test_a_server_that_is_too_old_is_refused_in_words(
    reader: MakeReader, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    call = Consumer._call

    def tell(consumer: Consumer, words: Any) -> Any:
        reply = call(consumer, words)
        return (
            re.sub(rb"redis_version:[\d.]+", f"redis_version:{version}".encode(), reply)
            if words[0] == "INFO"
            else reply
        )

    monkeypatch.setattr(Consumer, "_call", tell)
    with pytest.raises(ConfigError, match=f"Redis {version}, and workers need 7.0 or newer"):
        reader().drain(1, timeout=1)


@pytest.mark.parametrize(
    "told", [b"redis_version:7.0.15\r\n", b"redis_version:10.0\r\nos:Linux", b"nothing of the kind"]
)
def test_a_server_that_is_new_enough_or_does_not_tell_is_not_refused(told: bytes) -> None:
    check_version(told)


@on_both_servers
@pytest.mark.parametrize(("policy", "limit", "warns"), [
    ("noeviction", "1gb", False), ("allkeys-lru", "0", False),
    ("allkeys-lru", "1gb", True), ("volatile-ttl", "1gb", True),
])  # fmt: skip
def test_who_consumes_from_a_server_that_evicts_is_warned(
    reader: MakeReader, client: Any, caplog: pytest.LogCaptureFixture, policy: str, limit: str, warns: bool
) -> None:
    before = client.config_get("maxmemory*")
    client.config_set("maxmemory-policy", policy, "maxmemory", limit)
    try:
        reader().drain(1, timeout=0.1)
    finally:
        client.config_set("maxmemory-policy", before["maxmemory-policy"], "maxmemory", before["maxmemory"])
    told = [each.message for each in caplog.records if "evicts keys" in each.message]
    assert [f"maxmemory-policy {policy}" in each for each in told] == [True] * warns


def test_who_may_not_ask_what_the_server_is_like_consumes_all_the_same(
    reader: MakeReader, send: Send, client: Any, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    client.acl_setuser(
        "safe", enabled=True, passwords=["+x"], commands=["+@all", "-@dangerous"], channels=["*"], keys=["*"]
    )
    try:
        send(1)
        one = reader(url=redis_url.replace("//", "//safe:x@"))
        assert one.take(1) == [1]
        one.close()  # who is forbidden everything could not say goodbye
    finally:
        client.acl_deluser("safe")
    assert "what the broker is like cannot be checked" in caplog.text


def test_a_message_is_leased_until_it_is_acknowledged(
    reader: MakeReader, send: Send, client: Any, eventually: Eventually
) -> None:
    one = reader()
    send("hello")
    assert one.drain(1) == ["hello"]
    assert client.llen("q") == 0
    assert client.hlen(one.leased) == 1
    one.messages[0].ack()
    eventually(lambda: not client.exists(one.leased))


def test_priorities_are_ten_and_the_first_is_zero_whoever_sends(
    reader: MakeReader, send: Send, redis_url: str, client: Any
) -> None:
    order = [9, 1, 5, 0, 2, 8, 3, 7, 4, 6]
    with kombu.Connection(redis_url, transport=TRANSPORT) as ours:
        producer = ours.Producer(serializer="json")
        for priority in order:
            send(priority, priority=priority)
            producer.publish(priority, routing_key="q", priority=priority)
    assert set(client.keys("q*")) == {f"q{end}" for end in ("", "\x06\x163", "\x06\x166", "\x06\x169")}
    assert reader(prefetch=3).take(3) == [0, 0, 1]
    assert reader(prefetch=0).take(17) == [1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9]


def test_priorities_in_lists_with_another_separator_are_in_their_order_too(
    reader: MakeReader, redis_url: str, client: Any
) -> None:
    # As Celery's documentation has it.
    options = {"priority_steps": list(range(10)), "sep": ":", "queue_order_strategy": "priority"}
    with kombu.Connection(redis_url, transport="redis", transport_options=options) as connection:
        producer = connection.Producer(serializer="json")
        for priority in (5, 3, 0, 4):
            producer.publish(priority, routing_key="q", priority=priority)
    assert set(client.keys("q*")) == {"q", "q:3", "q:4", "q:5"}
    one = reader(**options)
    assert one.channel._size("q") == 4
    assert one.take(4) == [0, 3, 4, 5]


def test_thousands_are_sorted_a_part_at_a_time(reader: MakeReader, client: Any, redis_url: str) -> None:
    def message(priority: int) -> str:
        info = {"exchange": "", "routing_key": "q"}
        properties = {"delivery_info": info, "priority": priority, "delivery_tag": f"{priority}"}
        return json.dumps({"body": str(priority), "headers": {}, "content-type": "application/json",
                           "content-encoding": "utf-8", "properties": properties})  # fmt: skip

    client.lpush("q", *[message(2)] * 1500, *[message(1)] * 1500, message(0))
    one = reader(prefetch=2)
    one.channel.tick()
    assert one.take(2) == [0, 1]
    assert one.take(2) == [1, 1]
    assert client.llen("q") == 0
    assert one.channel._size("q") == 2997


def test_the_last_of_ours_leaves_what_stock_consumers_look_at(reader: MakeReader, send: Send, client: Any) -> None:
    order = [2, 5, 2, 4, 1, 8, 1]
    for priority in order:
        send(priority, priority=priority)
    first, last = reader(prefetch=1), reader("elsewhere")
    last.drain(1, timeout=0.1)
    assert first.drain(1) == [1]
    assert {"q\x06\x161", "q\x06\x162"} <= set(client.keys("q*"))
    first.close()
    assert {"q\x06\x161", "q\x06\x162"} <= set(client.keys("q*")), "another one of ours is there"
    last.close()
    again = reader(prefetch=1)
    assert again.drain(1) == [1]
    again.close()
    stock = [message["properties"]["priority"] for message in map(json.loads, reversed(client.lrange("q", 0, -1)))]
    assert stock == [1, 1, 2, 2]
    assert set(client.keys("q*")) == {"q", "q\x06\x163", "q\x06\x166"}
    assert reader().take(7) == sorted(order)


def test_a_full_queue_does_not_keep_another_waiting(reader: MakeReader, send: Send) -> None:
    for n in range(30):
        send(n, "full")
    send("rare", "before")
    send("seldom", "behind")
    assert {"rare", "seldom"} < set(reader("before", "full", "behind", prefetch=4).drain(4))


def test_who_waits_is_told_of_a_new_message_and_asks_nothing_meanwhile(
    reader: MakeReader, send: Send, client: Any
) -> None:
    one = reader()
    one.drain(1, timeout=0.2)
    before = client.info("commandstats")["cmdstat_rpop"]["calls"]
    one.drain(1, timeout=0.3)
    assert client.info("commandstats")["cmdstat_rpop"]["calls"] == before
    took = []
    for priority in (0, 7, 0, 7):
        sent = time.monotonic()
        send("now", priority=priority)
        assert one.take(1) == ["now"]
        took.append(time.monotonic() - sent)
    assert statistics.median(took) < 0.5, "a machine may stand still; not each time"


def test_who_is_told_of_messages_asks_for_them_at_once(
    reader: MakeReader, send: Send, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = reader()
    one.drain(1, timeout=0.2)
    send("now")
    eventually(lambda: one.channel.claims.connection.can_read(timeout=0))
    read, is_asked = Claims.read, []

    def noted(claims: Claims) -> bool:
        is_asked.append(claims._asked_at is not None)
        return read(claims)

    monkeypatch.setattr(Claims, "read", noted)
    assert one.take(1) == ["now"]
    assert is_asked[:2] == [False, True]


def test_a_claim_whose_reply_was_lost_is_answered_by_the_next(
    reader: MakeReader, send: Send, client: Any, eventually: Eventually
) -> None:
    reader("elsewhere").drain(1, timeout=0.1)  # the server knows the script now, and needs no second request
    one = reader()
    send(1)
    send(2)
    one.channel.tick()
    eventually(lambda: client.hlen(one.leased) == 2)
    channel = one.channel
    channel.claims.close()
    channel.claims = Claims(channel._connect_async, channel.consumer, channel.keys)
    channel.connection.cycle.serve(channel)
    assert one.take(2) == [1, 2]
    eventually(lambda: not client.exists(one.leased))


@pytest.mark.slow
@on_both_servers
@pytest.mark.parametrize("delayed", [False, True])
def test_long_messages_come_a_few_at_a_time_also_if_the_reply_was_lost(
    reader: MakeReader, send: Send, client: Any, eventually: Eventually, delayed: bool
) -> None:
    reader("elsewhere").drain(1, timeout=0.1)  # the server knows the script now, and needs no second request
    one = reader(prefetch=0)
    for number in range(40):
        send(f"{number} {'x' * 600_000}")
    if delayed:
        entries = {f"{number:02}": f"q\n{client.rpop('q')}" for number in range(40)}
        client.hset(KEYS.delayed_entries, mapping=entries)
        client.zadd(KEYS.delayed, dict.fromkeys(entries, 1))
    one.channel.tick()
    assert 10 < eventually(lambda: client.hlen(one.leased)) < 40
    channel = one.channel
    channel.claims.close()
    channel.claims = Claims(channel._connect_async, channel.consumer, channel.keys)
    channel.connection.cycle.serve(channel)
    assert [int(text.split()[0]) for text in one.take(40)] == list(range(40))
    eventually(lambda: not client.exists(one.leased))


def test_a_claim_that_comes_while_its_consumer_ends_takes_nothing_along(
    reader: MakeReader, send: Send, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = reader(prefetch=2)
    for n in range(6):
        send(n)
    assert one.drain(2) == [0, 1]
    consumer, call, claimed = one.consumer, Consumer._call, []

    def and_a_claim_arrives(consumer: Consumer, words: Any) -> Any:
        reply = call(consumer, words)
        wire = Wire(consumer.connect)
        lists = KEYS.lists("q")
        keys = (KEYS.leased(consumer.name), KEYS.consumers, KEYS.delayed, KEYS.delayed_entries, *lists)
        with suppress(redis.ResponseError):
            claimed.append(wire.call((CLAIM, len(keys), *keys, consumer.name, 1, 100 + len(claimed), 1)))
        wire.close()
        return reply

    monkeypatch.setattr(Consumer, "_call", and_a_claim_arrives)
    consumer.stop()
    assert not client.exists(KEYS.leased(consumer.name))
    assert client.llen("q") == 6


def test_a_server_that_forgot_everything_is_consumed_from_again(
    reader: MakeReader, send: Send, client: Any, eventually: Eventually
) -> None:
    one = reader()
    send("before")
    one.drain(1)
    first = one.consumer.name
    client.flushall()
    send("after")
    assert one.drain(2) == ["before", "after"]
    assert one.consumer.name != first
    for message in one.messages:
        message.ack()
    eventually(lambda: not client.exists(one.leased))
    assert client.zrange(KEYS.consumers, 0, -1) == [one.consumer.name]


def test_scripts_that_were_flushed_are_sent_again(reader: MakeReader, send: Send, client: Any) -> None:
    one = reader()
    one.drain(1, timeout=0.2)
    client.script_flush()
    send("hello")
    assert one.drain(1) == ["hello"]
    client.script_flush()
    one.messages.pop().requeue()
    assert one.take(1) == ["hello"]


def test_who_needs_no_acknowledgement_needs_no_lease(reader: MakeReader, send: Send, client: Any) -> None:
    one = reader(no_ack=True)
    send("hello")
    assert one.drain(1) == ["hello"]
    assert not client.exists(KEYS.consumers)


def eta(seconds: float) -> dict[str, Any]:
    return {"eta": (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()}


def test_a_delayed_message_of_a_stock_producer_waits_on_the_server(
    reader: MakeReader, send: Send, client: Any, eventually: Eventually
) -> None:
    one = reader()
    one.drain(1, timeout=0.1)
    due = time.time() + 0.4
    send("later", headers=eta(0.4))
    one.drain(1, timeout=0.1)
    eventually(lambda: client.zcard(KEYS.delayed) == 1)
    assert not client.exists(one.leased)
    assert one.drain(1) == ["later"]
    assert 0 <= time.time() - due < 1.5, "not when it asks again anyway"
    assert one.messages[0].headers["eta"] is None, "a worker with a slow clock must not wait again"
    assert not client.exists(KEYS.delayed, KEYS.delayed_entries)


def test_two_delayed_messages_of_one_job_are_two(reader: MakeReader, send: Send, client: Any) -> None:
    one = reader()
    for n in range(2):
        send(n, headers={"id": "same", **eta(0.4)})
    assert sorted(one.take(2)) == [0, 1]


@pytest.mark.parametrize("transport", ["redis", TRANSPORT], ids=["stock", "ours"])
def test_a_delayed_job_that_goes_to_three_queues_comes_from_all(
    reader: MakeReader, redis_url: str, client: Any, eventually: Eventually, transport: str
) -> None:
    queues = ["a", "b", "c"]
    one = reader(*queues)
    one.drain(1, timeout=0.1)
    with kombu.Connection(redis_url, transport=transport) as connection:
        exchange = kombu.Exchange("to all", "direct")
        declare = [kombu.Queue(queue, exchange, "job") for queue in queues]
        headers = {"task": "add", "id": "job", **eta(1)}
        connection.Producer(serializer="json").publish("x", "job", exchange=exchange, declare=declare, headers=headers)
    eventually(lambda: one.drain(1, timeout=0.05) or client.zcard(KEYS.delayed) == 3)
    assert one.take(3) == ["x"] * 3


def test_what_a_dead_consumer_held_is_with_another_in_the_old_order_and_once(
    reader: MakeReader, send: Send, client: Any
) -> None:
    dead = reader(prefetch=3, lease=1)
    for n in range(5):
        send(n)
    assert dead.drain(3) == [0, 1, 2]
    dead.die()
    others = [reader(prefetch=10, lease=1) for _ in range(2)]
    until = time.monotonic() + 5
    while sum(len(other.messages) for other in others) < 5 and time.monotonic() < until:
        for other in others:
            other.drain(99, timeout=0.05)
    got = [[message.payload for message in other.messages] for other in others]
    assert sorted(got[0] + got[1]) == [0, 1, 2, 3, 4]
    again = {
        message.payload for other in others for message in other.messages if "redelivered" in message.delivery_info
    }
    assert again == {0, 1, 2}
    assert not client.exists(dead.leased)


def test_a_thousand_queues_are_not_compared_with_each_other_each_time_the_event_loop_comes_round(
    reader: MakeReader,
) -> None:
    compared = []

    class Name(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            compared.append(other)
            return str.__eq__(self, other)

    channel = reader(*(Name(f"q{n}") for n in range(20))).channel
    compared.clear()
    assert not channel.active_queues
    assert len(compared) <= 20


def test_what_a_worker_that_is_told_to_stop_has_not_begun_goes_back_in_its_order(
    reader: MakeReader, send: Send, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = reader(prefetch=3)
    for n in range(4):
        send(n)
    assert one.drain(3) == [0, 1, 2]
    monkeypatch.setattr(worker, "reserved", lambda: [Mock(message=message) for message in one.messages])
    one.channel.give_back()
    one.consumer.flush()
    assert reader().drain(4) == [0, 1, 2, 3]


def test_what_comes_from_a_queue_that_was_cancelled_meanwhile_goes_back_in_its_order(
    reader: MakeReader, send: Send, client: Any, eventually: Eventually
) -> None:
    one = reader("other", prefetch=4)
    extra = kombu.Consumer(one.channel, [kombu.Queue("q")])
    extra.consume()
    for n in range(3):
        send(n)
    client.script_load(CLAIM.text)  # nobody reads here that the server does not know it
    one.channel.tick()
    eventually(lambda: client.llen("q") == 0)
    extra.cancel()
    one.drain(1, timeout=0.3)
    eventually(lambda: client.llen("q") == 3)
    assert reader().drain(3) == [0, 1, 2]


def test_who_lost_its_lease_cannot_acknowledge_for_another(
    reader: MakeReader, send: Send, client: Any, eventually: Eventually
) -> None:
    late, other = reader(lease=1), reader(prefetch=1, lease=1)
    other.channel.tick()
    send("hello")
    late.drain(1)
    message = late.messages[0]
    late.die()
    other.drain(1)
    message.ack()
    late.consumer.flush()
    assert client.hlen(other.leased) == 1


@pytest.mark.slow
def test_a_message_that_kills_three_workers_has_failed_and_those_behind_it_have_not(
    reader: MakeReader, send: Send, client: Any, eventually: Eventually
) -> None:
    send("poison")
    send("innocent")
    for _ in range(3):
        dead = reader(prefetch=2, lease=1)
        dead.drain(1)
        eventually(lambda: dead.drain(2, timeout=0.1) and len(dead.messages) == 2)  # noqa: B023  # called at once
        assert dead.messages[0].payload == "poison"
        dead.die()
        survivor = reader("elsewhere", lease=1)
        survivor.channel.tick()
        eventually(lambda: not client.exists(dead.leased))  # noqa: B023
        survivor.close()
    (record,) = failed(client)
    assert record["reason"] == "crashed"
    assert json.loads(record["message"])["properties"]["delivery_info"]["redelivered"]
    assert reader().take(1) == ["innocent"]
    assert all(client.ttl(key) > 0 for key in client.scan_iter(f"{KEYS.crashes}*"))


@pytest.mark.slow
def test_what_runs_beside_a_message_that_kills_three_workers_does_not_fail_with_it(
    reader: MakeReader, send: Send, client: Any, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "slots", lambda: 4)
    for payload in ("innocent", "poison", "also innocent"):
        send(payload)

    def die(dead: Any) -> None:
        dead.die()
        survivor = reader("elsewhere", lease=1)
        survivor.channel.tick()
        eventually(lambda: not client.exists(dead.leased))
        survivor.close()

    for _ in range(2):
        dead = reader(lease=1)
        eventually(lambda: dead.drain(3, timeout=0.1) and len(dead.messages) == 3)  # noqa: B023  # called at once
        die(dead)
    done = set()
    while len(done) < 2 or not failed(client):
        send("fresh")
        one = reader(lease=1)
        one.drain(2)
        assert len(one.drain(3, timeout=1.5)) == 2, "one suspect at a time, and what nobody suspects"
        fresh, suspect = sorted(one.messages, key=lambda message: message.payload != "fresh")
        fresh.ack()
        if suspect.payload == "poison":
            one.consumer.flush()
            die(one)
        else:
            done.add(suspect.payload)
            suspect.ack()
            one.close()
    [record] = failed(client)
    assert record["reason"] == "crashed"
    assert done == {"innocent", "also innocent"}


def test_what_cannot_be_read_is_kept(reader: MakeReader, send: Send, client: Any, eventually: Eventually) -> None:
    client.lpush("q", "no message", '{"properties": {}}')
    send(b"no json", content_type="application/json", content_encoding="utf-8", serializer=None)
    send("readable")
    one = reader()
    one.drain(1)
    eventually(lambda: len(failed(client)) == 3)
    assert {record["reason"] for record in failed(client)} == {"undecodable"}
    assert {record["list"] for record in failed(client)} == {"q"}
    assert one.take(1) == ["readable"]


def changed(part: str, **changes: Any) -> Any:
    """A job's message with changes in one part; ... takes something out."""
    headers = {"task": "add", "id": "1", "timelimit": [None, 1.5], "stamped_headers": ["a"], "stamps": {"a": "b"}}
    properties = {"delivery_tag": "tag", "delivery_info": {"exchange": "", "routing_key": "q"}, "priority": 0,
                  "body_encoding": "base64"}  # fmt: skip
    message = {"body": "W1tdLCB7fSwge31d", "content-type": "application/json", "content-encoding": "utf-8",
               "headers": headers, "properties": properties}  # fmt: skip
    of: dict[str, Any] = {"": message, "headers": headers, "properties": properties}[part]
    of |= {name.replace("_", "-") if part == "" else name: value for name, value in changes.items()}
    for name in [name for name, value in of.items() if value is ...]:
        del of[name]
    return message


@pytest.mark.parametrize(
    "message",
    [
        changed("", body="!"),
        changed("", body=5),
        changed("", body=...),
        changed("", content_type=...),
        changed("", content_type=[1]),
        changed("", content_encoding=5),
        changed("", headers=[1]),
        changed("properties", body_encoding="foo"),
        changed("properties", delivery_info="x"),
        changed("headers", task=["add"]),
        changed("headers", id=[5]),
        changed("headers", id=...),
        changed("headers", timelimit=5),
        changed("headers", timelimit=[1]),
        changed("headers", timelimit=["1", None]),
        changed("headers", stamped_headers=5),
        changed("headers", stamped_headers=[[]]),
        changed("headers", stamps=5),
    ],
)
def test_a_job_that_celery_would_fail_on_is_kept(
    reader: MakeReader, client: Any, monkeypatch: pytest.MonkeyPatch, eventually: Eventually, message: Any
) -> None:
    monkeypatch.setattr(worker, "is_here", lambda: True)
    client.lpush("q", json.dumps(message), json.dumps(changed("")))
    one = reader()
    assert one.take(1) == [[[], {}, {}]]
    eventually(lambda: [record["reason"] for record in failed(client)] == ["undecodable"])
    eventually(lambda: not client.exists(one.leased))


@pytest.mark.parametrize(
    "message", [changed("", headers=None), changed("headers", task=..., id=5, timelimit="of mine")]
)
def test_what_is_no_job_need_not_be_as_celery_has_it(reader: MakeReader, client: Any, message: Any) -> None:
    client.lpush("q", json.dumps(message))
    assert reader().take(1) == [[[], {}, {}]]


@pytest.mark.parametrize("value", [2**64, -(2**70), [{"deep": 2**64}], 1.5, float("inf"), "\ud800", {"a": {"b": None}}])
def test_headers_of_ones_own_arrive_as_they_were_sent(reader: MakeReader, send: Send, value: Any) -> None:
    send("body", headers={"task": "add", "mine": value})
    one = reader()
    assert one.drain(1) == ["body"]
    assert one.messages[0].headers["mine"] == value
    assert type(one.messages[0].headers["mine"]) is type(value)


def test_what_is_rejected_is_kept_and_what_is_requeued_comes_again(
    reader: MakeReader, send: Send, client: Any, eventually: Eventually
) -> None:
    one = reader()
    send("hello")
    one.drain(1)
    one.messages.pop().requeue()
    one.drain(1)
    assert one.messages[0].delivery_info["redelivered"]
    one.messages.pop().reject()
    eventually(lambda: [record["reason"] for record in failed(client)] == ["rejected"])
    assert not client.exists(one.leased)


def test_what_was_fetched_is_kept_until_it_is_settled(redis_url: str, send: Send, client: Any) -> None:
    with kombu.Connection(redis_url, transport=TRANSPORT) as connection:
        queue: Any = kombu.Queue("q", channel=connection.channel())
        for number in range(4):
            send(number)
        acknowledged, requeued, rejected, open_ = queue.get(), queue.get(), queue.get(), queue.get()
        assert queue.get() is None
        assert client.hlen("unacked") == 4
        acknowledged.ack()
        requeued.requeue()
        rejected.reject()
        assert queue.get().payload == requeued.payload == 1
        assert client.hlen("unacked") == 2
        assert open_.payload == 3
    assert client.llen("q") == 2, "what was not settled goes back when the connection is closed"
    assert not client.exists("unacked", "unacked_index")


def test_what_came_along_with_a_message_that_raised_goes_back(
    reader: MakeReader, send: Send, client: Any, eventually: Eventually
) -> None:
    class FirstRaises(list[Any]):
        def append(self, message: Any) -> None:
            super().append(message)
            if len(self) == 1:
                raise IndexError("the first one")

    one = reader(prefetch=4)
    one.messages = FirstRaises()
    for number in range(10):
        send(number)
    with pytest.raises(IndexError, match="the first one"):
        one.drain(4)
    eventually(lambda: client.hlen(one.leased) == 1)
    assert one.drain(4) == [0, 1, 2, 3]
    assert client.hlen(one.leased) == 4


def test_a_message_whose_task_is_null_is_kept(
    reader: MakeReader, send: Send, client: Any, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(worker, "knows", lambda task: task == "add")
    one = reader()
    send("hello", headers={"task": None, "id": "1"})
    one.drain(1)
    one.messages.pop().reject()
    eventually(lambda: [record["reason"] for record in failed(client)] == ["unknown task"])
    assert not client.exists(one.leased)


@on_both_servers
@pytest.mark.parametrize("trouble", ["it is full", "its answer is an error"])
def test_a_message_of_an_unknown_task_is_put_off_also_if_the_server_is_in_trouble(
    reader: MakeReader,
    send: Send,
    client: Any,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Eventually,
    trouble: str,
) -> None:
    monkeypatch.setattr(worker, "knows", lambda task: task != "nope")
    one = reader()
    one.drain(1, timeout=0.1)
    send("unknown", headers={"task": "nope"})
    send("known", headers={"task": "add"})
    if trouble == "it is full":
        client.config_set("maxmemory", 1)
    else:
        tag = json.loads(client.lindex("q", -1))["properties"]["delivery_tag"]
        client.lpush(KEYS.unknown(tag), "no time")
    try:
        assert one.take(1) == ["known"]
        eventually(lambda: client.zcard(KEYS.delayed) == 1)
        eventually(lambda: not client.exists(one.leased))
    finally:
        client.config_set("maxmemory", 0)


def test_what_came_along_with_an_unknown_task_goes_back_if_the_server_falls_silent(
    reader: MakeReader, send: Send, client: Any, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(worker, "knows", lambda task: task != "nope")
    for number in range(3):
        send(number, headers={"task": "nope" if number == 1 else "add"})
    one = reader()
    with monkeypatch.context() as silent:
        silent.setattr(one.channel, "_tolerate", Mock(side_effect=redis.TimeoutError))
        with pytest.raises(redis.TimeoutError):
            one.drain(3)
    assert one.take(2) == [0, 2]
    eventually(lambda: not client.exists(one.leased))
    assert client.zcard(KEYS.delayed) == 1


def test_a_message_that_everybody_has_forgotten_goes_back(reader: MakeReader, send: Send) -> None:
    one = reader()
    send("hello")
    one.drain(1)
    one.messages.clear()
    gc.collect()
    assert one.take(1) == ["hello"]


def test_the_last_message_that_is_done_with_waits_for_no_others(
    reader: MakeReader, send: Send, client: Any, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(consumer_module, "_BATCH_TIME", 60.0)
    for number in range(3):
        send(number)
    mine = reader()
    mine.drain(3)
    first, second, last = mine.messages
    first.ack()
    second.ack()
    assert client.hlen(mine.leased) == 3
    last.ack()
    eventually(lambda: client.hlen(mine.leased) == 0)


@pytest.mark.slow
def test_a_lease_is_renewed_while_nothing_can_be_told(
    reader: MakeReader, send: Send, client: Any, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    def tell(_: Any) -> None:
        raise redis.TimeoutError("the network is slow")

    mine = reader(lease=2)
    send("hello")
    mine.drain(1)
    monkeypatch.setattr(decisions.Decisions, "tell", tell)
    lease = client.zscore(KEYS.consumers, mine.consumer.name)
    eventually(lambda: (client.zscore(KEYS.consumers, mine.consumer.name) or 0) > lease + 1.5, timeout=5)


def test_an_error_of_any_kind_is_logged_and_does_not_end_the_leases_thread(
    reader: MakeReader,
    send: Send,
    client: Any,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Eventually,
    caplog: pytest.LogCaptureFixture,
) -> None:
    errors = [RuntimeError("can't start new thread")]

    def tell_failures(*_: Any) -> None:
        if errors:
            raise errors.pop()

    monkeypatch.setattr(worker, "tell_failures", tell_failures)
    mine = reader(lease=2)
    send("hello")
    mine.drain(1)
    client.sadd(KEYS.untold, "somebody")
    eventually(lambda: not errors)
    lease = client.zscore(KEYS.consumers, mine.consumer.name)
    eventually(lambda: client.zscore(KEYS.consumers, mine.consumer.name) > lease)
    mine.messages.pop().ack()
    eventually(lambda: not client.exists(mine.leased))
    assert "can't start new thread" in caplog.text


def test_a_thread_that_could_not_be_started_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    thread = Thread(lambda: None, "one too many")
    with pytest.raises(RuntimeError, match="new thread"):
        thread.start()
    assert thread.join(0)


def test_results_that_wait_when_the_lease_is_lost_are_stored(
    reader: MakeReader, send: Send, client: Any, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    mine = reader(lease=2)
    send("hello")
    mine.drain(1)
    consumer = mine.consumer
    monkeypatch.setattr(consumer._decisions, "tell", lambda: None)
    consumer.store(Stored(b"celery-task-meta-hello", '{"status": "SUCCESS"}', 60))
    client.zrem(KEYS.consumers, consumer.name)
    eventually(lambda: consumer._thread.join(0))
    assert consumer.over
    assert client.exists("celery-task-meta-hello")


def test_nothing_stays_of_a_consumer_that_lost_its_lease(reader: MakeReader, eventually: Eventually) -> None:
    one = reader()
    one.channel.tick()
    lost, name = weakref.ref(one.consumer), one.consumer.name
    one.consumer.lost()
    one.drain(1, timeout=0.1)
    assert one.consumer.name != name
    watched = [sock.fileno() for sock in one.channel.connection.cycle._chan_to_sock.values()]
    assert watched == list(one.channel.connection.cycle.fds), "a closed one may have become another connection's"

    def is_gone() -> bool:
        gc.collect()
        return lost() is None

    eventually(is_gone)


@pytest.mark.parametrize("is_here", [True, False])
def test_only_a_worker_hangs_if_its_event_loop_stands_still(
    reader: MakeReader, send: Send, monkeypatch: pytest.MonkeyPatch, is_here: bool
) -> None:
    monkeypatch.setattr(worker, "is_here", lambda: is_here)
    mine = reader(watchdog=0)
    send("hello")
    mine.drain(1)
    assert mine.consumer._hangs() == is_here


UNSENDABLE = ("SET", "anything", None)
HALF_A_CHARACTER = ("SET", "anything", "\ud800")
REFUSED = ("LPUSH", KEYS.consumers, "anything")


@pytest.mark.parametrize("call", [UNSENDABLE, HALF_A_CHARACTER, REFUSED])
def test_what_never_can_be_told_is_logged_and_holds_up_nothing(
    reader: MakeReader,
    send: Send,
    client: Any,
    eventually: Eventually,
    call: tuple[Any, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    send("hello")
    mine = reader()
    mine.drain(1)
    mine.consumer._decisions.decide(*call)
    mine.consumer.store(Stored(b"celery-task-meta-hello", '{"status": "SUCCESS"}', 60))
    mine.messages.pop().ack()
    eventually(lambda: mine.consumer._decisions.are_told)
    assert client.exists("celery-task-meta-hello")
    assert not client.exists(mine.leased)
    assert "cannot be told" in caplog.text


def test_a_message_whose_result_cannot_be_stored_is_kept_as_failed_and_holds_up_no_other(
    reader: MakeReader, send: Send, client: Any, eventually: Eventually
) -> None:
    client.lpush("celery-task-meta-0", "somebody else's")
    for number in range(3):
        send(number)
    mine = reader()
    mine.drain(3)
    late, *others = mine.messages
    for number, message in enumerate(mine.messages):
        state = Stored(b"celery-task-meta-%d" % number, '{"status": "SUCCESS"}', 60, False, message.delivery_tag)
        assert mine.consumer.store(state)
    others[0].ack()
    eventually(lambda: mine.consumer._decisions.are_told)
    late.ack()
    others[1].ack()
    eventually(lambda: mine.consumer._decisions.are_told)
    assert client.exists("celery-task-meta-1", "celery-task-meta-2") == 2
    assert not client.exists(mine.leased)
    (record,) = failed(client)
    assert (record["reason"], json.loads(record["message"])["properties"]["delivery_info"]) == (
        "unrecorded",
        late.delivery_info,
    )
    assert "WRONGTYPE" in record["detail"]


def test_what_is_the_servers_state_and_not_the_calls_fault_is_told_again(
    reader: MakeReader, send: Send, client: Any, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    send("hello")
    mine = reader()
    mine.drain(1)
    refusals = [redis.ReadOnlyError("a replica")] * 2
    read_all = Wire.read_all

    def read(wire: Wire, calls: Any) -> list[Any]:
        replies = read_all(wire, calls)
        return [refusals.pop()] if calls and calls[0][0] == "SET" and refusals else replies

    monkeypatch.setattr(Wire, "read_all", read)
    client.set("told", "not yet")
    mine.consumer._decisions.decide("SET", "told", "again")
    eventually(lambda: not refusals)
    client.set("told", "not yet")
    eventually(lambda: client.get("told") == "again")


def test_a_failure_keeps_the_beginning_of_its_detail_whatever_that_is(
    reader: MakeReader, send: Send, client: Any, eventually: Eventually
) -> None:
    details = {"null": None, "half a character": "\ud800", "long": "x" * 10**6}
    for name in details:
        send(name)
    mine = reader()
    mine.drain(3)
    for message in mine.messages:
        mine.channel.qos.bury(message.delivery_tag, "unknown task", details[message.payload])
    eventually(lambda: mine.consumer._decisions.are_told)
    assert [each["detail"][:10_001] for each in failed(client)] == ["None", "\\ud800", "x" * 10_000]


def test_a_result_that_others_would_wait_for_is_left_to_the_caller(reader: MakeReader) -> None:
    mine = reader()
    mine.drain(1, timeout=0.1)
    huge = Stored(b"celery-task-meta-huge", b"x" * (decisions.LONGEST + 1), 60)
    assert not mine.consumer.store(huge)


def test_results_leave_a_part_at_a_time_and_nothing_is_acknowledged_before_the_last(
    reader: MakeReader, send: Send, client: Any, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    send("hello")
    mine = reader()
    mine.drain(1)
    sent = []
    send_all = Wire.send_all

    def spy(wire: Wire, calls: Any) -> None:
        sent.append(sum(len(pack(call)) for call in calls))
        if sent[-1] > decisions.LONGEST // 2:
            assert client.exists(mine.leased)
        send_all(wire, calls)

    monkeypatch.setattr(Wire, "send_all", spy)
    result = b'{"status": "SUCCESS", "result": "%s"}' % (b"x" * 100_000)
    with mine.consumer._decisions._speaking:
        for number in range(5):
            assert mine.consumer.store(Stored(b"celery-task-meta-%d" % number, result, 60))
        mine.messages.pop().ack()
    eventually(lambda: mine.consumer._decisions.are_told)
    assert max(sent) < decisions.LONGEST + 1000
    assert len(client.keys("celery-task-meta-*")) == 5
    assert not client.exists(mine.leased)


def test_a_message_is_acknowledged_to_the_consumer_that_leases_it_whichever_channel_delivers_it(
    reader: MakeReader, send: Send, client: Any, eventually: Eventually
) -> None:
    one = reader("q", prefetch=1)
    second = one.connection.channel()
    kept: list[Any] = []

    def consume(queue: str) -> None:
        kombu.Consumer(second, [kombu.Queue(queue)], callbacks=[lambda _, each: kept.append(each)]).consume()

    def drain(count: int) -> None:
        while len(kept) < count:
            one.connection.drain_events(timeout=5)

    consume("r")
    send("kept", "r")
    drain(1)
    second.basic_qos(0, 1, False)
    consume("q")  # which the first channel claims, and the last one to consume it delivers
    send("done", "q")
    drain(2)
    leased = [KEYS.leased(channel.consumer.name) for channel in (one.channel, second)]
    assert [client.hlen(each) for each in leased] == [1, 1]
    kept.pop().ack()
    eventually(lambda: client.hlen(leased[0]) == 0)
    assert [entry.partition("\n")[0] for entry in client.hvals(leased[1])] == ["r"]
    kept.pop().ack()
    eventually(lambda: client.hlen(leased[1]) == 0)


@pytest.fixture
def senders(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The threads from which something was sent."""
    sent: list[int] = []
    send_all = Wire.send_all

    def spy(wire: Wire, calls: Any) -> None:
        sent.append(threading.get_ident())
        send_all(wire, calls)

    monkeypatch.setattr(Wire, "send_all", spy)
    return sent


def test_what_is_decided_last_leaves_from_the_thread_that_decided_it(
    reader: MakeReader, send: Send, client: Any, eventually: Eventually, senders: list[int]
) -> None:
    for number in range(2):
        send(number)
    mine = reader()
    mine.drain(2)
    mine.consumer._decisions.hurry()  # or the connection is made when the lease is to be renewed
    eventually(lambda: mine.consumer._decisions.line is not None)
    senders.clear()
    mine.messages[0].ack()
    eventually(lambda: client.hlen(mine.leased) == 1)
    assert threading.get_ident() not in senders, "another one may end soon"
    eventually(lambda: mine.consumer._decisions.are_told)
    mine.messages[1].ack()
    assert senders[-1] == threading.get_ident()
    eventually(lambda: client.hlen(mine.leased) == 0)
    eventually(lambda: mine.consumer._decisions.are_told)


@pytest.mark.parametrize("what", ["much", "gevent"])
def test_what_could_hold_up_the_thread_that_decided_does_not_leave_from_it(
    reader: MakeReader,
    send: Send,
    client: Any,
    eventually: Eventually,
    senders: list[int],
    what: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send("hello")
    mine = reader()
    mine.drain(1)
    mine.consumer._decisions.hurry()  # or the connection is made when the lease is to be renewed
    eventually(lambda: mine.consumer._decisions.line is not None)
    senders.clear()
    if what == "much":
        result = '{"status": "SUCCESS", "result": "' + 20_000 * "x" + '"}'
        assert mine.consumer.store(Stored(b"celery-task-meta-much", result, 60))
    else:
        monkeypatch.setattr(decisions, "gevent_is_here", lambda: True)
    mine.messages[0].ack()
    eventually(lambda: client.hlen(mine.leased) == 0)
    eventually(lambda: mine.consumer._decisions.are_told)
    assert senders
    assert threading.get_ident() not in senders


class _StruckError(Exception):
    """What a signal handler raises."""


def _strike_after(calls: int) -> Callable[..., None]:
    """A profile function that raises where a signal handler could: when a function in C has returned to decisions.py,
    the so many-th one."""
    left = calls

    def profile(frame: Any, event: str, _: Any) -> None:
        nonlocal left
        if event == "c_return" and frame.f_code.co_filename == decisions.__file__:
            left -= 1
            if left == 0:
                raise _StruckError

    return profile


@pytest.mark.slow
def test_a_signal_handler_that_raises_wherever_it_strikes_keeps_nothing_from_being_told(
    reader: MakeReader, send: Send, client: Any, eventually: Eventually
) -> None:
    mine = reader(lease=1)
    mine.drain(1, timeout=0.1)
    made = mine.consumer._decisions
    for strike in count(1):
        eventually(lambda: made.line is not None)
        number = 10**6 + strike
        client.hset(mine.leased, number, "q\nmessage")
        sys.setprofile(_strike_after(strike))
        try:
            made.acknowledge(number, is_last=True)
            break
        except _StruckError:
            continue
        finally:
            sys.setprofile(None)
            eventually(lambda number=number: not client.hexists(mine.leased, number), timeout=5)
    assert strike > 5, "it has struck"


def test_numbers_are_not_left_to_hiredis_which_crashes_if_a_signal_strikes_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words: list[Any] = []
    monkeypatch.setattr(command, "pack_command", lambda each: words.extend(each) or b"")
    pack(("HDEL", "leases", 1, 2.5))
    assert words == ["HDEL", "leases", "1", "2.5"]


def test_while_a_slot_is_free_what_is_done_with_is_said_soon(
    reader: MakeReader, send: Send, client: Any, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(consumer_module, "_BATCH_TIME", 60.0)
    monkeypatch.setattr(worker, "slots", lambda: 2)
    for number in range(2):
        send(number)
    mine = reader()
    mine.drain(2)
    mine.messages[0].ack()
    eventually(lambda: client.hlen(mine.leased) == 1)


def test_closing_puts_everything_back_at_once(reader: MakeReader, send: Send, client: Any) -> None:
    one = reader()
    for n in range(3):
        send(n)
    one.drain(3)
    one.connection.release()
    assert client.llen("q") == 3
    assert not client.exists(KEYS.consumers, one.leased)
    assert reader().take(3) == [0, 1, 2]


def test_a_server_whose_memory_is_full_is_still_consumed_from(
    reader: MakeReader, send: Send, client: Any, eventually: Eventually
) -> None:
    one = reader(prefetch=2, lease=1)
    for n in range(4):
        send(n)
    send("later", headers=eta(0.3))
    one.drain(2)
    client.config_set("maxmemory", 1)
    try:
        name = one.consumer.name
        expires = client.zscore(KEYS.consumers, name)
        eventually(lambda: client.zscore(KEYS.consumers, name) > expires)
        one.take(2)
        one.take(2)
        assert one.take(1) == ["later"]
        eventually(lambda: not client.exists(one.leased))
    finally:
        client.config_set("maxmemory", 0)


@pytest.fixture
def team(client: Any) -> Iterator[str]:
    """The URL for a user that has no access to the queue q."""
    keys = ["backburner:*", "_kombu*", "unacked*", "theirs", "theirs\x06\x16*"]
    client.acl_setuser("team", enabled=True, passwords=["+x"], commands=["+@all"], channels=["*"], keys=keys)
    yield f"redis://team:x@127.0.0.1:{_port(client)}/0"
    client.acl_deluser("team")


@pytest.mark.slow
@on_both_servers
def test_what_is_due_and_cannot_be_added_to_its_list_waits_a_little_longer(
    reader: MakeReader, send: Send, client: Any, eventually: Eventually
) -> None:
    entries = {"first": "elsewhere\n{}", "second": "nothing of the kind"}
    client.set("elsewhere", "no list")
    send("hello", headers=eta(0.4))
    one = reader()
    one.drain(1, timeout=0.1)
    eventually(lambda: client.zcard(KEYS.delayed) == 1)
    client.hset(KEYS.delayed_entries, mapping=entries)
    client.zadd(KEYS.delayed, dict.fromkeys(entries, 1))
    assert one.take(1) == ["hello"]
    assert client.hgetall(KEYS.delayed_entries) == entries
    assert min(due for _, due in client.zrange(KEYS.delayed, 0, -1, withscores=True)) > 1
    client.delete("elsewhere")
    eventually(lambda: one.drain(1, timeout=0.1) or client.llen("elsewhere"))


@pytest.mark.slow
@on_both_servers
def test_what_is_due_goes_to_its_queue_also_if_who_finds_it_may_not_put_it_there(
    team: str, reader: MakeReader, send: Send, client: Any, eventually: Eventually
) -> None:
    theirs = reader("theirs", url=team)
    theirs.drain(1, timeout=0.1)
    mine = reader()
    send("hello", headers=eta(0.3))
    mine.drain(1, timeout=0.1)
    [(job, due)] = eventually(lambda: client.zrange(KEYS.delayed, 0, -1, withscores=True))
    eventually(lambda: theirs.drain(1, timeout=0.1) or client.zscore(KEYS.delayed, job) != due)
    assert client.zscore(KEYS.delayed, job) > due
    assert mine.take(1) == ["hello"]


@pytest.mark.slow
@on_both_servers
def test_as_many_are_suspected_as_a_dead_worker_ran_when_it_died_and_not_when_it_started(
    reader: MakeReader, send: Send, client: Any, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        send(number)
    dead, survivor = reader(lease=1), reader("elsewhere", lease=1)
    dead.drain(4)
    monkeypatch.setattr(worker, "slots", lambda: 3)  # by --autoscale, or `control pool_grow`
    dead.channel.tick()
    eventually(lambda: client.hgetall(KEYS.slots) == {dead.consumer.name: "3"})
    dead.die()
    survivor.channel.tick()
    eventually(lambda: not client.exists(dead.leased))
    assert len(list(client.scan_iter(f"{KEYS.crashes}*"))) == 3
    monkeypatch.setattr(worker, "slots", lambda: 2)
    survivor.channel.tick()
    eventually(lambda: client.hvals(KEYS.slots) == ["2"])
    survivor.close()
    assert not client.exists(KEYS.slots), "who leaves or was recovered leaves nothing here"


@pytest.fixture
def step(client: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Step the server's clock by some seconds, as far as leases go by it."""
    for name in ("_RENEW", "_RECOVER"):
        script = getattr(consumer_module, name)
        text = script.text.replace("return now[1] +", "return (redis.call('GET', 'step') or 0) + now[1] +")
        monkeypatch.setattr(
            consumer_module, name, replace(script, text=text, sha=hashlib.sha1(text.encode()).hexdigest())
        )
    return lambda seconds: client.set("step", seconds)


@on_both_servers
def test_no_lease_of_the_living_ends_early_when_the_servers_clock_is_put_forward(
    step: Callable[[float], None], reader: MakeReader, send: Send, client: Any, eventually: Eventually
) -> None:
    readers = [reader(lease=2), reader(lease=2)]
    for number, each in enumerate(readers):
        send(number)
        each.drain(1)
        each.consumer._sweep_from = 0.0
    before = client.zrange(KEYS.consumers, 0, -1, withscores=True)

    def all_have_renewed(since: float) -> bool:
        return all((client.zscore(KEYS.consumers, each) or 0) > was + since for each, was in before)

    step(3600)
    eventually(lambda: all_have_renewed(3600))
    eventually(lambda: all_have_renewed(3601))  # and looked at each other since
    assert [each.consumer.over for each in readers] == [False, False]
    assert [client.hlen(each.leased) for each in readers] == [1, 1]
    assert not client.exists("q")


@pytest.mark.slow
@on_both_servers
def test_who_died_before_the_servers_clock_was_put_back_is_found_dead_in_the_time_of_a_lease(
    step: Callable[[float], None], reader: MakeReader, send: Send, client: Any, eventually: Eventually
) -> None:
    dead, survivor = reader(lease=2), reader("elsewhere", lease=2)
    send("hello")
    dead.drain(1)
    survivor.channel.tick()
    lease = client.zscore(KEYS.consumers, dead.consumer.name)
    dead.die()
    client.zadd(KEYS.consumers, {dead.consumer.name: lease})
    step(-3600)
    eventually(lambda: client.llen("q"), timeout=10)
    assert not survivor.consumer.over


@pytest.mark.slow
@on_both_servers
@pytest.mark.parametrize("why", ["another user", "another type"])
def test_what_a_dead_consumer_held_and_cannot_be_put_back_is_recovered_later_by_who_can(
    team: str, reader: MakeReader, send: Send, client: Any, eventually: Eventually, why: str
) -> None:
    for number in range(3):
        send(number)
    dead = reader(lease=1)
    dead.drain(3)
    name, leased = dead.consumer.name, dead.leased
    dead.die()
    if why == "another type":
        client.set("q", "no list")
    theirs = reader("theirs", url=team, lease=1)
    theirs.channel.tick()
    eventually(lambda: not client.exists(leased))
    heir = name.replace(":1:", ":0:")
    assert client.hlen(KEYS.leased(heir)) == 3
    assert client.zscore(KEYS.consumers, name) is None, "it might find itself alive"
    theirs.close()
    if why == "another type":
        client.delete("q")
    client.zadd(KEYS.consumers, {heir: 1})
    assert reader(lease=1).take(3) == [0, 1, 2]
    assert not client.exists(KEYS.leased(heir))
    assert {client.get(key) for key in client.scan_iter(f"{KEYS.crashes}*")} == {"1"}, "only the oldest had begun, once"


@on_both_servers
def test_what_cannot_be_put_back_stays_leased_and_then_with_a_dead_consumer(
    reader: MakeReader, send: Send, client: Any, eventually: Eventually
) -> None:
    one = reader("q", "r")
    send("mine")
    send("other", "r")
    one.drain(2)
    leased, name = one.leased, one.consumer.name
    client.set("q", "no list")
    for message in one.messages:
        message.requeue()
    eventually(lambda: client.llen("r") == 1)
    assert client.hlen(leased) == 1
    one.close()
    assert not client.exists(leased)
    heir = name.replace(":1:", ":0:")
    assert client.hvals(KEYS.leased(heir))[0].startswith("q\n")
    assert client.zscore(KEYS.consumers, heir)


@on_both_servers
def test_a_list_that_cannot_be_read_loses_nothing_of_the_others(reader: MakeReader, send: Send, client: Any) -> None:
    one = reader("a", "b", "c")
    client.set("b", "no list")
    send("hello", "a")
    assert one.take(1) == ["hello"]
    with pytest.raises(redis.ConnectionError, match="WRONGTYPE"):
        one.drain(1)


def test_what_killed_stock_workers_took_is_put_back_when_none_is_left_to_do_so(
    reader: MakeReader, send: Send, redis_url: str, client: Any
) -> None:
    for n in range(3):
        send(n, priority=n)
    with kombu.Connection(redis_url) as connection:
        channel: Any = connection.channel()
        taken: list[Any] = []
        consumer = kombu.Consumer(channel, [kombu.Queue("q")], callbacks=[lambda _, each: taken.append(each)])
        with consumer:
            while len(taken) < 3:
                connection.drain_events(timeout=5)
            channel.qos._on_collect.cancel()  # it dies
            channel.qos.restore_unacked_once = lambda **_: None
    assert client.hlen("unacked") == 3
    one = reader(visibility_timeout=3600)
    assert one.drain(1, timeout=0.3) == [], "it may still work on them"
    for tag in client.zrange("unacked_index", 0, -1):
        client.zadd("unacked_index", {tag: time.time() - 3601})
    assert sorted(reader(visibility_timeout=3600).take(3)) == [0, 1, 2]
    assert not client.exists("unacked", "unacked_index")


def test_a_channel_whose_connection_for_broadcasts_is_gone_already_can_be_closed(reader: MakeReader) -> None:
    channel = reader().channel
    assert channel.client
    channel.connection.lost, channel.client.connection = True, None  # as redis-py has it after an error
    channel.close()
    assert channel.closed


def kill_idle_brpop(client: Any, eventually: Eventually) -> None:
    """As a server does after its `timeout`, or a proxy."""
    [idle] = [each["id"] for each in client.client_list() if each["cmd"] == "brpop" and each["flags"] == "N"]
    client.client_kill_filter(_id=idle)
    eventually(lambda: idle not in [each["id"] for each in client.client_list()])


@on_both_servers
def test_a_connection_that_is_closed_while_it_rests_disturbs_nobody(
    reader: MakeReader, send: Send, client: Any, eventually: Eventually
) -> None:
    one = reader(brpop_timeout=1)
    heard: list[Any] = []
    hear = [lambda body, _: heard.append(body)]
    once = kombu.Consumer(one.channel, [kombu.Queue("replies")], callbacks=hear, no_ack=True)
    once.consume()
    one.drain(1, timeout=0.3)  # kombu has begun to wait for replies
    once.cancel()
    eventually(lambda: one.drain(1, timeout=0.1) or not one.channel._in_poll)  # and has ended
    claims = one.channel.claims
    kill_idle_brpop(client, eventually)
    one.drain(1, timeout=0.3)
    send(1)
    assert one.take(1) == [1]
    assert one.channel.claims is claims, "the worker need not connect anew"
    once.consume()
    send("an answer", "replies")
    eventually(lambda: one.drain(1, timeout=0.1) or heard)
    assert heard == ["an answer"]


def test_who_waits_for_replies_once_more_uses_no_connection_that_was_closed_meanwhile(
    reader: MakeReader, send: Send, client: Any, eventually: Eventually
) -> None:
    one = reader("replies", no_ack=True, brpop_timeout=1)
    send(1, "replies")
    assert one.drain(1) == [1]
    kill_idle_brpop(client, eventually)
    send(2, "replies")
    assert one.drain(2) == [1, 2]


def test_a_closed_channel_asks_for_nothing_when_the_loop_comes_round(reader: MakeReader, send: Send) -> None:
    one = reader()
    one.drain(1, timeout=0.1)
    cycle, channel, consumer = one.connection.transport.cycle, one.channel, one.consumer
    channel.close()
    channel.tick()
    cycle.on_poll_start()
    assert channel.claims is None
    assert consumer.over
    assert not channel._claimed()


def test_nothing_is_kept_of_a_connection_that_was_replaced(reader: MakeReader, redis_url: str) -> None:
    hub = Hub()
    one = Reader(redis_url)
    one.connection.transport.register_with_event_loop(one.connection.connection, hub)
    one.drain(1, timeout=0.1)
    left = [weakref.ref(one.channel), weakref.ref(one.connection.transport)]
    one.connection.close()
    hub.timer.clear()  # Celery cancels what is there of a connection
    for tick in tuple(hub.on_tick):
        tick()
    del one, tick
    reader().drain(1, timeout=0.1)
    gc.collect()
    assert not hub.on_tick
    assert [each() for each in left] == [None, None]
    hub.close()


def test_nobody_asks_for_messages_because_others_renew_their_leases(
    reader: MakeReader, send: Send, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backburner.queue.transport.claims._HEARTBEAT", 60)
    one = reader()
    one.drain(1, timeout=0.2)
    asked = Mock(wraps=one.channel.claims._ask)
    one.channel.claims._ask = asked
    for _ in range(5):
        client.zadd(KEYS.consumers, {"another": time.time() + 60})
        client.hset(one.leased, "0", "what is settled by the thread that renews")
        one.drain(1, timeout=0.1)
    asked.assert_not_called()
    send("a message")
    assert one.drain(1) == ["a message"]


@on_both_servers
def test_a_consumer_of_very_many_queues_hears_of_each(reader: MakeReader, send: Send) -> None:
    one = reader(*(f"q{number}" for number in range(800)))
    one.drain(1, timeout=0.1)  # Redis 7.0 took five seconds to answer
    send("a message", "q799")
    assert one.drain(1) == ["a message"]


def test_a_small_pool_of_connections_is_enough(reader: MakeReader, send: Send) -> None:
    one = reader("q", "other", max_connections=2)
    send(1)
    send(2, "other")
    assert sorted(one.take(2)) == [1, 2]


def test_a_prefix_keeps_two_worlds_apart(reader: MakeReader, send: Send, redis_url: str, client: Any) -> None:
    one = reader(global_keyprefix="theirs:")
    send("ours")
    with kombu.Connection(redis_url, transport_options={"global_keyprefix": "theirs:"}) as connection:
        connection.Producer(serializer="json").publish("theirs", routing_key="q")
    assert one.take(1) == ["theirs"]
    assert client.llen("q") == 1
    assert client.exists("theirs:backburner:consumers")


@pytest.mark.slow
def test_a_connection_that_fell_silent_is_replaced_within_seconds(
    reader: MakeReader, send: Send, redis_url: str
) -> None:
    with redis.Redis.from_url(redis_url) as direct, FaultProxy("127.0.0.1", _port(direct)) as proxy:
        one = reader(url=proxy.url, lease=30)
        send("before")
        one.drain(1)
        proxy.stall()
        # Whichever notices first: the claim that is under way, or a question that is asked now and then.
        with pytest.raises((redis.ConnectionError, redis.TimeoutError)):
            one.drain(2, timeout=10)
        proxy.pass_through()
        one.consumer.stop()


@pytest.mark.parametrize(
    ("refuse", "accept", "refusal"),
    [
        (["CONFIG SET", "maxmemory", 1], ["CONFIG SET", "maxmemory", 0], "memory"),
        (["REPLICAOF", "127.0.0.1", 1], ["REPLICAOF", "NO", "ONE"], "read only replica"),
        (["CONFIG SET", "min-replicas-to-write", 1], ["CONFIG SET", "min-replicas-to-write", 0], "NOREPLICAS"),
    ],
    ids=["its memory is full", "it is a replica", "it has no replica"],
)
def test_a_server_that_takes_nothing_for_now_is_one_that_a_worker_tries_again_to_reach(
    reader: MakeReader,
    redis_url: str,
    client: Any,
    caplog: pytest.LogCaptureFixture,
    refuse: list[Any],
    accept: list[Any],
    refusal: str,
) -> None:
    begin = reader().channel.tick
    with kombu.Connection(redis_url, transport=TRANSPORT) as connection:
        queue = kombu.Queue("new", kombu.Exchange("new"), routing_key="new")(connection.channel())
        client.execute_command(*refuse)
        try:
            with pytest.raises(connection.connection_errors, match=refusal):
                queue.declare()
            [told] = [each.message for each in caplog.records if each.levelname == "WARNING"]
            assert told.startswith("the server takes nothing for now: ")
            assert refusal in told, "for Celery says only that the connection was lost"
            if refusal != "memory":  # which is enough to begin to consume
                with pytest.raises(connection.connection_errors, match=refusal):
                    begin()
        finally:
            client.execute_command(*accept)
        queue.declare()
        begin()


def test_acknowledgements_that_another_thread_takes_meanwhile_are_no_error(reader: MakeReader, send: Send) -> None:
    class TakenFrom(deque[int]):
        """Another thread has taken some since it was asked how many there are."""

        def __len__(self) -> int:
            return super().__len__() + 2

    one = reader()
    send("hello")
    one.drain(1)
    mine = one.consumer._decisions
    mine._acks, before = TakenFrom([10**9]), mine._acks
    try:
        assert mine.take_acks() == [10**9]
    finally:
        mine._acks = before


def test_nobody_acknowledges_what_waits_again_for_its_result_since_somebody_has_looked() -> None:
    mine = decisions.Decisions("leases", Mock())

    class WaitingAgain(deque[Stored]):
        """The connection is lost on which the result was, just after it was asked whether one waits."""

        def __bool__(self) -> bool:
            waits = len(self) > 0
            if (batch := mine._under_way) is not None:
                mine._unsay(batch)
            return waits

    mine._states = WaitingAgain()
    mine._under_way = decisions._Batch(cast("Any", None), states=[Stored(b"key", "{}", 60, number=1)])
    mine._acks.append(1)
    assert mine.take_acks() == []


@pytest.fixture
def proxy(client: Any) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", _port(client)) as proxy:
        yield proxy


@pytest.fixture
def holder(reader: MakeReader, send: Send, proxy: FaultProxy) -> Iterator[Reader]:
    """Who holds a message, and reaches the server by way of the proxy."""
    one = reader(url=proxy.url, lease=2)
    send("hello")
    one.drain(1)
    consumer = one.consumer
    yield one
    consumer.stop()


def test_what_was_acknowledged_while_the_server_was_away_is_said_when_it_is_back(
    holder: Reader, proxy: FaultProxy, client: Any, eventually: Eventually
) -> None:
    leased = holder.leased
    proxy.refuse()
    holder.messages.pop().ack()
    with pytest.raises(redis.ConnectionError):
        holder.drain(1)
    holder.channel._leave()
    assert client.hlen(leased) == 1
    proxy.pass_through()
    eventually(lambda: not client.exists(leased))
    assert client.llen("q") == 0


def test_a_consumer_whose_connection_fails_twice_is_gone_on_with(
    holder: Reader, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = holder.consumer
    proxy.reset()
    with pytest.raises(redis.ConnectionError):
        holder.drain(2)
    with monkeypatch.context() as again:
        again.setattr(channel_module, "Claims", Mock(side_effect=redis.ConnectionError))
        with pytest.raises(redis.ConnectionError):
            holder.channel.tick()
    holder.channel.tick()
    assert holder.consumer is consumer


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["stall", "reset", "cut"])
def test_what_left_from_the_thread_that_decided_is_said_again_if_nobody_answered(
    holder: Reader, send: Send, proxy: FaultProxy, client: Any, eventually: Eventually, trouble: str
) -> None:
    leased, consumer = holder.leased, holder.consumer
    send("second")
    holder.drain(2)
    first, second = holder.messages
    holder.messages.clear()
    eventually(lambda: consumer._decisions.line is not None)
    consumer.live.discard(second.delivery_tag)  # so that the first one is the last, too
    proxy.stall()
    result = Stored(b"celery-task-meta-first", '{"status": "SUCCESS", "result": 1}', 60)
    assert consumer.store(result)
    first.ack()
    assert consumer.take_acks() == [], "the result may not be there"
    second.ack()
    assert not consumer.has_said_all()
    assert client.hlen(leased) == 2
    if trouble == "reset":
        proxy.reset()
    elif trouble == "cut":
        proxy.refuse()
    proxy.pass_through()
    eventually(lambda: not client.hlen(leased))
    eventually(consumer.has_said_all)
    assert client.get("celery-task-meta-first")
    assert client.llen("q") == 0


def test_a_lease_goes_on_while_celery_takes_its_time_to_connect_again(
    holder: Reader, proxy: FaultProxy, client: Any, eventually: Eventually
) -> None:
    name = holder.consumer.name
    proxy.reset()
    with pytest.raises(redis.ConnectionError):
        holder.drain(2)
    holder.connection.collect()  # as Celery does
    lease = client.zscore(KEYS.consumers, name)
    eventually(lambda: client.zscore(KEYS.consumers, name) > lease)


@pytest.mark.slow
def test_a_lease_outlives_a_connection_that_fell_silent(
    holder: Reader, proxy: FaultProxy, client: Any, eventually: Eventually
) -> None:
    proxy.silence()
    lease = client.zscore(KEYS.consumers, holder.consumer.name)
    eventually(lambda: client.zscore(KEYS.consumers, holder.consumer.name) > lease + 2)
    assert not holder.consumer.over


@pytest.mark.parametrize(
    "options", [{"lease": 0}, {"lease": "long"}, {"max_deliveries": 0}, {"watchdog": -1}, {"unknown_task_grace": None}]
)
def test_options_that_make_no_sense_are_refused(redis_url: str, options: dict[str, Any]) -> None:
    with (
        kombu.Connection(redis_url, transport=TRANSPORT, transport_options=options) as connection,
        pytest.raises(ConfigError, match=next(iter(options))),
    ):
        connection.channel()


def test_a_queue_with_a_newline_in_its_name_is_refused(reader: MakeReader, redis_url: str) -> None:
    with pytest.raises(ConfigError, match=r"a newline in the name of the queue 'a\\nb'"):
        reader("a\nb")
    with (
        kombu.Connection(redis_url, transport=TRANSPORT) as connection,
        pytest.raises(ConfigError, match="newline"),
    ):
        connection.Producer().publish("x", "a\nb", headers={"task": "add", "id": "1"})


def _port(client: Any) -> int:
    port: int = client.connection_pool.connection_kwargs["port"]
    return port


def test_no_more_is_asked_for_than_can_begin_if_celery_is_to_prefetch_nothing(
    reader: MakeReader, send: Send, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "slots", lambda: 3)
    one = reader()
    monkeypatch.setattr(worker, "reserved", lambda: one.messages)
    monkeypatch.setattr(one.channel.qos, "can_consume", lambda: len(one.messages) < 3)  # as Celery does
    for number in range(6):
        send(number)
    assert one.drain(4, timeout=0.5) == [0, 1, 2]
    assert client.llen("q") == 3
    one.messages.pop(0).ack()
    assert one.drain(4, timeout=0.5) == [1, 2, 3]


@pytest.mark.parametrize(
    ("prefetch", "held", "slots", "wanted"),
    [
        (100, 76, 2, 0),
        (100, 75, 2, 25),
        (100, 99, 100, 1),
        (100, 90, 80, 0),
        (2, 1, 2, 1),
        (1, 1, 1, 0),
        (4, 3, 1, 1),
        (0, 500, 1, 1_000_000),
    ],
)
def test_messages_are_asked_for_many_at_a_time_unless_somebody_waits(
    monkeypatch: pytest.MonkeyPatch, prefetch: int, held: int, slots: int, wanted: int
) -> None:
    monkeypatch.setattr("backburner.queue.transport.worker.slots", lambda: slots)
    qos = QoS(cast("Any", object()), prefetch)
    qos.held = dict.fromkeys(range(held), cast("Any", None))
    assert qos.wanted == wanted
