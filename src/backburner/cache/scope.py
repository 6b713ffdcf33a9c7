"""What one unit of work, such as a request, has read from caches: kept as long as it lasts, for nobody else.

The unit's threads and tasks share it, since they run in copies of its context. What is read by one while another writes
is not kept. Who opens scopes is another's business (`http.MemoMiddleware`), and so is who reads (`memo`).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Final

_scope: Final[ContextVar["Scope | None"]] = ContextVar("backburner_memo_scope", default=None)


class Scope:
    """Values by their cache and key, and by what was asked for: a shape, or nothing. An owner is what stands for a
    cache."""

    def __init__(self) -> None:
        self.ended = False
        self.writes = 0
        """Counts what was forgotten: who keeps a value says how far this was when the reading began."""
        self._values: dict[tuple[object, str], dict[object, object]] = {}
        self._lock = Lock()  # held for operations on the dict only

    def find(self, owner: object, key: str, shape: object, default: object) -> object:
        """The value that was kept, or the default."""
        kept = self._values.get((owner, key))
        return default if kept is None else kept.get(shape, default)

    def keep(self, owner: object, key: str, shape: object, value: object, writes: int) -> object:
        """Keep a value, unless something was written since. Gives the one to go on with: of several, the first."""
        with self._lock:
            if self.ended or self.writes != writes:
                return value
            return self._values.setdefault((owner, key), {}).setdefault(shape, value)

    def forget(self, owner: object, keys: Iterable[str] | None) -> None:
        """Say that keys of an owner, or all of them, were written or removed."""
        with self._lock:
            self.writes += 1
            if keys is None:
                self._values = {place: value for place, value in self._values.items() if place[0] is not owner}
            else:
                for key in keys:
                    self._values.pop((owner, key), None)

    def end(self) -> None:
        """Let go of everything. Who still runs in the context is without a scope from now on."""
        with self._lock:
            self.ended = True
            self._values = {}


def current_scope() -> Scope | None:
    """The scope that the caller runs in; one that has ended keeps nothing."""
    return _scope.get()


@contextmanager
def memo_scope() -> Iterator[Scope]:
    """Within, `Cache.memo` keeps what it reads: ``with memo_scope(): …``, around a job or a step of a script.

    It ends with the block, also for threads and tasks begun in it. One within another begins empty.
    """
    scope = Scope()
    token = _scope.set(scope)
    try:
        yield scope
    finally:
        scope.end()
        _scope.reset(token)
