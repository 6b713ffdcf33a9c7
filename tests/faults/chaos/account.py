"""What a trial comes to: jobs that were lost, or ran twice, and how long it took until a dead worker's jobs ran again.

Pure: from runs, deaths and outages to numbers.

A job that ran twice is one of three. Its first run was still alive when the second one began: that must not be. Or it
had ended, and its worker was killed before it could say so, within `WINDOW`: that is the promise, at least once. Or it
had ended long before, with everybody alive: that should not be, and is told.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil, inf

from tests.faults.ledger import Run

WINDOW = 0.5
"""Seconds after which the end of a job has reached the server: some milliseconds, were the machine our own, and a
quarter of a second if the connection was cut just then."""
_NEAR = 3.0
"""Seconds around the end of a job that is done again for no known reason, of which is told what was done."""


@dataclass
class History:
    """What was done to the workers and to the server, in monotonic time."""

    kills: int = 0
    faults: int = 0
    """Of the server, or of the way to it."""
    ended: int = 0
    """Workers that ended by themselves."""
    workers: dict[str, float] = field(default_factory=dict)
    """When whole workers died, or were stopped never to run again."""
    children: dict[int, float] = field(default_factory=dict)
    """When processes of a pool died."""
    outages: list[tuple[float, float]] = field(default_factory=list)
    """When the server could not be told anything."""
    log: list[tuple[float, str]] = field(default_factory=list)
    """What was done, by name, and when."""

    def death(self, run: Run) -> float:
        """When the process died that had this run."""
        return min(self.workers.get(run.worker, inf), self.children.get(run.pid, inf))

    def reachable(self, begin: float, end: float) -> float:
        """For how long somebody could have told the server something."""
        away = sum(max(0.0, min(end, until) - max(begin, since)) for since, until in self.outages)
        return end - begin - away


@dataclass(frozen=True)
class Account:
    """The numbers of one trial."""

    pool: str
    kills: int
    faults: int
    ended: int
    jobs: int
    lost: int
    live_twice: int
    """Runs that began while another of the same job was alive."""
    unsaid: int
    """Jobs done again, whose end could not be said before their worker died."""
    done_again: int
    """Jobs done again for no such reason."""
    stories: Sequence[str]
    """Of each of these, what happened around its end."""
    recoveries: Sequence[float]
    """Seconds from the death of what ran a job to the job's next start."""

    def recovery(self, percent: int) -> float:
        """That percentile of the recoveries; 0 if there were none."""
        ordered = sorted(self.recoveries)
        return ordered[ceil(len(ordered) * percent / 100) - 1] if ordered else 0.0

    def keeps_the_promise(self, longest_recovery: float) -> bool:
        """Whether nothing was lost, nothing ran twice at a time, no worker gave up, and everything recovered in time.

        What was `done_again` is told and not judged: at least once is all that is promised of a job that has ended.
        """
        wrong = self.lost or self.live_twice or self.ended
        return not wrong and self.recovery(99) <= longest_recovery


def account(
    pool: str, history: History, jobs: int, unfinished: Iterable[str], runs: Mapping[str, Sequence[Run]]
) -> Account:
    """Add up."""
    live_twice = unsaid = 0
    stories: list[str] = []
    recoveries: list[float] = []
    for several in runs.values():
        for run, following in pairwise(several):
            death = history.death(run)
            if following.start < (death if run.end is None else run.end):
                live_twice += 1
            elif run.end is None:
                recoveries.append(following.start - death)
            elif history.reachable(run.end, max(run.end, death)) < WINDOW:
                unsaid += 1
            else:
                stories.append(_story(history, run, following))
    return Account(
        pool=pool,
        kills=history.kills,
        faults=history.faults,
        ended=history.ended,
        jobs=jobs,
        lost=len(list(unfinished)),
        live_twice=live_twice,
        unsaid=unsaid,
        done_again=len(stories),
        stories=stories,
        recoveries=recoveries,
    )


def _story(history: History, run: Run, following: Run) -> str:
    end = run.end or 0.0
    death = history.death(run)
    died = "lives on" if death == inf else f"died {death - end:+.2f} s"
    near = [f"{name} {at - end:+.2f} s" for at, name in history.log if abs(at - end) < _NEAR]
    return (
        f"{run.worker} {died}, the job began again {following.start - end:+.2f} s in {following.worker}; "
        f"done meanwhile: {', '.join(near) or 'nothing'}"
    )
