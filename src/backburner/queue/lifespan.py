"""Lifespans: what a worker process holds for as long as it lives, such as clients, models and connection pools.

    @celery_app.lifespan
    async def http() -> AsyncIterator[httpx.AsyncClient]:
        async with httpx.AsyncClient() as client:
            yield client

Each process that runs tasks enters it before its first task and exits it after its last, on the loop that its
coroutines run on; there, ``http()`` returns the client. A process in which that fails takes no jobs, and its worker
ends, as it does when a lifespan ends by itself. Programs that only enqueue are not workers, and enter nothing.
"""

import asyncio
import inspect
import logging
import os
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

import celery
from celery import bootsteps, signals
from celery._state import get_current_app
from celery.concurrency import prefork
from celery.worker import state
from celery.worker.components import Pool

from backburner.errors import ConfigError
from backburner.queue import loop

if TYPE_CHECKING:
    from celery.worker import WorkController

log = logging.getLogger("backburner.queue")

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_LEAVING: Final = 10.0
"""Seconds that exiting may take; after that, the process ends without it."""
_FAILED: Final = 1
_LONGEST_NOTE: Final = 4000
"""Bytes that a pipe takes in one piece."""
_REST: Final = 1.0
_NOTHING: Final[Any] = object()


class Lifespan(Generic[T_co]):
    """A lifespan of an app. Calling it returns what it yielded, so it is also a dependency: ``Depends(http)``."""

    def __init__(self, app: celery.Celery, function: Callable[..., Any]) -> None:
        if not inspect.isasyncgenfunction(inspect.unwrap(function)):
            raise ConfigError(
                f"@lifespan is for an `async def` that yields once, and {function.__qualname__}() is none. It is "
                "entered before a worker's first job and left after its last one"
            )
        self.name = function.__qualname__
        self.__doc__ = function.__doc__
        self._app = app
        self._function = function
        self._value: Any = _NOTHING

    def __call__(self) -> T_co:
        """What it yielded.

        Raises:
            RuntimeError: this process is not a worker, or has not entered it yet.
        """
        if self._value is _NOTHING:
            raise RuntimeError(f"the lifespan {self.name} has not been entered: only processes that run jobs do that")
        return cast("T_co", self._value)

    async def enter(self, stack: AsyncExitStack) -> None:
        """Enter it; the stack exits it."""
        arguments = (self._app,) if inspect.signature(self._function).parameters else ()
        entered: Any = self._function(*arguments)
        if not isinstance(entered, AbstractAsyncContextManager):
            entered = asynccontextmanager(lambda: entered)()
        self._value = await stack.enter_async_context(entered)
        stack.callback(self._forget)

    def _forget(self) -> None:
        self._value = _NOTHING


class Lifespans:
    """All lifespans of an app, in this process. They are entered in the order in which they were declared."""

    def __init__(self, app: celery.Celery) -> None:
        self._app = app
        self._all: list[Lifespan[Any]] = []
        self._living: asyncio.Task[None] | None = None
        self._over = asyncio.Event()
        self._worker_pid = 0
        self.failures: int | None = None
        """The file descriptor where a pool process reports why it can do no jobs."""
        self.on_loss: Callable[[], object] = lambda: None
        """Called when they have ended by themselves."""

    def __len__(self) -> int:
        return len(self._all)

    def add(self, function: Callable[..., Any]) -> Lifespan[Any]:
        """Declare one."""
        if not self._all:
            signals.worker_init.connect(self._begin_worker, weak=False)
            signals.worker_process_init.connect(self._begin_process, weak=False)
            signals.worker_process_shutdown.connect(self._end_process, weak=False)
        lifespan = Lifespan[Any](self._app, function)
        self._all.append(lifespan)
        return lifespan

    def enter(self) -> None:
        """Enter them all, and wait for that. Does nothing if that has been done."""
        if self._all and self._living is None:
            loop.run(self.aenter())

    def leave(self) -> None:
        """Exit them all, and wait for that. Does nothing if none was entered."""
        if self._living is not None:
            loop.run(self.aleave())

    async def aenter(self) -> None:
        """Enter them all on this loop. If one of them raises, those before it are exited, and the exception is
        raised."""
        if not self._all or self._living is not None:
            return
        entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._over = asyncio.Event()
        self._living = asyncio.create_task(self._live(entered), name="backburner lifespan")
        try:
            await entered
        except BaseException:
            await asyncio.wait([self._living])
            self._living = None
            raise

    async def aleave(self) -> None:
        """Exit them, on the loop on which they were entered. Errors are logged."""
        living, self._living = self._living, None
        if living is None:
            return
        self._over.set()
        done, _ = await asyncio.wait([living], timeout=_LEAVING)
        if not done:
            log.error("the lifespan has not ended within %g s; the process ends without it", _LEAVING)

    async def _live(self, entered: "asyncio.Future[None]") -> None:
        # The same task enters and exits, because cancel scopes and task groups in them require it.
        try:
            async with AsyncExitStack() as stack:
                for each in self._all:
                    log.debug("entering the lifespan %s", each.name)
                    await each.enter(stack)
                entered.set_result(None)
                await self._over.wait()
        except BaseException as error:
            if not entered.done():
                entered.set_exception(error)
                return
            if not isinstance(error, Exception):
                raise
            log.exception("the lifespan has not ended well")
        if not self._over.is_set():  # a task group in it has failed, say
            self.on_loss()

    # Processes of a pool

    def _begin_worker(self, **_: Any) -> None:
        self._worker_pid = os.getpid()

    def _begin_process(self, **_: Any) -> None:
        # The pool `solo` sends this signal, too, but from the worker's own process.
        if os.getpid() == self._worker_pid or get_current_app() is not self._app:
            return
        self.on_loss = partial(self._tell_worker, _LOST)
        try:
            self.enter()
        except BaseException as error:  # noqa: BLE001  # the worker ends, whatever it is
            self._tell_worker(_REFUSED, "".join(traceback.format_exception(error)))
            time.sleep(_REST)  # by then the worker has read this, before it starts the next process
            raise SystemExit(_FAILED) from None

    def _end_process(self, **_: Any) -> None:
        if os.getpid() != self._worker_pid:
            self.leave()

    def _tell_worker(self, what: str, why: str = "") -> None:
        if self.failures is not None:
            os.write(self.failures, what.encode() + why.encode()[len(what) - _LONGEST_NOTE :] + b"\0")
        else:  # a process that was not forked has no pipe
            log.critical("%s", what + why)
            os.kill(os.getppid(), signal.SIGTERM)


_REFUSED: Final = "the lifespan could not be entered, so there are no jobs for this worker:\n"
_LOST: Final = "the lifespan has ended by itself, so there are no more jobs for this worker"


class Living(bootsteps.StartStopStep):
    """A bootstep that has a worker's processes enter the lifespans before they get jobs, and ends it if one cannot."""

    requires = (Pool,)

    def __init__(self, worker: "WorkController", **options: Any) -> None:
        super().__init__(worker, **options)
        self._lifespans: Lifespans = cast("Any", worker.app).lifespans

    def include_if(self, worker: "WorkController") -> bool:  # noqa: ARG002  # Celery's name
        """Only if there are lifespans."""
        return bool(self._lifespans)

    def create(self, worker: "WorkController") -> None:
        """Before the pool forks: make the pipe on which its processes report failures."""
        if self._forks(worker):
            notes, self._lifespans.failures = os.pipe()
            Thread(target=_end_on_failure, args=(notes,), name="backburner-lifespan", daemon=True).start()

    def start(self, worker: "WorkController") -> None:
        """In a worker whose tasks run in its own process: enter them."""
        if self._forks(worker):
            return
        self._lifespans.on_loss = partial(_end_worker, _LOST)
        try:
            self._lifespans.enter()
        except Exception as error:  # noqa: BLE001  # as above
            log.critical("%s", _REFUSED + "".join(traceback.format_exception(error)))
            raise SystemExit(_FAILED) from None
        # Pools still wait for their jobs when this step is asked to stop.
        signals.worker_shutdown.connect(self._leave, weak=False)

    def stop(self, worker: "WorkController") -> None:
        """Do nothing yet."""

    def _leave(self, **_: Any) -> None:
        self._lifespans.leave()

    def _forks(self, worker: Any) -> bool:
        return isinstance(worker.pool, prefork.TaskPool)


def _end_on_failure(notes: int) -> None:
    why, _, _ = os.read(notes, _LONGEST_NOTE + 1).partition(b"\0")
    _end_worker(why.decode("utf-8", "replace"))


def _end_worker(why: str) -> None:
    log.critical("%s", why)
    state.should_stop = _FAILED  # type: ignore[assignment]  # the stubs are wrong
