"""Invalidations from a server that stalls, cuts, dies and returns: how soon it is distrusted, and trusted again."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from backburner.redis.embedded import EmbeddedServer
from backburner.redis.tracking import Tracking
from backburner.testing import FaultProxy
from tests.conftest import Eventually

CHANNEL = "cache:\x01changes"


class Ear(Tracking):
    """Keeps what it is told, and when."""

    def __init__(self, url: str, **options: Any) -> None:
        self.heard: list[bytes] = []
        self.states: list[tuple[str, float]] = []
        super().__init__(
            url,
            "cache:",
            CHANNEL,
            on_invalidated=lambda names: self.heard.extend(names or ()),
            on_trusted=lambda: self.states.append(("trusted", time.monotonic())),
            on_lost=lambda _: self.states.append(("lost", time.monotonic())),
            **options,
        )
        self.start()

    def since(self, moment: float, state: str) -> float | None:
        """How long after `moment` it first came to that state."""
        return next((at - moment for name, at in self.states if name == state and at >= moment), None)


@pytest.fixture(params=["tracking", "pubsub"])
def ear(request: pytest.FixtureRequest, proxy: FaultProxy, eventually: Eventually) -> Iterator[Ear]:
    ear = Ear(proxy.url + ("?protocol=2" if request.param == "pubsub" else ""))
    eventually(lambda: ear.trusted)
    assert ear.mode == request.param
    yield ear
    ear.stop()


def test_a_server_that_hangs_is_distrusted_within_a_second(
    ear: Ear, proxy: FaultProxy, redis_url: str, eventually: Eventually
) -> None:
    proxy.stall()
    moment = time.monotonic()
    eventually(lambda: not ear.trusted, timeout=3)
    assert 0.2 < (ear.since(moment, "lost") or 0) < 1
    mode = ear.mode
    proxy.pass_through()
    moment = time.monotonic()
    eventually(lambda: ear.trusted)
    assert (ear.since(moment, "trusted") or 9) < 2
    assert ear.mode == mode
    with redis.Redis.from_url(redis_url) as other:
        other.set("cache:a", 1)
        other.publish(CHANNEL, "cache:a")
    eventually(lambda: b"cache:a" in ear.heard)


@pytest.mark.parametrize("fault", [FaultProxy.refuse, FaultProxy.reset], ids=["refuses", "resets"])
def test_a_lost_connection_is_distrusted_at_once(
    ear: Ear, proxy: FaultProxy, fault: Any, eventually: Eventually
) -> None:
    moment = time.monotonic()
    fault(proxy)
    eventually(lambda: ear.since(moment, "lost"), timeout=3)
    assert (ear.since(moment, "lost") or 0) < 0.2
    proxy.pass_through()
    eventually(lambda: ear.trusted, timeout=3)


def test_a_message_that_is_cut_is_no_message(
    ear: Ear, proxy: FaultProxy, redis_url: str, eventually: Eventually
) -> None:
    proxy.cut(12)
    moment = time.monotonic()
    with redis.Redis.from_url(redis_url) as other:
        other.set("cache:a", 1)
        other.publish(CHANNEL, "cache:a")
    eventually(lambda: ear.since(moment, "lost"), timeout=3)
    assert ear.heard == []
    proxy.pass_through()
    eventually(lambda: ear.trusted, timeout=3)


def test_stopping_is_prompt_whatever_the_server_does(proxy: FaultProxy, eventually: Eventually) -> None:
    for fault in (FaultProxy.stall, FaultProxy.refuse):
        ear = Ear(proxy.url, timeout=3.0)
        eventually(lambda: ear.trusted)  # noqa: B023  # called at once
        fault(proxy)
        began = time.monotonic()
        ear.stop()
        assert time.monotonic() - began < 2  # not the timeout
        seen = proxy.connections
        hanging = Ear(proxy.url, timeout=3.0)
        if fault is FaultProxy.stall:
            eventually(lambda: proxy.connections > seen)  # noqa: B023  # and now it waits for the handshake
        began = time.monotonic()
        hanging.stop()
        assert time.monotonic() - began < 2  # not the timeout
        proxy.pass_through()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("backburner-tracking")]


def test_a_server_that_is_killed_and_started_again_is_trusted_again(tmp_path: Path, eventually: Eventually) -> None:
    server = EmbeddedServer(tmp_path / "valkey").start()
    ear = Ear(server.url)
    try:
        eventually(lambda: ear.trusted)
        moment, port = time.monotonic(), server.port
        os.kill(server.pid, signal.SIGKILL)
        eventually(lambda: ear.since(moment, "lost"), timeout=2)
        server.stop()  # of a dead process: reaps it
        server = EmbeddedServer(tmp_path / "valkey", port=port).start()
        eventually(lambda: ear.trusted, timeout=3)
        with redis.Redis.from_url(server.url) as other:
            other.set("cache:a", 1)
        eventually(lambda: ear.heard == [b"cache:a"])
    finally:
        ear.stop()
        server.stop()
