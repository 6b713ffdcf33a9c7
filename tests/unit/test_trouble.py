"""What the log says of trouble, and how often."""

import asyncio
import logging
from collections.abc import Iterator

import pytest
import redis

from backburner import Cache
from backburner.cache.trouble import TroubleLog
from backburner.errors import StoreError, StoreUnavailable
from backburner.events import BreakerClosed, BreakerOpened, Degraded, LockLost, RefreshFailed, Undecodable
from tests.contract.conftest import Clock


@pytest.fixture
def trouble(caplog: pytest.LogCaptureFixture, clock: Clock) -> TroubleLog:
    caplog.set_level(logging.DEBUG, "backburner.cache")
    return TroubleLog(clock)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_outage_is_one_line_and_its_end_another(trouble: TroubleLog, caplog: pytest.LogCaptureFixture) -> None:
    trouble(BreakerOpened("redis://host:6379/0", 0.1, StoreUnavailable("refused")))
    for number in range(100):
        trouble(Degraded("get", (f"key:{number}",), StoreUnavailable("refused")))
    trouble(BreakerClosed("redis://host:6379/0", 12.34))
    assert warnings(caplog) == [
        (
            "cache server redis://host:6379/0 does not answer (StoreUnavailable: refused): going on without it, "
            "next try in 0.10 s"
        ),
        "cache server redis://host:6379/0 answers again, after 12.3 s",
    ]


def test_of_many_alike_the_first_is_a_warning_and_the_rest_are_counted_in_the_next(
    trouble: TroubleLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(5):
        trouble(Undecodable(f"user:{number}", "the header is damaged"))
    trouble(RefreshFailed("user:1", LookupError("another thing")))
    assert len(caplog.records) == 6
    clock.advance(61)
    trouble(Undecodable("user:9", "the header is damaged"))
    assert warnings(caplog) == [
        "cache entry 'user:0' cannot be read and counts as a miss: the header is damaged",
        "cache entry 'user:1' could not be renewed, the one from before is given: LookupError: another thing",
        (
            "cache entry 'user:9' cannot be read and counts as a miss: the header is damaged "
            "(4 more like it since the last such line)"
        ),
    ]


def test_of_what_a_server_refuses_each_kind_is_a_warning_once_a_minute(
    trouble: TroubleLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    full, forbidden = StoreError("OOM command not allowed"), StoreError("NOPERM no permissions to run 'eval'")
    for number in range(5):
        trouble(Degraded("put", (f"user:{number}", "user:x"), full))
        trouble(Degraded("flush", (), forbidden))
    clock.advance(61)
    trouble(Degraded("put", ("user:9",), full))
    assert warnings(caplog) == [
        "cache put of user:0: the server refuses, going on without it: OOM command not allowed",
        "cache flush of everything: the server refuses, going on without it: NOPERM no permissions to run 'eval'",
        (
            "cache put of user:9: the server refuses, going on without it: OOM command not allowed "
            "(4 more like it since the last such line)"
        ),
    ]


@pytest.fixture
def without_scripts(redis_url: str) -> Iterator[str]:
    """The server, for a user who may not run scripts."""
    with redis.Redis.from_url(redis_url) as server:
        server.execute_command("ACL", "SETUSER", "reader", "on", ">pw", "~*", "&*", "+@all", "-@scripting")
        yield redis_url.replace("redis://", "redis://reader:pw@")
        server.execute_command("ACL", "DELUSER", "reader")


def test_a_user_without_the_rights_is_told_and_the_server_is_there(
    without_scripts: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = Cache(without_scripts, l1=False)
    assert [cache.put("key", 1), cache.put("key", 2)] == [False, False]
    assert len(warnings(caplog)) == 1
    assert "the server refuses, going on without it: " in warnings(caplog)[0]
    assert cache.stats().available
    cache.close()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_database_that_is_not_there_is_a_server_that_is_not(
    redis_url: str, asynchronous: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def put() -> bool:
        stored = await cache.aput("key", 1)
        await cache.aclose()
        return stored

    cache = Cache(f"{redis_url.rpartition('/')[0]}/99999", l1=False)
    assert not (asyncio.run(put()) if asynchronous else cache.put("key", 1))
    assert not cache.stats().available
    assert [line for line in warnings(caplog) if "does not answer" in line and "DB index is out of range" in line]
    cache.close()


def test_of_an_error_no_more_than_its_first_line_is_written(
    trouble: TroubleLog, caplog: pytest.LogCaptureFixture
) -> None:
    trouble(RefreshFailed("user:1", ValueError("1 validation error\npassword: input_value='hunter2'")))
    trouble(Undecodable("user:2", "x" * 1000))
    assert "1 validation error" in caplog.text
    assert "hunter2" not in caplog.text
    assert len(warnings(caplog)[1]) < 300


def test_a_lock_that_was_lost_is_always_told(trouble: TroubleLog, caplog: pytest.LogCaptureFixture) -> None:
    trouble(LockLost("import", 31.0))
    trouble(LockLost("export", 31.0))
    assert len(warnings(caplog)) == 2


def test_the_passwords_of_a_server_that_refuses_us_stay_out_of_the_log(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "backburner.cache")
    cache = Cache(redis_url.replace("redis://", "redis://somebody:wrong-password@"), l1=False)
    cache.get("key")
    cache.close()
    assert any("does not answer" in line for line in warnings(caplog))
    assert "wrong-password" not in caplog.text
