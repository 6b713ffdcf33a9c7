"""``worker --pool=asyncio``: thousands of coroutines at a time on one event loop, and Celery's own machinery on it too.

`bridge` lets blocking code wait on the loop without blocking it, by way of greenlets: Celery's consumer runs in one
(`serving`), and so does its tracer, once for each job (`job`). So nothing of Celery is replaced. `taskpool` is the
pool, `threads` runs its ``def`` tasks.
"""

import sys
from typing import Any

from celery import concurrency

NAME = "asyncio"


def register() -> None:
    """Make the pool known by its name, to the command line too."""
    pools: Any = concurrency  # the stubs leave it out
    pools.ALIASES[NAME] = "backburner.queue.pool.taskpool:TaskPool"
    # Where Celery's command imported the app, it has made up its list of pools before.
    command = sys.modules.get("celery.bin.worker")
    if command is not None and NAME not in command.WORKERS_POOL.choices:
        command.WORKERS_POOL.choices = (*command.WORKERS_POOL.choices, NAME)
