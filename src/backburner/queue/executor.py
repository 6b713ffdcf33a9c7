"""Threads for blocking calls that an event loop must not wait for.

The loop's own executor would not do: an application may have all its threads wait for this very loop, to enqueue jobs
or for their results. Each purpose has its own, so that whoever enqueues waits for nobody who reads.
"""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, Final, Literal, TypeVar

T = TypeVar("T")

_MOST: Final = 32
"""Threads of a process at most, for each purpose."""
_threads: dict[tuple[int, str], ThreadPoolExecutor] = {}
"""By process, because a forked child has none of its parent's, and by purpose."""


async def in_thread(function: Callable[..., T], *args: Any, purpose: Literal["enqueue", "read"] = "enqueue") -> T:
    """Call a function in a thread, with the caller's context variables."""
    place = os.getpid(), purpose
    threads = _threads.get(place) or _threads.setdefault(
        place, ThreadPoolExecutor(_MOST, thread_name_prefix=f"backburner-{purpose}")
    )
    call = partial(copy_context().run, function, *args)
    return await asyncio.get_running_loop().run_in_executor(threads, call)
