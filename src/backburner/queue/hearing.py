"""Remote control in the pools of greenlets, where Celery hears of it in a greenlet, on a connection of its own.

When only that connection is lost, Celery's greenlet ends, and the worker would hear of nothing any more, not even that
a job of its is cancelled. Here it connects again.
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from celery import bootsteps
from celery.worker.consumer.control import Control

log = logging.getLogger("backburner.queue")

_PAUSE = 1.0
"""Seconds between two attempts."""


class Hearing(bootsteps.StartStopStep):
    """Has a worker with greenlets listen as long as it lives."""

    requires = (Control,)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        control = consumer.blueprint.steps[Control.name]
        if control.is_green:
            control.box.loop = partial(_listen, control.box, control.box.loop)


def _listen(box: Any, listen: Callable[[Any], object], consumer: Any) -> None:
    while True:
        try:
            listen(consumer)
        except consumer.connection_errors as error:
            stop = box._node_shutdown  # noqa: SLF001  # nothing public tells that the greenlet is to end
            log.warning("the worker hears of no remote control until it has connected again: %s", error)
        else:
            return
        time.sleep(_PAUSE)
        if stop is None or stop.is_set() or box._node_shutdown is not stop:  # noqa: SLF001  # as above
            return
