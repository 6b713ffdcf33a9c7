"""Threads for blocking calls that an event loop must not wait for.

The loop's own executor would not do: an application may have all its threads wait for this very loop, to enqueue jobs.
"""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, Final, TypeVar

T = TypeVar("T")

_MOST: Final = 32
"""Threads of a process at most."""
_threads: dict[int, ThreadPoolExecutor] = {}
"""By process: a forked child has none of its parent's."""


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Call a function in a thread, with the caller's context variables."""
    threads = _threads.get(os.getpid()) or _threads.setdefault(
        os.getpid(), ThreadPoolExecutor(_MOST, thread_name_prefix="backburner-enqueue")
    )
    call = partial(copy_context().run, function, *args)
    return await asyncio.get_running_loop().run_in_executor(threads, call)
