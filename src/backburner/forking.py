"""Hooks for forked children, on systems that fork; on Windows they do nothing."""

import os
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

__all__ = ["in_forked_child", "renew_in_forked_child"]

_Owner = TypeVar("_Owner")


def in_forked_child(function: Callable[[], object]) -> None:
    """Call a function in each child that this process forks from now on, before anything else runs there."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)


def renew_in_forked_child(owner: _Owner, renew: Callable[[_Owner], object]) -> None:
    """As `in_forked_child`, with an object, for as long as it lives: its connections, locks and threads are the
    parent's."""
    _owners[owner] = renew


_owners: WeakKeyDictionary[Any, Callable[[Any], object]] = WeakKeyDictionary()


def _renew_all() -> None:
    for owner, renew in list(_owners.items()):
        renew(owner)


in_forked_child(_renew_all)
