"""``make chaos``: workers, servers and connections die at random; jobs are counted. A table, with stock Celery beside.

Ends with an error if one of ours was lost, ran twice while it was alive, or took longer to recover than it may.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.faults.chaos.account import WINDOW, Account
from tests.faults.chaos.faults import ALL
from tests.faults.chaos.trial import LEASE, Trial

POOLS = ("prefork", "threads", "solo", "gevent", "asyncio")
LONGEST_RECOVERY = LEASE + 5
_STOCKS_SHARE = 0.15
_COLUMNS = (
    "workers", "kills", "other faults", "gave up", "jobs", "lost", "run twice at a time", "done again",
    f"done again, ended less than {WINDOW:g} s before a death", "recovery p50", "p99",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=180, help="all in all, about (180)")
    parser.add_argument("--pools", default=",".join(POOLS), help=f"which pools of ours ({','.join(POOLS)})")
    parser.add_argument("--pause", type=float, default=0.25, help="seconds between two faults, on average (0.25)")
    parser.add_argument("--no-stock", action="store_true", help="leave out stock Celery")
    parser.add_argument("--keep", type=Path, help="a new folder for logs and ledgers")
    given = parser.parse_args(arguments)
    pools = given.pools.split(",")
    share = (1 - _STOCKS_SHARE) / len(pools)
    trials = [(pool, False, given.seconds * share) for pool in pools]
    if not given.no_stock:
        trials.append(("prefork", True, given.seconds * _STOCKS_SHARE))
    # In memory: the server waits for its disk before it answers, and shared disks are slow.
    memory = Path("/dev/shm")
    parent = memory if memory.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="backburner-chaos-", dir=parent) as name:
        folder = given.keep or Path(name)
        print(f"A lease is {LEASE:g} s; {given.seconds:g} s of chaos.", flush=True)
        print(_row(_COLUMNS), _row(["---"] * len(_COLUMNS)), sep="\n", flush=True)
        ours: list[Account] = []
        for pool, stock, seconds in trials:
            began = time.monotonic()
            told = Trial(pool, folder / f"{'stock-' if stock else ''}{pool}", stock=stock).run(
                seconds, ALL, given.pause
            )
            if not stock:
                ours.append(told)
            print(_row(_cells(f"stock {pool}" if stock else pool, told)), flush=True)
            for story in told.stories:
                print(f"done again: {story}", file=sys.stderr, flush=True)
            print(f"{pool}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    # One pool's recoveries are too few for a percentile that is a promise.
    together = [seconds for told in ours for seconds in told.recoveries]
    kept = all(replace(told, recoveries=together).keeps_the_promise(LONGEST_RECOVERY) for told in ours)
    return 0 if kept else 1


def _cells(name: str, told: Account) -> list[str]:
    counts = (told.kills, told.faults, told.ended, told.jobs, told.lost, told.live_twice, told.done_again, told.unsaid)
    return [name, *map(str, counts), f"{told.recovery(50):.1f} s", f"{told.recovery(99):.1f} s"]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
