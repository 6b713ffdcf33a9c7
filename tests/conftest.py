"""What all tests share: a real server, an environment of their own, and a way to wait without guessing."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

import psutil
import pytest
import redis
from hypothesis import HealthCheck, settings

from backburner.redis.embedded import EmbeddedServer
from backburner.testing import FaultProxy

pytest_plugins = ["tests.servers"]

T = TypeVar("T")

# Examples are not timed: the machine may have more to do.
settings.register_profile("untimed", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

_DEVELOPERS_OWN = ("REDIS_", "CACHE_", "CELERY_", "DATABASE_URL", "SMTP_URL")
_POLL = 0.02


class Eventually(Protocol):
    def __call__(self, predicate: Callable[[], T], timeout: float = 10) -> T: ...


@pytest.fixture(autouse=True)
def clean_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the developer reaches a test: no variable, no ``.env`` (read from where one stands)."""
    for name in list(os.environ):
        if name.upper().startswith(_DEVELOPERS_OWN):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def anyio_backend() -> str:
    """Tests that are coroutines run on asyncio, which is all that the library knows."""
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    left = [child for child in psutil.Process().children(recursive=True) if not _is_pythons_own(child)]
    assert not left, f"the tests left processes behind: {[child.cmdline() for child in left]}"


def _is_pythons_own(process: psutil.Process) -> bool:
    return any("multiprocessing" in word for word in process.cmdline())


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """One embedded server for all tests. Take `redis_url` instead, unless you need its process."""
    with EmbeddedServer(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def redis_url(valkey: EmbeddedServer) -> str:
    """The URL of a real server that holds nothing."""
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    return valkey.url


@pytest.fixture
def proxy(redis_url: str) -> Iterator[FaultProxy]:
    """A way to that server which can be refused, stalled, delayed and cut."""
    place = urlsplit(redis_url)
    with FaultProxy(place.hostname or "", place.port or 0) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def eventually() -> Eventually:
    """Wait until a predicate gives something true, and return that: ``eventually(job.ready, timeout=5)``."""

    def wait(predicate: Callable[[], T], timeout: float = 10) -> T:
        deadline = time.monotonic() + timeout
        while not (result := predicate()):
            if time.monotonic() > deadline:
                pytest.fail(f"did not happen within {timeout} s; the last result was {result!r}")
            time.sleep(_POLL)
        return result

    return wait
