"""What an entry is good for at a time, whatever its times and tags are."""

import math
from itertools import pairwise

from hypothesis import assume, given
from hypothesis import strategies as st

from backburner.cache.entry import Decision, Entry, decide, refresh_point

TIMES = st.floats(0, 4e9)
ENDS = TIMES | st.just(math.inf)
VERSIONS = st.lists(st.binary(min_size=8, max_size=8), max_size=4)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    created, refresh_at = draw(TIMES), draw(ENDS)
    fresh_until, expires_at = sorted([draw(ENDS), draw(ENDS)])
    tags = tuple((f"tag {number}", version) for number, version in enumerate(draw(VERSIONS)))
    return Entry(b"", created, refresh_at, fresh_until, expires_at, tags)


def versions(entry: Entry) -> list[bytes | None]:
    return [version for _, version in entry.tags]


@given(entries(), TIMES)
def test_an_entry_is_judged_by_its_three_times(entry: Entry, now: float) -> None:
    decision = decide(entry, now, versions(entry))
    assert (decision is Decision.MISS) == (now >= entry.expires_at)
    assert decision.fresh == (now < entry.fresh_until)
    if decision is not Decision.MISS:
        assert (decision in (Decision.HIT, Decision.RESTING)) == (now < entry.refresh_at)


@given(entries(), st.lists(TIMES, min_size=2))
def test_an_entry_never_gets_better_with_time(entry: Entry, times: list[float]) -> None:
    decisions = [decide(entry, now, versions(entry)) for now in sorted(times)]
    assume(entry.refresh_at <= entry.fresh_until)  # or renewing it failed, and is tried again from there on
    assert all(before.value <= after.value for before, after in pairwise(decisions))


@given(entries(), TIMES, st.data())
def test_any_tag_that_was_flushed_or_lost_makes_it_a_miss(entry: Entry, now: float, data: st.DataObject) -> None:
    assume(entry.tags)
    current = versions(entry)
    which = data.draw(st.integers(0, len(current) - 1))
    current[which] = data.draw(st.none() | st.binary(min_size=8, max_size=8).filter(current[which].__ne__))
    assert decide(entry, now, current) is Decision.MISS


@given(TIMES)
def test_nothing_is_a_miss(now: float) -> None:
    assert decide(None, now, []) is Decision.MISS


@given(TIMES, st.floats(0, 3600), st.floats(0, 1, exclude_min=True))
def test_renewal_is_never_later_than_the_end_and_earlier_the_longer_a_value_takes(
    fresh_until: float, seconds: float, draw: float
) -> None:
    assert refresh_point(fresh_until, seconds, draw) <= fresh_until
    assert refresh_point(fresh_until, 2 * seconds, draw) <= refresh_point(fresh_until, seconds, draw)
