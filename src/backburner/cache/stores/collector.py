"""Keeps Python's garbage collector from looking at entries, where there are many.

It looks at every object that may be part of a cycle, all in one go: with a million entries a single put took a second
now and then, and all puts together a third longer. Entries are in no cycles. They refer to bytes, numbers and text,
and to what belongs to their store and does not refer to them; references are counted all the same.
"""

import ctypes
import sys
from collections.abc import Callable

from backburner.cache.entry import Entry


def _cpython() -> Callable[[Entry], None]:
    untrack = ctypes.pythonapi.PyObject_GC_UnTrack  # of the stable interface; may be called for any tracked object
    untrack.argtypes = [ctypes.py_object]
    untrack.restype = None
    return untrack


def _others(entry: Entry) -> None:
    pass  # they collect in other ways


untrack: Callable[[Entry], None] = _cpython() if sys.implementation.name == "cpython" else _others
"""Leave an entry to reference counting."""
