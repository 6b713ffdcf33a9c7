"""Signals whose handlers raise, as Ctrl-C and a soft time limit of Celery do, anywhere in what the main thread does."""

import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from types import CodeType
from typing import Any


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


def strikes(work: Callable[[], object]) -> Iterator[str]:
    """Do something again and again, each time with an alarm at the next place where one could strike: where a function
    begins, after a call of one in C, and where a loop jumps back. Yields each of these places. Needs Python 3.12."""
    monitoring: Any = sys.__dict__["monitoring"]
    events, tool, thread = monitoring.events, monitoring.OPTIMIZER_ID, threading.get_ident()
    left, place = 0, ""

    def strike(code: CodeType, offset: int, *_: object) -> None:
        nonlocal left, place
        if threading.get_ident() == thread and code is not work.__code__ and code.co_filename != __file__:
            left -= 1
            if left == 0:
                place = f"{code.co_filename}, {code.co_qualname} {offset}"
                raise Alarm

    def back(code: CodeType, offset: int, destination: int) -> None:
        if destination < offset:
            strike(code, offset)

    monitoring.use_tool_id(tool, "strikes")
    try:
        for event, callback in ((events.PY_START, strike), (events.C_RETURN, strike), (events.JUMP, back)):
            monitoring.register_callback(tool, event, callback)
        for number in count(1):
            left, place = number, ""
            monitoring.set_events(tool, events.PY_START | events.CALL | events.JUMP)
            try:
                work()
            except Alarm:
                pass
            finally:
                monitoring.set_events(tool, events.NO_EVENTS)
            if not place:
                return
            yield place
    finally:
        monitoring.free_tool_id(tool)
