"""Values that one unit of work, such as a request, has read from caches, kept for its own use until it ends.

The unit's threads and tasks share a scope, since they run in copies of its context. A value that is read while
something is written is not kept. Scopes are opened by `http.MemoMiddleware` or `memo_scope`, and used by `memo`.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Final

_scope: Final[ContextVar["Scope | None"]] = ContextVar("backburner_memo_scope", default=None)


class Scope:
    """Values by owner (an object that identifies the cache), key, and requested shape."""

    def __init__(self) -> None:
        self.ended = False
        self.writes = 0
        """Counts writes: to keep a value, the caller passes the count from before it began reading."""
        self._values: dict[tuple[object, str], dict[object, object]] = {}
        self._lock = Lock()  # held for operations on the dict only

    def find(self, owner: object, key: str, shape: object, default: object) -> object:
        """The value that was kept, or the default."""
        kept = self._values.get((owner, key))
        return default if kept is None else kept.get(shape, default)

    def keep(self, owner: object, key: str, shape: object, value: object, writes: int) -> object:
        """Keep a value, unless something has been written since. Returns the value to use: the first one kept."""
        with self._lock:
            if self.ended or self.writes != writes:
                return value
            return self._values.setdefault((owner, key), {}).setdefault(shape, value)

    def forget(self, owner: object, keys: Iterable[str] | None) -> None:
        """Report that keys of an owner, or all of them, were written or removed."""
        with self._lock:
            self.writes += 1
            self._drop(owner, keys)

    def end(self) -> None:
        """Drop everything. Whatever still runs in this context is without a scope from now on."""
        with self._lock:
            self.ended = True
            self._values = {}

    def _drop(self, owner: object, keys: Iterable[str] | None) -> None:
        if keys is None:
            self._values = {place: value for place, value in self._values.items() if place[0] is not owner}
        else:
            for key in keys:
                self._values.pop((owner, key), None)


def current_scope() -> Scope | None:
    """The caller's scope, if there is one; a scope that has ended keeps nothing."""
    return _scope.get()


@contextmanager
def memo_scope() -> Iterator[Scope]:
    """Open a scope in which `Cache.memo` keeps what it reads: ``with memo_scope(): …``, around a job or part of a
    script.

    It ends with the block, even for threads and tasks that were started in it. A nested scope begins empty.
    """
    scope = Scope()
    token = _scope.set(scope)
    try:
        yield scope
    finally:
        scope.end()
        _scope.reset(token)
