"""The asyncio pool: which jobs run, which wait for a place, and how the process's loop begins and ends.

The loop runs in the main thread, while Celery's consumer does (`serving`) and while the pool is stopped. Coroutines run
on it as asyncio tasks, functions in threads.
"""

import asyncio
import atexit
import gc
import logging
import math
import os
import resource
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from inspect import iscoroutinefunction
from typing import Any, Final

from celery import signals
from celery.concurrency.base import BasePool
from celery.utils import threads as celery_threads
from celery.worker import state

from backburner.errors import ConfigError
from backburner.queue import loop as process_loop
from backburner.queue import supervised
from backburner.queue.arguments import signature_source
from backburner.queue.pool import bridge
from backburner.queue.pool.job import CoroutineJob, Job, ThreadJob
from backburner.queue.pool.poller import Poller
from backburner.queue.pool.threads import Threads
from backburner.queue.pool.watchdog import Watchdog
from backburner.queue.stacks import tell_coroutines_apart

log = logging.getLogger("backburner.queue")

_THREADS: Final = 32
"""Threads for ``def`` tasks at most."""
_BLOCKED_AFTER: Final = 1.0
"""Seconds for which a task may block the loop before the log names it; ``worker_blocked_after`` in the app's
configuration overrides this."""
_HANGS_AFTER: Final = 60.0
"""The transport's own default."""
_YOUNG: Final = 10_000
"""New objects before the garbage collector runs. A waiting job consists of sixty, so with Python's own threshold of 700
it would examine the same waiting jobs again and again."""
_ENDING: Final = 10.0
"""Seconds that coroutines get to end in a cold shutdown."""


class TaskPool(BasePool):
    """Runs `limit` jobs at a time."""

    signal_safe = False
    body_can_be_buffer = True
    limit: int

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if getattr(celery_threads, "USE_FAST_LOCALS", None):
            raise ConfigError(
                "--pool=asyncio cannot tell tasks apart with USE_FAST_LOCALS; remove it from the environment"
            )
        self.loop = _new_loop()
        self.threads = Threads(min(_THREADS, self.limit))
        self._limits: tuple[float | None, float | None] = (options.get("soft_timeout"), options.get("timeout"))
        self._context = copy_context()
        self._is_coroutine: dict[str, bool] = {}
        self._most_jobs: int | None = options.get("maxtasksperchild")
        self._most_memory: int | None = options.get("max_memory_per_child")
        self._begun = 0
        self._is_leaving = False
        self._starts_again = False
        self._waiting: deque[Job] = deque()
        self._running: set[Job] = set()
        self._asides: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._poller: Poller | None = None
        self._hub: Any = None
        self._interruption: BaseException | None = None
        self._blocked_after: float = self.app.conf.get("worker_blocked_after") or _BLOCKED_AFTER

    # The process

    def on_start(self) -> None:
        """Set the loop of this process. Lifespans are entered after this, before jobs come."""
        process_loop.adopt(self.loop)
        atexit.register(self._start_again)
        atexit.register(self._end_loop)
        tell_coroutines_apart(self.app)
        signals.worker_process_init.send(sender=(self.options.get("initargs") or (None, None))[1])

    def serve(self, consume: Callable[[], None]) -> None:
        """Run Celery's consumer on the loop, until it ends."""
        outcome: list[BaseException] = []

        async def live() -> None:
            try:
                await bridge.cross(consume)
            except BaseException as error:  # noqa: BLE001  # raised below, as the loop would make something else of it
                outcome.append(error)

        watchdog = Watchdog(
            self.loop,
            threading.get_ident(),
            self._blocked_after,
            hangs_after=self.app.conf.broker_transport_options.get("watchdog", _HANGS_AFTER),
            on_hang=partial(self.recycle, "its event loop hangs", hangs=True),
        )
        watchdog.start()
        bridge.prepare(self.limit)
        _spare_the_collector()
        living = self.loop.create_task(live(), name="Celery's consumer")
        while not living.done():
            try:
                self.loop.run_until_complete(living)
            except (SystemExit, KeyboardInterrupt):
                if self._interruption is None:
                    log.exception("a task that a job had started wanted to end the worker, which goes on")
                else:
                    living.cancel()
        watchdog.stop()
        if self._interruption is not None:
            raise self._interruption
        if outcome:
            raise outcome[0]

    def interrupt(self, error: BaseException) -> None:
        """A signal handler has raised this exception in the midst of a job to end the worker."""
        self._interruption = error
        raise error

    def register_with_event_loop(self, hub: Any) -> None:
        """Have Celery's hub wait on the loop."""
        self._hub = hub
        if not isinstance(hub.poller, Poller):
            hub.poller = self._poller = Poller(hub, self.loop)

    def on_stop(self) -> None:
        """Wait until all jobs have ended."""
        self.wait(None)

    def on_terminate(self) -> None:
        """End all jobs."""
        for job in (*self._waiting, *self._running):
            job.terminate()
        self.wait(_ENDING)
        if left := [str(job) for job in self._running if job.keeps_the_worker]:
            log.error("jobs have not ended within %g s, the process ends without them: %s", _ENDING, ", ".join(left))

    def wait(self, seconds: float | None) -> bool:
        """Wait until all jobs have ended, at most for so many seconds. Returns whether waiting is possible here.

        It is in a greenlet on the loop, and while the loop is not running, but not in a signal handler.
        """
        draining = partial(self._drain, seconds)
        if bridge.is_here():
            bridge.wait_for(draining())
        elif self.loop.is_running():
            return False
        else:
            self.loop.run_until_complete(draining())
        return True

    async def _drain(self, seconds: float | None) -> None:
        ends = math.inf if seconds is None else self.loop.time() + seconds
        mine = asyncio.current_task()
        while (
            self._waiting or self._asides - {mine} or any(job.keeps_the_worker for job in self._running)
        ) and self.loop.time() < ends:
            self._changed.clear()
            self._turn_hub()
            try:
                await asyncio.wait_for(self._changed.wait(), 0.1)
            except TimeoutError:
                continue
        self._turn_hub()

    def _turn_hub(self) -> None:
        # The hub itself no longer runs: it would take messages.
        hub = self._hub
        if hub is not None:
            for callback in hub._pop_ready():  # noqa: SLF001  # there is no public name
                callback()

    def _end_loop(self) -> None:
        if self.loop.is_closed() or self.loop.is_running():
            return
        left = asyncio.all_tasks(self.loop)
        for task in left:
            task.cancel()
        if left:
            self.loop.run_until_complete(asyncio.wait(left, timeout=1.0))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    # Jobs

    def on_apply(  # type: ignore[override]  # the stubs are wrong
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Any = None,  # noqa: ARG002  # Celery gives none
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        error_callback: Callable[..., Any] | None = None,
        timeout_callback: Callable[..., Any] | None = None,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        **_: Any,
    ) -> Job:
        """Run a job, as soon as there is a place."""
        soft, hard = self._limits
        kind = CoroutineJob if self._runs_coroutine(args[0]) else ThreadJob
        job = kind(
            self,
            target,
            args,
            on_accepted=accept_callback,
            on_returned=callback,
            on_failed=error_callback,
            on_timeout=timeout_callback,
            limits=(soft_timeout or soft, timeout or hard),
        )
        self._waiting.append(job)
        self._fill()
        return job

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        """Do nothing: the job's own `terminate` is called, too, which knows which of the process's jobs is meant."""

    def grow(self, n: int = 1) -> None:
        """Run `n` more at a time."""
        self.limit += n
        self._fill()

    def shrink(self, n: int = 1) -> None:
        """Run `n` fewer at a time; those that run go on."""
        self.limit = max(0, self.limit - n)

    def forget(self, job: Job) -> None:
        """Drop a job that has not begun."""
        self._waiting.remove(job)
        self._notice()

    def wake(self, **_: Any) -> None:
        """Check whether there is something to do. Safe to call anywhere, even in signal handlers."""
        with suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self._notice)

    def done(self, job: Job) -> None:
        """Note that a job has ended."""
        if job in self._running:
            self._running.discard(job)
            self._fill()
            self._notice()
            if self._most_memory and (kilobytes := _memory()) > self._most_memory:
                self.recycle(f"it has needed {kilobytes} KiB of memory")

    def recycle(self, why: str, *, hangs: bool = False) -> None:
        """Have another process replace this one, which ends when its jobs have.

        A supervisor starts the other one first; without a supervisor, the same command is run again. If the loop hangs,
        only a supervisor can help.
        """
        if self._is_leaving:
            return
        self._is_leaving = True
        if supervised.ask_for_a_replacement(hangs=hangs):
            log.warning("this process wants to be replaced: %s", why)
        elif not hangs:
            log.warning("the worker starts again when its jobs have ended: %s", why)
            self._starts_again = True
            signals.worker_shutting_down.send(sender=None, sig="none", how="Warm", exitcode=0)
            state.should_stop = 0  # type: ignore[assignment]  # the stubs are wrong
            self.wake()

    def _start_again(self) -> None:
        if self._starts_again:
            sys.stdout.flush()
            sys.stderr.flush()
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  # the very command that ran here

    def aside(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a function that may wait for a server."""

        async def call() -> None:
            try:
                await bridge.cross(function, *args)
            except Exception:
                log.exception("the outcome of a job could not be recorded")

        task = self.loop.create_task(call(), context=self._context.copy())
        self._asides.add(task)
        task.add_done_callback(self._aside_done)

    def _aside_done(self, task: "asyncio.Task[None]") -> None:
        self._asides.discard(task)
        self._notice()

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self.limit:
            job = self._waiting.popleft()
            self._running.add(job)
            job.start(self._context.copy())
            self._begun += 1
            if self._begun == self._most_jobs:
                self.recycle(f"it has begun {self._begun} jobs")

    def _notice(self) -> None:
        """Have the hub do what was deferred to its next round, such as acknowledging."""
        self._changed.set()
        if self._poller is not None:
            self._poller.wake()

    def _runs_coroutine(self, name: str) -> bool:
        known = self._is_coroutine.get(name)
        if known is None:
            task = self.app.tasks[name]
            function = getattr(task, "_orig_run", task.run)  # if Celery's autoretry has wrapped it
            known = self._is_coroutine[name] = iscoroutinefunction(signature_source(function))
        return known

    def _get_info(self) -> dict[str, Any]:
        stock: dict[str, Any] = super()._get_info()  # type: ignore[misc]  # the stubs leave it out
        return stock | {
            "processes": [os.getpid()],
            "max-tasks-per-child": self._most_jobs or "N/A",
            "running": len(self._running),
            "waiting": len(self._waiting),
            "threads": len(self.threads),
            "loop": type(self.loop).__module__,
            "timeouts": self._limits,
        }


def _spare_the_collector() -> None:
    """Have the garbage collector ignore all objects that exist by now, because they stay, and run less often. A higher
    threshold that the user has set is kept, and a collector that is disabled stays so."""
    young, *older = gc.get_threshold()
    if gc.isenabled() and 0 < young < _YOUNG:
        gc.set_threshold(_YOUNG, *older)
    gc.collect()
    gc.freeze()


def _memory() -> int:
    """The peak memory of the process so far, in KiB, measured as Celery's own pool does."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most // 1024 if sys.platform == "darwin" else most


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # if it is installed
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
