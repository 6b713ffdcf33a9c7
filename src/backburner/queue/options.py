"""What is wrong with the options of a call, told where the call is written. Otherwise an odd error would tell, from
inside Celery or of the worker that has done the job, or nobody would.

What Celery accepts on purpose stays accepted: a negative countdown, a moment in the past or as text, any number for a
priority.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from numbers import Real
from typing import Any, Final

import kombu
import kombu.compression

from backburner.queue.deadline import check_seconds

_NUMBERS: Final = {"max_retries", "interval_start", "interval_step", "interval_max"}
_POLICY: Final = _NUMBERS | {"retry_errors", "errback", "on_revive"}
"""What kombu understands of a ``retry_policy``."""


def check(options: Mapping[str, Any]) -> None:
    """Check the options of ``apply_async`` whose form is known.

    Raises:
        TypeError: one is of a wrong type.
        ValueError: one has a value that means nothing.
    """
    if options.get("retries"):
        return  # a job's own, which came with its message
    for name, value in options.items():
        if value is not None and name in _CHECKS:
            _CHECKS[name](name, value)


def check_arguments(task: str, args: Any, kwargs: Any) -> None:
    """Check that the arguments of a call are given as a list and a mapping.

    Raises:
        TypeError: they are not.
    """
    if args and not isinstance(args, list | tuple):
        raise TypeError(f"task args must be a list or tuple; those of {task} are a {type(args).__name__}")
    if kwargs and not isinstance(kwargs, Mapping):
        raise TypeError(f"task keyword arguments must be a mapping; those of {task} are a {type(kwargs).__name__}")


def _seconds(name: str, value: Any) -> None:
    check_seconds(**{name: value})
    if not -1e10 < value < 1e11:  # of these Python can make a date; NaN is not among them
        raise ValueError(f"{name}={value!r}: no date is so many seconds from now")


def _moment(name: str, value: Any) -> None:
    if isinstance(value, str):
        try:
            datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"{name}={value!r}: write a datetime, or its text, as in '2030-12-31T18:00:00'") from None
    elif not hasattr(value, "isoformat"):  # other libraries have datetimes, too
        raise TypeError(f"{name}={value!r}: write a datetime; seconds from now are a countdown")


def _end(name: str, value: Any) -> None:
    if isinstance(value, Real):
        _seconds(name, value)
    elif isinstance(value, str):
        _moment(name, value)
    elif not isinstance(value, datetime):
        raise TypeError(f"{name}={value!r}: write a datetime or seconds")


def _limit(name: str, value: Any) -> None:
    check_seconds(**{name: value})


def _priority(name: str, value: Any) -> None:
    try:
        int(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name}={value!r}: write a number from 0 to 9") from None


def _queue(name: str, value: Any) -> None:
    if not isinstance(value, str | kombu.Queue):
        raise TypeError(f"{name}={value!r}: write the queue's name, or a kombu.Queue")


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name}={value!r}: write a text, as in {name}={str(value)!r}")


def _mapping(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name}={value!r}: write a dict")


def _signatures(name: str, value: Any) -> None:
    for each in value if isinstance(value, list | tuple) else [value]:
        if not (isinstance(each, Mapping) and "task" in each):
            raise TypeError(f"{name}={each!r}: write a signature, as in {name}=task.s(), or a list of them")


def _policy(name: str, value: Any) -> None:
    _mapping(name, value)
    if unknown := set(value) - _POLICY:
        raise TypeError(f"{name} knows no {min(unknown, key=str)!r}, only {', '.join(sorted(_POLICY))}")
    for key in _NUMBERS & set(value):
        if not isinstance(value[key], Real | None):
            raise TypeError(f"{name}[{key!r}]={value[key]!r}: write a number")


def _compression(name: str, value: Any) -> None:
    try:
        kombu.compression.get_encoder(value)
    except (KeyError, TypeError):
        known = ", ".join(sorted(kombu.compression.encoders()))
        raise ValueError(f"{name}={value!r} is none that is known here: {known}") from None


_CHECKS: Final[dict[str, Callable[[str, Any], None]]] = {
    "countdown": _seconds,
    "eta": _moment,
    "expires": _end,
    "time_limit": _limit,
    "soft_time_limit": _limit,
    "priority": _priority,
    "queue": _queue,
    "task_id": _text,
    "headers": _mapping,
    "link": _signatures,
    "link_error": _signatures,
    "retry_policy": _policy,
    "compression": _compression,
}
