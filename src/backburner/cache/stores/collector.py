"""Keeps Python's cyclic garbage collector away from entries, where there are many.

The collector visits every object that could be part of a cycle, all in one go: with a million entries, a single put
took a second now and then, and all puts together a third longer. Entries are never part of a cycle: they refer to
bytes, numbers and text, and to parts of their store that do not refer back. Reference counting still frees them.
"""

import ctypes
import sys
from collections.abc import Callable

from backburner.cache.entry import Entry


def _cpython() -> Callable[[Entry], None]:
    untrack = ctypes.pythonapi.PyObject_GC_UnTrack  # part of the stable ABI; may be called for any tracked object
    untrack.argtypes = [ctypes.py_object]
    untrack.restype = None
    return untrack


def _others(entry: Entry) -> None:
    pass  # other interpreters collect garbage differently


untrack: Callable[[Entry], None] = _cpython() if sys.implementation.name == "cpython" else _others
"""Leave an entry to reference counting."""
