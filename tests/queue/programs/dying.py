"""The same worker, of which one process dies as soon as it has told the server what its job came to."""

import os
import signal
from pathlib import Path

from jobs import app

from backburner.queue.backend import RedisBackend

__all__ = ["app"]

died = Path(os.environ["DIES_ONCE"])
settle_alone = RedisBackend.settle_alone


def settle_and_die(self, *args):
    if not settle_alone(self, *args):
        print("not confirmed", flush=True)
    elif not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return True


RedisBackend.settle_alone = settle_and_die
