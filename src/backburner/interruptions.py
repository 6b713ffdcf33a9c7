"""Exceptions that interrupt code and say nothing about it, as Celery's soft time limit does.

It is an `Exception`, which a signal's handler raises, or the pool throws into a coroutine, wherever the job just is.
Code that turns the exceptions of others into something else lets it pass first: ``except interruptions(): raise``.
"""

import sys


def interruptions() -> tuple[type[Exception], ...]:
    """Their classes; none where Celery has not been imported, for then nothing raises them."""
    limit = getattr(sys.modules.get("billiard.exceptions"), "SoftTimeLimitExceeded", None)
    return () if limit is None else (limit,)
