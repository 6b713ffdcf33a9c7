"""The ledger's worker, which is interrupted by SIGQUIT while it writes to its log that it has received a second job."""

import signal
from functools import partial

from celery.signals import after_setup_logger
from ledger import app

__all__ = ["app"]

received = []


def emit(write, record):
    if "received" in record.getMessage():
        received.append(record)
        if len(received) == 2:
            signal.raise_signal(signal.SIGQUIT)
    write(record)


@after_setup_logger.connect
def interrupt(logger, **_):
    for handler in logger.handlers:
        handler.emit = partial(emit, handler.emit)
