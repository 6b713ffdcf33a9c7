"""Invalidations from a server in good health: what is heard of, in which mode, and what stopping leaves behind."""

import contextlib
import logging
import multiprocessing
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from backburner.errors import ConfigError
from backburner.redis.tracking import Tracking
from tests.conftest import Eventually

PREFIX = "cache:"
CHANNEL = "cache:\x01changes"


class Ear(Tracking):
    """Keeps what it is told."""

    def __init__(self, url: str, prefix: str = PREFIX, **options: Any) -> None:
        self.heard: list[bytes | None] = []
        self.states: list[str] = []
        super().__init__(
            url,
            prefix,
            CHANNEL,
            on_invalidated=lambda names: self.heard.extend([None] if names is None else names),
            on_trusted=lambda: self.states.append("trusted"),
            on_lost=lambda _: self.states.append("lost"),
            **options,
        )


@contextlib.contextmanager
def listening(url: str, eventually: Eventually, **options: Any) -> Iterator[Ear]:
    ear = Ear(url, **options)
    ear.start()
    try:
        eventually(lambda: ear.states)
        yield ear
    finally:
        ear.stop()


@pytest.fixture(params=["redis_url", pytest.param("redis7_url", marks=pytest.mark.slow)], ids=["valkey", "redis7"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


@pytest.fixture
def other(url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url) as client:
        yield client


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("backburner-tracking")]


def test_what_others_write_and_delete_is_heard(url: str, other: redis.Redis, eventually: Eventually) -> None:
    with listening(url, eventually) as ear:
        assert ear.mode == "tracking"
        assert ear.trusted
        other.set("cache:a", 1)
        eventually(lambda: ear.heard == [b"cache:a"])
        other.delete("cache:a")
        eventually(lambda: ear.heard == [b"cache:a"] * 2)
        pipeline = other.pipeline()
        for number in range(100):
            pipeline.set(f"cache:{number}", number)
        pipeline.execute()
        eventually(lambda: set(ear.heard) >= {b"cache:%d" % number for number in range(100)})


def test_other_prefixes_are_not_heard(url: str, other: redis.Redis, eventually: Eventually) -> None:
    with listening(url, eventually) as ear:
        other.set("celery:a", 1)
        other.set("cache:end", 1)
        eventually(lambda: ear.heard)
        assert ear.heard == [b"cache:end"]


def test_expiry_is_heard(url: str, other: redis.Redis, eventually: Eventually) -> None:
    with listening(url, eventually) as ear:
        other.set("cache:brief", 1, px=30)
        eventually(lambda: ear.heard.count(b"cache:brief") == 2)


def test_flushing_the_server_is_heard_as_everything(url: str, other: redis.Redis, eventually: Eventually) -> None:
    with listening(url, eventually) as ear:
        other.flushall()
        eventually(lambda: ear.heard == [None])


def test_a_killed_connection_is_lost_at_once_and_made_anew(
    url: str, other: redis.Redis, eventually: Eventually
) -> None:
    with listening(url, eventually, timeout=3.0, name="ear") as ear:
        [mine] = [client for client in other.client_list() if client["name"] == "ear"]
        other.client_kill_filter(_id=mine["id"])
        eventually(lambda: ear.states[:2] == ["trusted", "lost"], timeout=2)
        eventually(lambda: ear.states == ["trusted", "lost", "trusted"])
        other.set("cache:a", 1)
        eventually(lambda: ear.heard == [b"cache:a"])


def test_silence_is_no_loss(url: str, eventually: Eventually) -> None:
    with listening(url, eventually, timeout=0.05) as ear:
        until = time.monotonic() + 0.6
        while time.monotonic() < until:
            assert ear.trusted
            time.sleep(0.01)
        assert ear.states == ["trusted"]


@pytest.fixture
def restricted_url(url: str, other: redis.Redis) -> Iterator[Any]:
    """Makes URLs for a user who has all rights but some."""
    parts = urlsplit(url)

    def make(*but: str) -> str:
        other.execute_command("ACL", "SETUSER", "limited", "on", ">secret", "~*", "&*", "+@all", *but)
        return f"redis://limited:secret@{parts.hostname}:{parts.port}/0"

    yield make
    other.execute_command("ACL", "DELUSER", "limited")


def test_where_tracking_is_refused_a_channel_takes_its_place(
    restricted_url: Any, other: redis.Redis, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    with listening(restricted_url("-client|tracking"), eventually) as ear:
        assert ear.mode == "pubsub"
        assert ear.refusal is not None
        assert "refuses client tracking" in caplog.text
        assert "secret" not in caplog.text
        other.set("cache:unheard", 1)
        other.publish(CHANNEL, "cache:a\0cache:é")
        other.publish(CHANNEL, "")
        eventually(lambda: ear.heard == [b"cache:a", "cache:é".encode(), None])


def test_a_connection_that_is_to_speak_the_old_protocol_gets_the_channel(
    url: str, other: redis.Redis, eventually: Eventually
) -> None:
    with listening(f"{url}?protocol=2", eventually, timeout=0.05) as ear:
        assert ear.mode == "pubsub"
        time.sleep(0.3)  # several signs of life
        other.publish(CHANNEL, "cache:a")
        eventually(lambda: ear.heard == [b"cache:a"])
        assert ear.states == ["trusted"]


def test_who_listens_to_the_channel_says_so_for_as_long_as_it_does(
    url: str, other: redis.Redis, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backburner.redis.tracking.ANNOUNCED", 1.0)
    with listening(url, eventually):
        assert not other.exists(CHANNEL)
    with listening(f"{url}?protocol=2", eventually, timeout=0.05):
        assert 0 < other.pttl(CHANNEL) <= 1000
        other.delete(CHANNEL)  # as FLUSHALL would
        eventually(lambda: other.exists(CHANNEL))
    eventually(lambda: not other.exists(CHANNEL))


def test_a_user_who_may_not_ping_is_no_reason_for_distrust(restricted_url: Any, eventually: Eventually) -> None:
    with listening(restricted_url("-ping"), eventually, timeout=0.05) as ear:
        assert ear.mode == "tracking"
        time.sleep(0.3)
        assert ear.states == ["trusted"]


def test_where_both_are_refused_nothing_is_trusted_and_one_line_says_why(
    restricted_url: Any, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    ear = Ear(restricted_url("-client|tracking", "-subscribe"))
    ear.start()
    eventually(lambda: caplog.records)
    began = time.monotonic()
    ear.stop()
    assert time.monotonic() - began < 2
    assert (ear.mode, ear.trusted, ear.states) == ("off", False, [])
    assert len(caplog.records) == 1


def test_a_wrong_password_is_said_once_and_not_shown(
    url: str, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    parts = urlsplit(url)
    ear = Ear(f"redis://nobody:wrong-password@{parts.hostname}:{parts.port}/0")
    with caplog.at_level(logging.DEBUG, "backburner.cache"):
        ear.start()
        eventually(lambda: len(caplog.records) >= 3)
        ear.stop()
    assert [record.levelname for record in caplog.records][:3] == ["WARNING", "DEBUG", "DEBUG"]
    assert "wrong-password" not in caplog.text
    assert not ear.trusted


def test_stopping_leaves_no_thread_and_no_connection(url: str, other: redis.Redis, eventually: Eventually) -> None:
    with listening(url, eventually, timeout=5.0, name="ear") as ear:
        assert len(_threads()) == 1
        ear.start()  # once is enough
        assert len(_threads()) == 1
        began = time.monotonic()
        ear.stop()
        assert time.monotonic() - began < 2  # not the timeout
        assert _threads() == []
        assert not ear.trusted
        assert ear.states == ["trusted"]
        eventually(lambda: not [client for client in other.client_list() if client["name"] == "ear"])
        ear.stop()


def test_it_can_be_started_again(url: str, other: redis.Redis, eventually: Eventually) -> None:
    ear = Ear(url)
    for count in range(1, 4):
        ear.start()
        eventually(lambda: len(ear.states) == count)  # noqa: B023  # called at once
        other.set("cache:a", count)
        eventually(lambda: len(ear.heard) == count)  # noqa: B023
        ear.stop()


def test_of_many_threads_that_start_it_at_once_one_does(url: str) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            ear = Ear(url)
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda _: ear.start(), range(8)))  # noqa: B023  # called at once
            assert len(_threads()) == 1
            ear.stop()
    finally:
        sys.setswitchinterval(interval)


def test_without_room_for_a_thread_nothing_is_heard_until_there_is(
    url: str, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    ear = Ear(url)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", _no_room)
        ear.start()
        ear.stop()
    ear.start()
    eventually(lambda: ear.states)
    ear.stop()


def _no_room(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_it_can_be_stopped_before_it_has_started(url: str) -> None:
    for _ in range(20):
        ear = Ear(url)
        ear.start()
        ear.stop()
    assert _threads() == []


def test_a_callback_that_fails_is_logged_and_distrusted(
    url: str, other: redis.Redis, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    states: list[str] = []

    def fail(_: Any) -> None:
        raise RuntimeError("the receiver is broken")

    tracking = Tracking(
        url,
        PREFIX,
        CHANNEL,
        on_invalidated=fail,
        on_trusted=lambda: states.append("trusted"),
        on_lost=lambda _: states.append("lost"),
    )
    tracking.start()
    eventually(lambda: states == ["trusted"])
    other.set("cache:a", 1)
    eventually(lambda: states == ["trusted", "lost", "trusted"])
    tracking.stop()
    assert "the receiver is broken" in caplog.text
    assert "Traceback" in caplog.text


def _child(ear: Ear, url: str, answers: Any) -> None:
    ear.after_fork()
    answers.send((ear.trusted, ear.mode))
    ear.start()
    deadline = time.monotonic() + 5
    while not ear.trusted and time.monotonic() < deadline:
        time.sleep(0.01)
    ear.heard.clear()
    with redis.Redis.from_url(url) as client:
        client.set("cache:from child", 1)
    while not ear.heard and time.monotonic() < deadline:
        time.sleep(0.01)
    answers.send(ear.heard)
    ear.stop()


def test_a_forked_child_listens_for_itself_and_the_parent_goes_on(
    url: str, other: redis.Redis, eventually: Eventually
) -> None:
    fork = multiprocessing.get_context("fork")
    with listening(url, eventually) as ear:
        mine, theirs = fork.Pipe()
        child = fork.Process(target=_child, args=(ear, url, theirs))
        child.start()
        assert mine.poll(10)
        assert mine.recv() == (False, "off")
        assert mine.poll(10)
        assert mine.recv() == [b"cache:from child"]
        child.join(10)
        assert child.exitcode == 0
        eventually(lambda: ear.heard == [b"cache:from child"])
        other.set("cache:later", 1)
        eventually(lambda: ear.heard[-1] == b"cache:later")
        assert ear.states == ["trusted"]
        mine.close()
        theirs.close()


def test_a_url_that_names_no_server_is_refused_when_it_is_given() -> None:
    with pytest.raises(ConfigError):
        Ear("memory://")
