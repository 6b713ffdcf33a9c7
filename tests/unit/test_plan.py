"""What options come to, and which make no sense."""

import math
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backburner.cache.plan import Plan


def plan(lifetime: float = 60.0, **options: Any) -> Plan:
    return Plan.of(len, lifetime, (), options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grace": -1}, "grace=-1"),
        ({"grace": "long"}, "grace: 'long'"),
        ({"hard_timeout": 0}, "hard_timeout=0"),
        ({"soft_timeout": math.nan}, "soft_timeout: nan"),
        ({"soft_timeout": 2, "hard_timeout": 1}, "soft_timeout=2 is longer"),
        ({"jitter": -0.1}, "jitter=-0.1"),
        ({"jitter": 30}, "jitter=30: write a fraction"),
        ({"jitter": True}, "jitter: True"),
        ({"throttle": timedelta(seconds=-1)}, "throttle="),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(**options)


def test_an_option_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(TypeError, match="no option 'timeout'; there are grace, hard_timeout"):
        plan(timeout=1)


@given(st.floats(0.001, 1e9), st.floats(0, 1))
def test_jitter_shortens_by_no_more_than_said(lifetime: float, fraction: float) -> None:
    fresh, grace = plan(lifetime, jitter=fraction, grace=5).times("value", lifetime)
    assert 0 < fresh <= lifetime
    assert fresh >= lifetime * (1 - fraction) * 0.999999
    assert grace == 5


def test_jitter_longer_than_the_ttl_leaves_something_and_what_is_for_ever_stays_so() -> None:
    assert 0 < plan(10, jitter="1h").times("value", 10)[0] <= 10
    assert plan(math.inf, jitter=0.5).times("value", math.inf)[0] == math.inf


def test_nothing_has_a_lifetime_of_its_own_unless_the_callback_chose_one() -> None:
    assert plan(none_ttl=5, grace=9).times(None, 60.0) == (5.0, 0.0)
    assert plan(none_ttl=5, grace=9).times(None, 30.0) == (30.0, 9.0)
    assert plan(grace=9).times(None, 60.0) == (60.0, 9.0)
    assert plan(none_ttl="2m").longest == 120.0
