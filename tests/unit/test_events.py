"""Who is told what, and what it costs where nobody listens."""

import pytest

from backburner import Cache
from backburner.events import Computed, Degraded, Event, Events, Hit, Invalidated, Miss, Stored


def test_who_asks_for_no_kind_gets_all_and_who_asks_for_some_gets_those() -> None:
    events, everything, misses = Events(), [], []
    events.subscribe(everything.append)
    events.subscribe(misses.append, Miss)
    for event in (Hit("a", "memory"), Miss("b"), Invalidated(keys=("c",))):
        events.emit(event)
    assert everything == [Hit("a", "memory"), Miss("b"), Invalidated(keys=("c",))]
    assert misses == [Miss("b")]


def test_nothing_is_told_any_more_to_who_does_not_want_it_any_more() -> None:
    events, seen = Events(), []
    end = events.subscribe(seen.append)
    end()
    end()
    events.emit(Miss("a"))
    assert seen == []
    assert not events.listening


@pytest.mark.parametrize(
    ("kinds", "frequent"), [((Degraded,), set()), ((Computed, Degraded), {Computed}), ((Hit, Miss), {Hit, Miss})]
)
def test_only_the_frequent_kinds_that_somebody_wants_are_made(
    kinds: tuple[type[Event], ...], frequent: set[type[Event]]
) -> None:
    events = Events()
    events.subscribe(lambda _: None, *kinds)
    assert events.listening == frequent


def test_who_wants_everything_wants_what_is_frequent_too() -> None:
    events = Events()
    events.subscribe(lambda _: None)
    assert {Hit, Miss, Stored, Computed} < events.listening


def test_a_change_of_the_frequent_kinds_wanted_is_told_and_nothing_else() -> None:
    events, told = Events(), []
    events.on_listening = lambda: told.append(events.listening)
    events.subscribe(lambda _: None, Degraded)
    end = events.subscribe(lambda _: None, Hit)
    events.subscribe(lambda _: None, Hit)()
    end()
    assert told == [{Hit}, set()]


def test_an_error_in_a_subscriber_reaches_nobody_but_the_log(caplog: pytest.LogCaptureFixture) -> None:
    cache, seen = Cache("memory://"), []

    def fails(event: Event) -> None:
        raise LookupError("broken")

    cache.events.subscribe(fails, Miss)
    cache.events.subscribe(seen.append, Miss)
    assert cache.get("key") is None
    assert seen == [Miss("key")]
    assert "broken" in caplog.text


def test_a_reader_hears_where_its_value_came_from() -> None:
    cache, seen = Cache("memory://"), []
    cache.events.subscribe(seen.append)
    cache.remember("user:1", 60, lambda: "value")
    cache.get("user:1")
    cache.forget("user:1")
    computed = next(event for event in seen if isinstance(event, Computed))
    assert computed.keys == ("user:1",)
    assert 0 <= computed.seconds < 5
    assert [event for event in seen if event is not computed] == [
        Miss("user:1"),
        Stored("user:1"),
        Hit("user:1", "memory"),
        Invalidated(keys=("user:1",)),
    ]
