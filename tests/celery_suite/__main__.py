"""``python -m tests.celery_suite``: the relevant part of Celery's suite on ours and on stock, side by side.

Takes about half an hour for each. Arguments name files or tests of it in place of `RELEVANT`.
"""

import sys
import tempfile
from collections import Counter
from pathlib import Path

from backburner.redis.embedded import EmbeddedServer
from tests.celery_suite.suite import Suite

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
        for ours in (True, False):
            with EmbeddedServer(Path(name) / f"server-{ours}") as server:
                outcomes.append(suite.run(server.url, tests, ours=ours, seconds=3600))
            print("ours " if ours else "stock", dict(Counter(outcomes[-1].values())), flush=True)
    for test, outcome in outcomes[0].items():
        if (other := outcomes[1].get(test, "missing")) != outcome or outcome == "failed":
            print(f"{test}: ours {outcome}, stock {other}")


if __name__ == "__main__":
    main()
