"""A master, its replica and a Sentinel, all real: the cache follows the master, and so do its copies."""

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.sentinel

from backburner import Cache
from backburner.errors import StoreUnavailable
from tests.conftest import Eventually
from tests.contract.conftest import through
from tests.processes import free_port
from tests.servers import answers, redis_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

PASSWORD = "open-sesame"
RECOVERY = 15.0
"""Seconds; the Sentinel takes one to notice and some to elect, on a busy machine."""


class Watched:
    """Two servers and who watches them."""

    def __init__(self, folder: Path, stack: ExitStack, eventually: Eventually) -> None:
        self.ports = [free_port(), free_port()]
        self._sentinel_port = free_port()
        login = ["--requirepass", PASSWORD, "--masterauth", PASSWORD, "--repl-diskless-sync-delay", "0"]
        self.servers = {
            port: stack.enter_context(redis_server(folder / str(port), "--port", str(port), *login, *of))
            for port, of in zip(self.ports, ([], ["--replicaof", "127.0.0.1", str(self.ports[0])]), strict=True)
        }
        first, second = (redis.Redis(port=port, password=PASSWORD) for port in self.ports)
        eventually(lambda: answers(first) and answers(second), timeout=20)
        eventually(lambda: second.info("replication").get("master_link_status") == "up", timeout=20)
        (folder / "sentinel.conf").write_text(
            f"port {self._sentinel_port}\n"
            f"sentinel monitor ours 127.0.0.1 {self.ports[0]} 1\n"
            f'sentinel auth-pass ours "{PASSWORD}"\n'
            "sentinel down-after-milliseconds ours 1000\n"
            "sentinel failover-timeout ours 5000\n"
        )
        stack.enter_context(redis_server(folder, str(folder / "sentinel.conf"), "--sentinel"))
        self._sentinel = redis.Redis(port=self._sentinel_port, decode_responses=True)
        eventually(lambda: answers(self._sentinel) and self._state()["num-slaves"] == 1, timeout=30)
        for client in (first, second, self._sentinel):
            stack.callback(client.close)

    @property
    def url(self) -> str:
        absent = free_port()  # a Sentinel that is away does not matter
        return f"redis+sentinel://:{PASSWORD}@127.0.0.1:{absent},127.0.0.1:{self._sentinel_port}/ours/0"

    @property
    def master(self) -> int:
        """The port of the server that is the master by what the Sentinel says."""
        return int(self._state()["port"])

    def fail_over(self) -> bool:
        """Let the other be the master. Whether the Sentinel knows enough of it by now."""
        try:
            return bool(self._sentinel.execute_command("SENTINEL", "FAILOVER", "ours"))
        except redis.ResponseError:
            return False

    def _state(self) -> Any:
        return self._sentinel.sentinel_master("ours")


@pytest.fixture
def watched(tmp_path: Path, eventually: Eventually) -> Iterator[Watched]:
    with ExitStack() as stack:
        yield Watched(tmp_path, stack, eventually)


@pytest.fixture(params=["blocking", "asyncio"])
def api(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cache(watched: Watched, api: str) -> Iterator[Any]:
    """A cache in either API, with copies."""
    yield from through(api, Cache(watched.url, prefix="watched:", timeout=0.5))


def _works_with(cache: Any, port: int) -> bool:
    """Whether what the cache writes lies there, and what is written there is seen by the cache."""
    mark = str(time.monotonic())
    if not cache.put("mark", mark):
        return False
    with redis.Redis(port=port, password=PASSWORD) as server:
        return bool(mark.encode() in (server.get("watched:mark") or b""))


def test_the_cache_and_its_copies_follow_the_master(watched: Watched, cache: Any, eventually: Eventually) -> None:
    before = watched.master
    assert cache.put("key", "before")
    eventually(lambda: cache.stats().tracking == "tracking")
    assert cache.get("key") == "before"
    eventually(watched.fail_over, timeout=30)
    eventually(lambda: watched.master != before, timeout=RECOVERY)
    eventually(lambda: _works_with(cache, watched.master), timeout=RECOVERY)
    with closing(_without_copies(watched)) as other:
        eventually(lambda: _hears(cache, other), timeout=RECOVERY)


def test_a_killed_master_costs_seconds_without_a_cache_and_no_exception(
    watched: Watched, cache: Any, eventually: Eventually
) -> None:
    before = watched.master
    assert cache.put("key", "before")
    watched.servers[before].send_signal(signal.SIGKILL)
    assert cache.remember("other", 60, lambda: "computed") == "computed"
    slowest = 0.0

    def recovered() -> bool:
        nonlocal slowest
        began = time.monotonic()
        cache.get("key")
        slowest = max(slowest, time.monotonic() - began)
        return watched.master != before and _works_with(cache, watched.master)

    eventually(recovered, timeout=2 * RECOVERY)
    assert slowest < 5
    with closing(_without_copies(watched)) as other:
        eventually(lambda: _hears(cache, other), timeout=RECOVERY)


def test_who_asks_for_an_unknown_master_is_told_its_name(watched: Watched) -> None:
    with pytest.raises(StoreUnavailable, match="theirs"):
        Cache(watched.url.replace("/ours/", "/theirs/"), strict=True, l1=False).get("key")


def _without_copies(watched: Watched) -> Cache:
    """Another process, as far as copies go."""
    return Cache(watched.url, prefix="watched:", l1=False, timeout=0.5)


def _hears(cache: Any, other: Cache) -> bool:
    """Whether a copy here is dropped when another process writes."""
    mark = str(time.monotonic())
    if not (other.put("heard", "old") and cache.get("heard") is not None and other.put("heard", mark)):
        return False
    until = time.monotonic() + 1
    while time.monotonic() < until:
        # The news may come twice, and drop the first copy of what was written too.
        if cache.get("heard") == mark and cache.stats().memory_items:
            return True
    return False
