"""Hooks for forked children, on systems that fork; on Windows they do nothing."""

import os
from collections.abc import Callable

__all__ = ["in_forked_child"]


def in_forked_child(function: Callable[[], object]) -> None:
    """Call a function in each child that this process forks from now on, before anything else runs there."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)
