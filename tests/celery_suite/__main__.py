"""``python -m tests.celery_suite``: the relevant part of Celery's suite on ours, on our parts, and on stock.

Takes about half an hour for each of `KINDS`. Arguments name files or tests of it in place of `RELEVANT`.
"""

import sys
import tempfile
from collections import Counter
from pathlib import Path

from backburner.redis.embedded import EmbeddedServer
from tests.celery_suite.suite import KINDS, Suite

RELEVANT = (
    "test_canvas.py",
    "test_tasks.py",
    "test_inspect.py",
    "test_connection_recovery.py",
    "test_group_chains.py",
)


def main() -> None:
    tests = sys.argv[1:] or RELEVANT
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="backburner-suite-") as name:
        suite = Suite.fetch(Path(name))
        for kind in KINDS:
            with EmbeddedServer(Path(name) / kind) as server:
                outcomes.append(suite.run(server.url, tests, kind=kind, seconds=3600))
            print(kind, dict(Counter(outcomes[-1].values())), flush=True)
    for test in outcomes[0]:
        told = [each.get(test, "missing") for each in outcomes]
        if len({*told}) > 1 or "failed" in told:
            print(f"{test}: {', '.join(map(' '.join, zip(KINDS, told, strict=True)))}")


if __name__ == "__main__":
    main()
