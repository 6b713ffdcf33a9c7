"""How threads wait for results: each hears of its jobs' states from the process's one `Listener`.

Celery's own classes wait for promises, which whoever waits fulfils by reading from a connection. Here only the
listener's thread reads, and tells all; so a waiter just looks whether its jobs have ended, each time there is news.
Coroutines that await a `Job` are not here: see `backburner.queue.result`.
"""

import itertools
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import celery.exceptions
from celery.backends.asynchronous import BaseResultConsumer, Drainer

from backburner.errors import ResultUnavailable
from backburner.forking import renew_in_forked_child
from backburner.queue.deadline import remaining
from backburner.queue.pool import bridge
from backburner.redis.command import again

log = logging.getLogger("backburner.queue")

_PATIENCE: Final = 2.0
"""Seconds for the first check whether results are there."""
_GLANCE: Final = 0.05
"""Seconds after which it is seen that there is nothing to check any more."""
_INTERVAL: Final = 1.0
"""Seconds after which who waits without news is given a turn."""


class ResultConsumer(BaseResultConsumer):
    """What Celery asks for results: here, it passes the listener's news to the threads that wait."""

    backend: Any
    _pending_results: Any

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.drainer = Drainer(self)  # gevent's has a greenlet that looks for news, which the listener brings
        self.on_after_fork()
        renew_in_forked_child(self, ResultConsumer.on_after_fork)

    def on_after_fork(self) -> None:
        for results in self._pending_results:
            results.clear()
        self._subscriptions: dict[str, _Watched] = {}
        self._audience: dict[str, list[deque[dict[str, Any]]]] = {}
        """What is to be told to threads that want to hear of each state, by job."""
        self._waiting: Counter[int] = Counter()
        """How many threads wait with each result object, by its `id`."""
        self._lock = threading.RLock()
        self._news = threading.Condition(self._lock)
        self._count = 0
        self._unread = 0
        """How many states could not be read."""

    def start(self, initial_task_id: str, **_: Any) -> None:
        self.consume_from(initial_task_id)

    def consume_from(self, task_id: str) -> None:
        """Listen for a job's result from now on. Repeating it does nothing."""
        new = _Watched(self, task_id)
        if self._subscriptions.setdefault(task_id, new) is new:
            try:
                self.backend.listener.add(new)
                if not self.watches(new):
                    self.backend.listener.remove(new)  # forgotten before it was added
            except BaseException:
                self._subscriptions.pop(task_id, None)  # interrupted: whoever comes next adds it
                raise

    def hears_of(self, task_id: str) -> bool:
        """Whether anybody here waits for a job, or did and has not left yet."""
        return task_id in self._subscriptions

    def is_awaited(self, task_id: str) -> bool:
        """Whether a result object waits for the job, or has not been told yet that it has ended."""
        return any(task_id in waiting for waiting in self._pending_results)

    def is_waited_with(self, result: Any) -> bool:
        """Whether a thread waits with this result object, and has not been told yet that the job has ended."""
        return self._waiting[id(result)] > 0 and not _has_ended(result)

    def cancel_for(self, task_id: str) -> None:
        """Stop listening for it. Takes no lock, because the garbage collector calls this, too."""
        self._forget(task_id)
        if self.is_awaited(task_id):
            self.consume_from(task_id)  # somebody has begun to wait since the caller saw that nobody did

    def stop(self) -> None:
        self.backend.listener.stop()
        self._subscriptions.clear()

    def _wait_for_pending(
        self,
        result: Any,
        timeout: float | None = None,
        on_interval: Callable[[], object] | None = None,
        on_message: Callable[[dict[str, Any]], object] | None = None,
        **_options: Any,
    ) -> Iterator[None]:
        # Celery's waits for promises, which another thread fulfils here, and calls `on_message` wherever the news comes
        # from: that is one thread here, for all that wait.
        if on_message is None:
            yield from self._wait(result, timeout, on_interval)
            return
        told = set()
        with self.hearing(result) as heard:
            for _ in itertools.chain(self._wait(result, timeout, on_interval), (None,)):
                while heard:
                    meta = heard.popleft()
                    if meta["status"] in self.backend.READY_STATES:
                        told.add(meta["task_id"])
                    on_message(meta)
                yield
        for job in jobs_of(result):
            if job.id not in told:  # it ended before anybody could hear of it
                on_message(job._cache)  # noqa: SLF001  # as below

    def _wait(self, result: Any, timeout: float | None, on_interval: Callable[[], object] | None) -> Iterator[None]:
        ends = math.inf if timeout is None else time.monotonic() + timeout
        jobs = [each for each in jobs_of(result) if not _has_ended(each)]
        with self._expecting(jobs):
            bridge.block(self._look, jobs)
            ended, seen, unread = _Ended(jobs), -1, 0
            while not ended.ready:
                if unread != self._unread:  # a look at all of them
                    self._check_readable(jobs)
                    unread = self._unread
                left = ends - time.monotonic()
                if left <= 0:
                    raise celery.exceptions.TimeoutError("the operation timed out")
                seen = bridge.block(self._next, seen, min(left, _INTERVAL))
                yield
                if on_interval is not None:
                    on_interval()

    def _look(self, jobs: Sequence[Any]) -> None:
        """Allow results that are already there to be read, however short the timeout."""
        budget = remaining()
        ends = time.monotonic() + (_PATIENCE if budget is None else budget)
        for job in jobs:
            # A subscription that is dropped meanwhile, because another one has brought the job's end, gets no answer.
            while subscription := self._subscriptions.get(job.id):
                left = max(0.0, ends - time.monotonic())
                if subscription.looked.wait(min(left, _GLANCE)) or not left:
                    break

    def _check_readable(self, jobs: Sequence[Any]) -> None:
        for job in jobs:
            if (subscription := self._subscriptions.get(job.id)) and subscription.trouble:
                raise again(subscription.trouble)

    def _next(self, seen: int, seconds: float) -> int:
        """Wait until there is more news than this, at most so long. Returns how much there is."""
        with self._lock:
            self._news.wait_for(lambda: self._count != seen, seconds)
            return self._count

    @contextmanager
    def _expecting(self, jobs: Sequence[Any]) -> Iterator[None]:
        """Have these result objects told, until no thread waits with them any more."""
        with self._lock:
            self._expect(jobs)
        try:
            yield
        finally:
            with self._lock:
                self._expect_no_more(jobs)

    @contextmanager
    def hearing(self, result: Any) -> Iterator[deque[dict[str, Any]]]:
        """Collect each state that arrives for the result, or for the results of a group."""
        heard: deque[dict[str, Any]] = deque()
        job_ids = {each.id for each in getattr(result, "results", [result])}
        with self._lock:
            self._join_audience(job_ids, heard)
        try:
            yield heard
        finally:
            with self._lock:
                self._leave_audience(job_ids, heard)

    def on_state_change(self, meta: dict[str, Any], message: bytes) -> None:
        """Pass the state on to the job's result objects. Runs in the listener's thread."""
        job_id = meta["task_id"]
        with self._lock:  # before anybody's wait is over by it
            self._tell_audience(job_id, meta)
        if meta["status"] in self.backend.READY_STATES:
            self._forget(job_id)  # first, so that whoever begins to wait from now on subscribes anew
            results = [each for waiting in self._pending_results for each in [*waiting.get(job_id, {}).values()]]
            for number, result in enumerate(results):
                # An exception must not be raised in several threads: each result has its own.
                result._set_cache(self.backend.decode_result(message) if number else meta)  # noqa: SLF001  # as Celery's
                self.backend.listener.callbacks.add(partial(result.on_ready, result))
        with self._lock:
            self._count += 1
            self._news.notify_all()

    def on_unreadable(self, subscription: "_Watched", trouble: Exception) -> None:
        """Have those who wait for the job raise an error. Runs in the listener's thread."""
        log.error("the job %s: %s", subscription.task_id, trouble)
        subscription.trouble = trouble
        with self._lock:
            self._unread += 1
            self._count += 1
            self._news.notify_all()

    # Under the lock

    def _expect(self, jobs: Sequence[Any]) -> None:
        self._waiting.update(map(id, jobs))
        for job in jobs:
            self.backend.add_pending_result(job)
            if not self.hears_of(job.id):  # whoever waited for it before was interrupted
                self.consume_from(job.id)

    def _expect_no_more(self, jobs: Sequence[Any]) -> None:
        self._waiting.subtract(map(id, jobs))
        for job in jobs:
            if self._waiting[id(job)] == 0:
                del self._waiting[id(job)]
                if not (_has_ended(job) or any(job.on_ready.listeners)):
                    self.backend.remove_pending_result(job)

    def _join_audience(self, job_ids: Collection[str], heard: deque[dict[str, Any]]) -> None:
        for job_id in job_ids:
            self._audience.setdefault(job_id, []).append(heard)
            if (subscription := self._subscriptions.get(job_id)) and subscription.state:
                heard.append(subscription.state)

    def _leave_audience(self, job_ids: Collection[str], heard: deque[dict[str, Any]]) -> None:
        for job_id in job_ids:
            others = [each for each in self._audience.pop(job_id, ()) if each is not heard]
            if others:
                self._audience[job_id] = others

    def _tell_audience(self, job_id: str, meta: dict[str, Any]) -> None:
        if subscription := self._subscriptions.get(job_id):
            subscription.state = meta
        for heard in self._audience.get(job_id, ()):
            heard.append(meta)

    # Of subscriptions

    def watches(self, subscription: "_Watched") -> bool:
        """Whether the subscription is still wanted."""
        return self._subscriptions.get(subscription.task_id) is subscription

    def _forget(self, task_id: str) -> None:
        if subscription := self._subscriptions.pop(task_id, None):
            self.backend.listener.remove(subscription)


class _Ended:
    """Whether each of several jobs has ended: what Celery asks a promise."""

    def __init__(self, jobs: Sequence[Any]) -> None:
        self._left = [*jobs]

    @property
    def ready(self) -> bool:
        while self._left and _has_ended(self._left[-1]):
            self._left.pop()
        return not self._left


def jobs_of(result: Any) -> Iterator[Any]:
    """A job, or those of a group and of the groups in it."""
    if not hasattr(result, "results"):
        yield result
        return
    for each in result.results:
        yield from jobs_of(each)


def _has_ended(job: Any) -> bool:
    return job._cache is not None  # noqa: SLF001  # all else would ask the server


class _Watched:
    """A job that threads wait for."""

    def __init__(self, consumer: ResultConsumer, task_id: str) -> None:
        self.channel: bytes = consumer.backend.get_key_for_task(task_id)
        self.task_id = task_id
        self.looked = threading.Event()
        self.state: dict[str, Any] | None = None
        """The last one that was heard of."""
        self.trouble: Exception | None = None
        """Why what has become of it cannot be read."""
        self._consumer = consumer

    def question(self) -> tuple[str, bytes]:
        return ("GET", self.channel)

    def answered(self, reply: bytes | None) -> None:
        try:
            if reply is not None:
                self.heard(reply)
        finally:
            self.looked.set()

    def heard(self, message: bytes) -> None:
        if self._consumer.watches(self):
            try:
                meta = self._consumer.backend.decode_result(message)
            except ResultUnavailable as trouble:
                self._consumer.on_unreadable(self, trouble)
            else:
                meta.setdefault("task_id", self.task_id)
                self._consumer.on_state_change(meta, message)
