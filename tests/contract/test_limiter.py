"""Rate limits, on every store, blocking and asyncio; the arithmetic; and a server that is away."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backburner import Cache
from backburner.cache import Allowance
from backburner.cache.keys import Keyspace
from backburner.cache.runtime import run
from backburner.cache.stores.limits import Rate, RedisLimits, judge
from backburner.errors import StoreUnavailable
from backburner.events import Degraded, Event
from backburner.testing import FaultProxy
from tests.conftest import Eventually
from tests.contract.conftest import Asynchronous

Limiters = Callable[..., Any]


@pytest.fixture
def cache(plain_cache: Cache) -> Cache:
    return plain_cache


@pytest.fixture(params=["blocking", "asyncio"])
def limiter(request: pytest.FixtureRequest, cache: Cache) -> Iterator[Limiters]:
    if request.param == "blocking":
        yield cache.limiter
        return
    with asyncio.Runner() as runner:
        yield lambda *args, **kwargs: Asynchronous(cache.limiter(*args, **kwargs), runner.get_loop())
        runner.run(cache.aclose())


def test_a_burst_is_allowed_and_then_no_more(limiter: Limiters) -> None:
    logins = limiter("login")
    first = logins.allow("ada", "5/minute")
    assert first == Allowance(True, 4, 0.0, 12.0)
    assert [logins.allow("ada", "5/minute").remaining for _ in range(4)] == [3, 2, 1, 0]
    refused = logins.allow("ada", "5/minute")
    assert not refused
    assert refused.remaining == 0
    assert 0 < refused.retry_after <= 12
    assert 48 < refused.reset_after <= 60


def test_a_refusal_costs_nothing(limiter: Limiters) -> None:
    logins = limiter("login")
    for _ in range(5):
        logins.allow("ada", "5/hour")
    waits = [logins.allow("ada", "5/hour").retry_after for _ in range(5)]
    assert waits == sorted(waits, reverse=True)


def test_after_the_time_it_said_it_is_allowed_again(limiter: Limiters, eventually: Eventually) -> None:
    mails = limiter("mail")
    for _ in range(2):
        assert mails.allow("ada", "2/s")
    refused = mails.allow("ada", "2/s")
    assert not refused
    began = time.monotonic()
    assert eventually(lambda: mails.allow("ada", "2/s"))
    assert time.monotonic() - began > refused.retry_after - 0.05


def test_names_keys_and_rates_count_apart(limiter: Limiters) -> None:
    assert limiter("login").allow("ada", "1/minute")
    assert limiter("login").allow("grace", "1/minute")
    assert limiter("mail").allow("ada", "1/minute")
    assert limiter("login").allow("ada", "1/hour")
    assert limiter("a:b").allow("c", "1/minute")
    assert limiter("a").allow("b:c", "1/minute")
    assert not limiter("login").allow("ada", "1/minute")
    assert not limiter("login").allow("ada", "1/60s")  # the same rate in other words


def test_a_call_can_cost_more_than_one(limiter: Limiters) -> None:
    exports = limiter("export")
    assert exports.allow("ada", "10/minute", cost=7).remaining == 3
    assert not exports.allow("ada", "10/minute", cost=4)
    assert exports.allow("ada", "10/minute", cost=3).remaining == 0


def test_a_cost_of_nothing_asks_without_counting(limiter: Limiters) -> None:
    assert limiter("login").allow("ada", "2/hour", cost=0) == Allowance(True, 2, 0.0, 0.0)
    limiter("login").allow("ada", "2/hour")
    assert limiter("login").allow("ada", "2/hour", cost=0).remaining == 1
    assert limiter("login").allow("ada", "2/hour", cost=0).remaining == 1


@pytest.mark.parametrize("key", ["", "new\nline", "nul\x00", "x" * 5000, "💶", "\ud800"])
def test_any_text_has_a_rate_of_its_own(limiter: Limiters, key: str) -> None:
    assert limiter("login").allow(key, "1/hour")
    assert not limiter("login").allow(key, "1/hour")
    assert limiter("login").allow(key + "?", "1/hour")


@pytest.mark.parametrize(
    "rate",
    [
        "",
        "5",
        "5/",
        "/minute",
        "5 per minute",
        "0/minute",
        "5/0s",
        "-5/m",
        "1.5/m",
        "5/y",
        "2000000/s",
        "1/400d",
        7,
        None,
    ],
)
def test_a_rate_that_makes_no_sense_is_refused(limiter: Limiters, rate: Any) -> None:
    with pytest.raises(ValueError, match="is no rate"):
        limiter("login").allow("ada", rate)


@pytest.mark.parametrize("cost", [-1, 6, 1.5, True, None, "1"])
def test_a_cost_that_makes_no_sense_is_refused(limiter: Limiters, cost: Any) -> None:
    with pytest.raises(ValueError, match="from 0 to 5"):
        limiter("login").allow("ada", "5/minute", cost=cost)


def test_a_key_that_is_no_text_is_refused(limiter: Limiters) -> None:
    with pytest.raises(ValueError, match="must be text, not int"):
        limiter("login").allow(5, "5/minute")


@pytest.mark.parametrize("name", ["", "a\x01b", 5])
def test_a_name_that_makes_no_sense_is_refused(cache: Cache, name: Any) -> None:
    with pytest.raises(ValueError, match="limiter's name"):
        cache.limiter(name)


@pytest.mark.parametrize(
    ("text", "interval", "burst"),
    [
        ("5/minute", 12_000_000, 5),
        ("100/h", 36_000_000, 100),
        ("10/30s", 3_000_000, 10),
        ("3/sec", 333_334, 3),
        (" 2 / 3 Hours ", 5_400_000_000, 2),
        ("1/day", 86_400_000_000, 1),
        ("1000000/s", 1, 1_000_000),
    ],
)
def test_rates_are_read(text: str, interval: int, burst: int) -> None:
    rate = Rate.parse(text)
    assert (rate.interval, rate.burst) == (interval, burst)


def test_of_many_threads_no_more_than_the_rate_get_through(cache: Cache) -> None:
    limiter = cache.limiter("login")
    with ThreadPoolExecutor(16) as pool:
        assert sum(map(bool, pool.map(lambda _: limiter.allow("ada", "10/hour"), range(100)))) == 10


def test_flush_leaves_limits_alone(limiter: Limiters, cache: Cache) -> None:
    assert limiter("login").allow("ada", "1/hour")
    cache.flush()
    assert not limiter("login").allow("ada", "1/hour")


def test_limits_that_are_used_up_no_more_do_not_pile_up_in_memory() -> None:
    cache = Cache("memory://")
    for number in range(5000):
        cache.limiter("login").allow(f"address:{number}", "1000000/s")
    assert cache._memory is not None
    assert len(cache._memory.limits._used) < 4000


@given(
    rate=st.builds(lambda count, period: Rate.parse(f"{count}/{period}s"), st.integers(1, 50), st.integers(1, 3600)),
    steps=st.lists(st.tuples(st.integers(0, 10**10), st.integers(0, 3)), max_size=60),
)
def test_never_more_than_a_burst_and_what_the_time_since_gives(rate: Rate, steps: list[tuple[int, int]]) -> None:
    now = began = 1_700_000_000_000_000
    state = spent = 0
    for pause, wanted in steps:
        now += pause
        cost = min(wanted, rate.burst)
        allowance, after = judge(rate, cost, now, state)
        if allowance:
            spent += cost
        else:
            assert after == max(state, now)
            retry_at = now + round(allowance.retry_after * 1_000_000)
            assert judge(rate, cost, retry_at, after)[0]
            assert not judge(rate, cost, retry_at - 1, after)[0]
        assert spent <= rate.burst + (now - began) // rate.interval
        assert 0 <= allowance.remaining <= rate.burst
        assert judge(rate, allowance.remaining, now, after)[0]
        assert not judge(rate, allowance.remaining + 1, now, after)[0]
        state = after


# On a server


@given(
    count=st.integers(1, 1000),
    period=st.integers(1, 86_400),
    costs=st.lists(st.integers(0, 5), min_size=1, max_size=10),
    state=st.integers(-(10**9), 10**12),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_script_and_the_arithmetic_agree(
    redis_url: str, count: int, period: int, costs: list[int], state: int
) -> None:
    rate = Rate.parse(f"{count}/{period}s")
    replies: list[list[int]] = []
    with redis.Redis.from_url(redis_url) as server:
        name = Keyspace("limits:").limit("key")
        seconds, micros = server.time()
        server.set(name, seconds * 1_000_000 + micros + state)

        async def script(script: Any, names: Any, arguments: Any) -> Any:
            replies.append(server.eval(script.text, len(names), *names, *arguments))
            return replies[-1]

        limits = RedisLimits(script, Keyspace("limits:"))
        for cost in (min(cost, rate.burst) for cost in costs):
            stored_before = int(server.get(name) or 0)
            allowance = run(limits.take("key", rate, cost))
            now, before = replies[-1]
            expected, after = judge(rate, cost, now, before)
            assert before == min(max(stored_before, now), now + rate.burst * rate.interval)
            assert allowance == expected
            if (not allowance or not cost) and before >= stored_before:
                assert int(server.get(name) or 0) in (stored_before, 0)  # it may have ended just now
            elif after - now > 5_000_000:
                assert int(server.get(name)) == after
                assert 0 < server.pttl(name) <= (after - now) // 1000 + 1


def test_a_server_whose_clock_was_set_back_by_an_hour_refuses_for_no_longer_than_after_a_burst(
    redis_url: str, eventually: Eventually
) -> None:
    cache = Cache(redis_url, prefix="shop:", strict=True)
    logins = cache.limiter("login")
    assert logins.allow("ada", "5/s")
    with redis.Redis.from_url(redis_url) as server:
        (name,) = server.keys("*limit*")
        server.set(name, int(server.get(name)) + 3600 * 1_000_000)
    refusal = logins.allow("ada", "5/s")
    assert not refusal
    assert refusal.retry_after == 0.2
    eventually(lambda: logins.allow("ada", "5/s"))
    cache.close()


def test_a_question_is_one_round_trip_and_its_key_ends(redis_url: str) -> None:
    cache = Cache(redis_url, prefix="shop:", strict=True)
    cache.limiter("login").allow("ada", "5/minute")  # the script is known now
    with redis.Redis.from_url(redis_url) as server:
        calls = server.info("commandstats")["cmdstat_evalsha"]["calls"]
        cache.limiter("login").allow("ada", "5/minute")
        assert server.info("commandstats")["cmdstat_evalsha"]["calls"] == calls + 1
        (name,) = server.scan_iter()
        assert name.startswith(b"shop:\x01limit:")
        assert 12_000 < server.pttl(name) <= 24_000
    cache.close()


def test_without_the_server_everything_is_allowed_or_nothing_as_wanted(proxy: FaultProxy) -> None:
    cache = Cache(proxy.url)
    seen: list[Event] = []
    cache.events.subscribe(seen.append)
    proxy.refuse()
    assert cache.limiter("search").allow("ada", "1/hour")
    refused = cache.limiter("login", fail_open=False).allow("ada", "1/hour")
    assert not refused
    assert refused.retry_after > 0
    assert [event.operation for event in seen if isinstance(event, Degraded)] == ["limit", "limit"]
    assert cache.stats().degraded == 2
    cache.close()


def test_a_strict_cache_says_that_the_server_is_away(proxy: FaultProxy) -> None:
    cache = Cache(proxy.url, strict=True)
    proxy.refuse()
    with pytest.raises(StoreUnavailable):
        cache.limiter("login").allow("ada", "1/hour")
    cache.close()
