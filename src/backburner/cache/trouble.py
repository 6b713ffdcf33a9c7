"""Log lines for operators: the events that they must see, no more often than helps.

A server that goes away is one line, and another when it is back. Everything else tends to go wrong for many keys at
once (a full server, a database that is down, a class that has changed): the first event of a kind is a warning; those
of the following minute are logged at DEBUG, and counted in the next warning. Of an error, which may quote the data that
it is about, only the first line is logged. Keys are logged in clear.
"""

import logging
import time
from collections.abc import Callable
from typing import Final

from backburner.errors import StoreUnavailable, ValueTooLarge
from backburner.events import (
    BreakerClosed,
    BreakerOpened,
    Degraded,
    Event,
    LockLost,
    RefreshFailed,
    StaleServed,
    Undecodable,
)

__all__ = ["TROUBLE", "TroubleLog"]

log = logging.getLogger("backburner.cache")

TROUBLE: Final = (BreakerOpened, BreakerClosed, Degraded, LockLost, RefreshFailed, StaleServed, Undecodable)

_QUIET: Final = 60.0
"""Seconds between two warnings of a kind."""
_LONGEST: Final = 200
"""Characters of an error."""


class TroubleLog:
    """A subscriber that writes to the logger ``backburner.cache``."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._warned: dict[str, float] = {}
        self._unsaid: dict[str, int] = {}

    def __call__(self, event: Event) -> None:
        match event:
            case BreakerOpened(server, seconds, error):
                text = "cache server %s does not answer (%s): going on without it, next try in %.2f s"
                log.warning(text, server, _brief(error), seconds)
            case BreakerClosed(server, seconds):
                log.warning("cache server %s answers again, after %.1f s", server, seconds)
            case LockLost(name, seconds):
                text = "lock %r ended before its holder did, which took %.1f s: others may have been at work"
                log.warning(text, name, seconds)
            case Undecodable(key, reason):
                self._warn("undecodable", f"cache entry {key!r} cannot be read and counts as a miss: {_first(reason)}")
            case RefreshFailed(key, error) | StaleServed(key, error):
                text = f"cache entry {key!r} could not be renewed, the one from before is given: {_brief(error)}"
                self._warn(type(error).__qualname__, text)
            case Degraded(operation, _, ValueTooLarge() as error):
                self._warn("too large", f"cache {operation}: not stored, {error}")
            case Degraded(operation, keys, StoreUnavailable() as error):
                log.debug("cache %s of %s: %s", operation, ", ".join(keys) or "everything", error)
            case Degraded(operation, keys, error):
                refused = f"cache {operation} of {keys[0] if keys else 'everything'}: the server refuses"
                kind = str(error).partition(" ")[0]  # servers begin their errors with a code: NOPERM, OOM
                self._warn(kind, f"{refused}, going on without it: {_first(str(error))}")
            case _:
                pass

    def _warn(self, kind: str, text: str) -> None:
        now = self._clock()
        if now < self._warned.get(kind, -_QUIET) + _QUIET:
            self._unsaid[kind] = self._unsaid.get(kind, 0) + 1
            log.debug("%s", text)
            return
        self._warned[kind] = now
        unsaid = self._unsaid.pop(kind, 0)
        log.warning("%s%s", text, f" ({unsaid} more like it since the last such line)" if unsaid else "")


def _brief(error: Exception) -> str:
    return _first(f"{type(error).__name__}: {error}")


def _first(text: str) -> str:
    line = text.partition("\n")[0]
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"
