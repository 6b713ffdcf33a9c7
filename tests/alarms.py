"""Signals whose handlers raise, as Ctrl-C and a soft time limit of Celery do, anywhere in what the main thread does."""

import random
import signal
import time
from collections.abc import Callable


class Alarm(BaseException):
    """What the handler raises."""


def storm(work: Callable[[], object], seconds: float, longest: float = 0.0006) -> int:
    """Do something again and again, with an alarm that strikes anywhere in it. How many struck.

    Args:
        longest: until the alarm, each time, in seconds.
    """

    def strike(*_: object) -> None:
        raise Alarm

    struck, until = 0, time.monotonic() + seconds
    before = signal.signal(signal.SIGALRM, strike)
    try:
        while time.monotonic() < until:
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00002, longest))
                work()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Alarm:
                struck += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return struck
