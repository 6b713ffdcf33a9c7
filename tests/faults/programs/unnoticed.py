"""Workers whose pool does not learn how its processes have ended while the file UNNOTICED is there."""

import os
from pathlib import Path

from celery.concurrency.asynpool import AsynPool
from ledger import app

__all__ = ["app"]

_maintain_pool = AsynPool.maintain_pool


def maintain_pool(pool):
    if not Path(os.environ["UNNOTICED"]).exists():
        _maintain_pool(pool)
    elif not all(process.is_alive() for process in pool._pool):
        print("a process has ended, unnoticed", flush=True)


AsynPool.maintain_pool = maintain_pool
