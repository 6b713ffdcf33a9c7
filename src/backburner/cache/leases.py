"""The leases that this process holds on keys it is computing, renewed for as long as that takes.

A lease is short, so that a process that was killed is soon replaced; yet a callback may take as long as it likes. So
one thread per cache, which exists only while leases are held, renews in one write those of which a third has elapsed.
Most computations end before it has anything to do.
"""

import time
from collections.abc import Callable, Mapping
from threading import Lock, Thread
from typing import Final

_ROUNDS: Final = 3
"""How many times a lease is renewed within its duration: one renewal may fail without the lease being lost."""


class Leases:
    """The leases of one cache.

    Args:
        seconds: how long a lease lasts without being renewed.
        renew: given tokens by key, renews these leases and returns the keys of those that were lost. Called in the
            thread; must not raise.
    """

    def __init__(self, seconds: float, renew: "Callable[[Mapping[str, str]], list[str]]") -> None:
        self.seconds = seconds
        self._renew = renew
        self._held: dict[str, tuple[str, float]] = {}
        self._lock = Lock()
        self._watched = False

    def hold(self, keys: tuple[str, ...], token: str) -> None:
        """Renew the leases of keys from now on."""
        now = time.monotonic()
        with self._lock:
            self._held.update(dict.fromkeys(keys, (token, now)))
            if self._watched:
                return
            self._watched = True
        try:
            Thread(target=self._watch, name="backburner-leases", daemon=True).start()
        except RuntimeError:  # no thread to be had: these leases are not renewed, and the next caller tries again
            self._watched = False
        except BaseException:
            self._watched = False  # interrupted; it may have begun all the same, and two do no harm
            raise

    def let_go(self, keys: tuple[str, ...], token: str) -> None:
        """Stop renewing the leases of keys."""
        with self._lock:
            self._drop(keys, token)

    def _watch(self) -> None:
        while True:
            time.sleep(self.seconds / _ROUNDS)
            now = time.monotonic()
            with self._lock:
                if not self._held:
                    self._watched = False
                    return
                due = self._due(now)
            if due:
                for key in self._renew(due):
                    self.let_go((key,), due[key])

    # Under the lock

    def _drop(self, keys: tuple[str, ...], token: str) -> None:
        for key in keys:
            if (held := self._held.get(key)) and held[0] == token:
                del self._held[key]

    def _due(self, now: float) -> dict[str, str]:
        return {key: token for key, (token, since) in self._held.items() if now - since > self.seconds / _ROUNDS}
