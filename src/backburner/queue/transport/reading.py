"""Parses messages as they are on the server, and checks whether kombu and Celery can handle them.

Anything that these do not expect would end a worker, and then the next one that gets the message.
"""

from contextlib import suppress
from typing import Any

import orjson
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads

_CELERYS = frozenset({
    "argsrepr", "backburner_eta", "eta", "expires", "group", "group_index", "id", "ignore_result", "kwargsrepr", "lang",
    "origin", "parent_id", "replaced_task_nesting", "retries", "root_id", "shadow", "stamped_headers", "stamps", "task",
    "timelimit",
})  # fmt: skip
"""Headers that Celery itself sets. Of these, only time limits may be fractional numbers."""


def read(text: bytes) -> Any:
    """A message as kombu's reader gives it, which is much slower: it knows types that no message of Celery's holds
    outside of its body, numbers that JSON does not have (NaN), halves of characters, and integers of any length."""
    if b'"__type__"' not in text:
        with suppress(orjson.JSONDecodeError):
            message = orjson.loads(text)
            headers = message.get("headers") if type(message) is dict else None
            # An integer of more than 64 bits has become a float. Celery's own headers contain none.
            if not headers or _CELERYS.issuperset(headers) or not _holds_a_float(headers):
                return message
    return loads(bytes_to_str(text))


def check(message: Any, *, is_job: bool) -> None:
    """Check whether a message with a decoded body is one of kombu's and, if it `is_job`, one of Celery's.

    Raises:
        TypeError: it is not.
    """
    _demand(message, bytes | str | None, "body")
    _demand(message, str | None, "content-type", "content-encoding")
    _demand(message["properties"], dict | None, "delivery_info")
    if not is_job:
        return
    if not message["body"]:
        raise TypeError("body is empty")
    headers = message["headers"]
    _demand(message, str, "content-type")
    _demand(headers, str, "task", "id")
    _demand(headers, list | None, "timelimit", "stamped_headers")
    _demand(headers, dict | None, "stamps")
    limits, stamped = headers.get("timelimit"), headers.get("stamped_headers") or ()
    # Celery unpacks them.
    if limits is not None and [isinstance(each, int | float | None) for each in limits] != [True, True]:
        raise TypeError(f"timelimit is {limits!r:.100}")
    if not all(isinstance(each, str) for each in stamped):
        raise TypeError(f"stamped_headers is {stamped!r:.100}")


def _demand(of: dict[str, Any], types: Any, *names: str) -> None:
    for name in names:
        if not isinstance(value := of.get(name), types):
            raise TypeError(f"{name} is {value!r:.100}")


def _holds_a_float(value: Any) -> bool:
    if type(value) is dict:
        value = value.values()
    elif type(value) is not list:
        return type(value) is float
    return any(map(_holds_a_float, value))
