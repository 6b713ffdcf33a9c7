"""Leases are renewed while they are held, by a thread that is there only then."""

from collections.abc import Mapping
from threading import Thread

import pytest

from backburner.cache.leases import Leases
from tests.alarms import Alarm
from tests.conftest import Eventually


class Renewals:
    """Notes which leases are renewed, and says that some are lost."""

    def __init__(self, *lost: str) -> None:
        self.asked: list[dict[str, str]] = []
        self.lost = list(lost)

    def __call__(self, tokens: Mapping[str, str]) -> list[str]:
        self.asked.append(dict(tokens))
        return [key for key in self.lost if key in tokens]


def test_what_is_held_for_long_is_renewed_again_and_again_in_one_go(eventually: Eventually) -> None:
    renewals = Renewals()
    leases = Leases(0.03, renewals)
    leases.hold(("a", "b"), "token")
    leases.hold(("c",), "other")
    eventually(lambda: renewals.asked.count({"a": "token", "b": "token", "c": "other"}) > 2)
    leases.let_go(("a", "b"), "token")
    renewals.asked.clear()
    eventually(lambda: {"c": "other"} in renewals.asked)
    leases.let_go(("c",), "other")
    eventually(lambda: not leases._watched)


def test_a_lost_lease_is_not_asked_for_again(eventually: Eventually) -> None:
    renewals = Renewals("a")
    leases = Leases(0.03, renewals)
    leases.hold(("a", "b"), "token")
    eventually(lambda: {"b": "token"} in renewals.asked)
    leases.let_go(("a", "b"), "token")
    eventually(lambda: not leases._watched)
    assert sum("a" in tokens for tokens in renewals.asked) == 1


def test_a_lease_taken_anew_is_not_let_go_by_who_held_it_before(eventually: Eventually) -> None:
    renewals = Renewals()
    leases = Leases(0.03, renewals)
    leases.hold(("a",), "first")
    leases.hold(("a",), "second")
    leases.let_go(("a",), "first")
    eventually(lambda: {"a": "second"} in renewals.asked)
    leases.let_go(("a",), "second")
    eventually(lambda: not leases._watched)


def test_leases_are_renewed_though_who_held_the_first_was_interrupted_as_the_thread_began(
    eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Thread) -> None:
        raise Alarm

    renewals = Renewals()
    leases = Leases(0.03, renewals)
    with monkeypatch.context() as patch:
        patch.setattr(Thread, "start", interrupted)
        with pytest.raises(Alarm):
            leases.hold(("a",), "token")
    leases.hold(("a",), "token")
    eventually(lambda: {"a": "token"} in renewals.asked)
    leases.let_go(("a",), "token")
    eventually(lambda: not leases._watched)


def test_short_computations_cost_no_renewal(eventually: Eventually) -> None:
    renewals = Renewals()
    leases = Leases(0.3, renewals)
    for _ in range(100):
        leases.hold(("a",), "token")
        assert leases._watched
        leases.let_go(("a",), "token")
    eventually(lambda: not leases._watched)
    assert not renewals.asked
