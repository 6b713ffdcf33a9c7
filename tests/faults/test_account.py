"""How the chaos is counted: what is lost, what ran twice and may not have, what may have."""

from math import inf

import pytest

from tests.faults.chaos.account import WINDOW, Account, History, account
from tests.faults.ledger import Run


def told(history: History, *runs: Run, unfinished: list[str] | None = None) -> Account:
    return account("solo", history, 1, unfinished or [], {"job": runs})


def doubles(account: Account) -> tuple[int, int, int]:
    return account.live_twice, account.unsaid, account.done_again


def test_a_job_that_was_run_again_because_its_worker_died_is_a_recovery() -> None:
    found = told(History(workers={"a": 3.0}), Run("a", 1, 1.0), Run("b", 2, 5.5, 6.0))
    assert (doubles(found), found.recoveries) == ((0, 0, 0), [2.5])
    assert found.keeps_the_promise(2.5)
    assert not found.keeps_the_promise(2.4)


def test_a_process_of_a_pool_may_die_alone() -> None:
    history = History(children={1: 2.0}, workers={"a": 9.0})
    assert told(history, Run("a", 1, 1.0), Run("a", 2, 2.5, 3.0)).recoveries == [0.5]


@pytest.mark.parametrize("first", [Run("a", 1, 1.0), Run("a", 1, 1.0, 7.0)], ids=["killed later", "ended later"])
def test_a_job_that_began_again_while_it_was_alive_must_not_be(first: Run) -> None:
    found = told(History(workers={"a": 8.0}), first, Run("b", 2, 5.0, 6.0))
    assert doubles(found) == (1, 0, 0)
    assert not found.keeps_the_promise(inf)


@pytest.mark.parametrize(
    ("death", "outages", "expected"),
    [
        (2.0 + WINDOW / 2, [], (0, 1, 0)),
        (2.0 + WINDOW * 2, [], (0, 0, 1)),
        (inf, [], (0, 0, 1)),
        (5.0, [(1.5, 4.9)], (0, 1, 0)),
        (5.0, [(1.5, 4.0)], (0, 0, 1)),
    ],
    ids=["died at once", "died later", "lives", "could tell nobody", "could tell after all"],
)
def test_a_job_done_again_is_forgiven_if_nobody_could_be_told(
    death: float, outages: list[tuple[float, float]], expected: tuple[int, int, int]
) -> None:
    history = History(workers={"a": death}, outages=outages)
    assert doubles(told(history, Run("a", 1, 1.0, 2.0), Run("b", 2, 9.0, 9.5))) == expected


def test_a_job_done_again_for_no_known_reason_has_its_story_told() -> None:
    log = [(-20.0, "restart_server"), (1.5, "cut_connections"), (4.0, "kill_worker")]
    found = told(History(workers={"a": 4.0}, log=log), Run("a", 1, 1.0, 2.0), Run("b", 2, 6.25, 7.0))
    assert found.stories == [
        "a died +2.00 s, the job began again +4.25 s in b; done meanwhile: cut_connections -0.50 s, kill_worker +2.00 s"
    ]
    assert not told(History(workers={"a": 2.1}), Run("a", 1, 1.0, 2.0), Run("b", 2, 6.0, 7.0)).stories


def test_what_nobody_has_done_is_lost() -> None:
    assert not told(History(), unfinished=["job"]).keeps_the_promise(inf)


def test_a_worker_that_gives_up_breaks_the_promise() -> None:
    assert not told(History(ended=1), Run("a", 1, 1.0, 2.0)).keeps_the_promise(inf)
