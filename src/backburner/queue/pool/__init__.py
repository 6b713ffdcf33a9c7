"""``worker --pool=asyncio``: thousands of coroutines at a time on one event loop, and Celery's own machinery on it too.

`bridge` lets blocking code wait on the loop without blocking it, by means of greenlets: Celery's consumer runs in one
(`serving`, with `poller` for its hub), and so does its tracer, once for each job
(`job`). So nothing of Celery is replaced. `taskpool` is the pool, `threads` runs its ``def`` tasks, `client` is what
jobs reach the result backend with, `watchdog` names whoever blocks the loop, and `caught` ends jobs that raise past the
tracer.
"""

import sys
from typing import Any

from celery import concurrency, signals

NAME = "asyncio"

CONCURRENCY = 100
"""Jobs at a time, unless the command line or the configuration sets it. Celery's default is the number of CPUs."""


def register() -> None:
    """Register the pool by its name, on the command line, too, and replace prefork with ours."""
    pools: Any = concurrency  # the stubs leave it out
    pools.ALIASES[NAME] = "backburner.queue.pool.taskpool:TaskPool"
    pools.ALIASES |= dict.fromkeys(("prefork", "processes"), "backburner.queue.prefork:TaskPool")
    # If Celery's command imported the app, it has made its list of pools already.
    command = sys.modules.get("celery.bin.worker")
    if command is not None and NAME not in command.WORKERS_POOL.choices:
        command.WORKERS_POOL.choices = (*command.WORKERS_POOL.choices, NAME)


@signals.celeryd_init.connect(weak=False)
def _choose_concurrency(conf: Any, options: dict[str, Any], **_: Any) -> None:
    chosen = options.get("pool_cls") or options.get("pool") or conf.worker_pool
    is_ours = chosen == NAME or getattr(chosen, "__module__", "").startswith(__name__)
    if is_ours and not options.get("concurrency") and not conf.worker_concurrency:
        conf.worker_concurrency = CONCURRENCY
