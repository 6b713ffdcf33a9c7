"""Tasks for the asyncio pool: a worker imports the module, a test calls `define` on an app of its own."""

import asyncio
import gc
import os
import pickle
import threading
import time
from contextvars import ContextVar
from functools import partial
from pathlib import Path

import anyio
from celery import current_task, group, signals
from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.log import get_task_logger

from backburner.queue import Celery, progress

QUEUE = "coroutines"

mine = ContextVar("mine", default=None)


def tell(path):
    Path(path).touch()


def tell_again(path):
    with Path(path).open("a") as told:
        told.write("x")


def is_there(path):
    return Path(path).exists()


def define(app):
    app.conf.task_default_queue = QUEUE
    task = partial(app.task, shared=False)

    @task(name="co.add")
    async def add(a, b):
        await asyncio.sleep(0)
        return a + b

    @task(name="co.sum")
    async def total(numbers):
        return sum(numbers)

    @task(name="co.double")
    def double(number):
        return 2 * number

    @task(name="co.call")
    async def call():
        """What another task gives that is called here as a function."""
        return double(4), await add(1, 2)

    @task(name="co.errback")
    def errback(request, error, traceback, path):
        tell(path)

    @task(name="co.aerrback")
    async def aerrback(request, error, traceback, path):
        if await add(1, 2) == 3:
            tell(path)

    @task(name="co.wait")
    async def wait(**options):
        """The result of another job."""
        return add.delay(1, 2).get(timeout=5, **options)

    @task(name="co.wait_for_group")
    async def wait_for_group(seconds):
        """The results of other jobs, which need the loop."""
        return group(nap.s(seconds) for _ in range(3))().get(timeout=5, disable_sync_subtasks=False)

    @task(name="co.plain_thread")
    def plain_thread():
        """What a thread of this task's sees that does not know the task."""
        seen = []

        def look():
            progress(1, 2)
            get_task_logger("mine").warning("a line outside of tasks")
            seen.append(app.current_task)

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        return seen

    @task(name="co.collector")
    async def collector():
        return [gc.get_freeze_count(), *gc.get_threshold()]

    @task(name="co.block")
    def block(seconds):
        time.sleep(seconds)
        return threading.current_thread() is threading.main_thread(), os.getpid()

    @task(name="co.stuck", time_limit=0.2)
    def stuck():
        time.sleep(3600)

    @task(name="co.hog")
    async def hog(seconds):
        time.sleep(seconds)  # noqa: ASYNC251  # what is to be noticed

    @task(name="co.nap")
    async def nap(seconds):
        await asyncio.sleep(seconds)
        return type(asyncio.get_running_loop()).__module__, id(asyncio.get_running_loop()), os.getpid()

    @task(name="co.who", bind=True)
    async def who(self):
        """All the ways to find out which job this is."""
        before = mine.get()
        mine.set(self.request.id)

        async def child():
            await asyncio.sleep(0.01)
            return current_task.request.id

        def thread():
            return current_task.request.id

        found = [self.request.id, current_task.request.id]
        found += await asyncio.gather(child(), child(), asyncio.to_thread(thread))
        found += [self.request.id, mine.get()]
        return found, before

    @task(name="co.retry", bind=True)
    async def retry(self, times):
        await asyncio.sleep(0)
        if self.request.retries < times:
            raise self.retry(countdown=0)
        return self.request.retries

    @task(name="co.autoretry", bind=True, autoretry_for=(ValueError,), default_retry_delay=0)
    async def autoretry(self, times):
        await asyncio.sleep(0)
        if self.request.retries < times:
            raise ValueError(times)
        return self.request.retries

    @task(name="co.fail")
    async def fail():
        await asyncio.sleep(0)
        raise KeyError("no such thing")

    @task(name="co.exhaust")
    async def exhaust():
        raise MemoryError

    @task(name="co.exhaust_thread")
    def exhaust_thread():
        raise MemoryError

    @task(name="co.exit")
    async def leave():
        raise SystemExit(3)

    @task(name="co.exit_thread")
    def leave_thread():
        raise KeyboardInterrupt

    @task(name="co.cancel_itself")
    async def cancel_itself():
        asyncio.current_task().cancel()
        await asyncio.sleep(1)

    @task(name="co.exit_child")
    async def exit_child():
        async def child():
            raise SystemExit(4)

        background = asyncio.create_task(child())
        await asyncio.sleep(0.05)
        return repr(background.exception())

    @task(name="co.unencodable")
    async def unencodable():
        return object()

    @task(name="co.soft", soft_time_limit=0.1)
    async def soft():
        try:
            await asyncio.gather(asyncio.sleep(10), asyncio.sleep(10))
        except SoftTimeLimitExceeded as error:
            await asyncio.sleep(0.01)  # there is time to clean up
            return repr(error), asyncio.current_task().cancelling()

    @task(name="co.soft_unhandled", soft_time_limit=0.1)
    async def soft_unhandled():
        await asyncio.sleep(10)

    @task(name="co.soft_within", soft_time_limit=0.1)
    async def soft_within(kind):
        ended = []

        async def part():
            try:
                await asyncio.sleep(10)
            finally:
                ended.append(kind)

        try:
            if kind == "wait_for":
                await asyncio.wait_for(part(), 10)
            elif kind == "gather":
                await asyncio.gather(part())
            elif kind == "asyncio":
                async with asyncio.TaskGroup() as group:
                    group.create_task(part())
            else:
                async with anyio.create_task_group() as group:
                    group.start_soon(part)
        except SoftTimeLimitExceeded as error:
            await asyncio.sleep(0.01)
            return repr(error), ended, pickle.loads(pickle.dumps(error)).args

    @task(name="co.hard", time_limit=0.1)
    async def hard(path):
        try:
            await asyncio.sleep(10)
        finally:
            tell(path)

    @task(name="co.stubborn", time_limit=0.2)
    async def stubborn(path):
        """Never end."""
        tell(path)
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                tell(f"{path}.cancelled")

    @task(name="co.nap_told")
    async def nap_told(seconds, path):
        tell_again(f"{path}.runs")
        await asyncio.sleep(seconds)

    @task(name="co.hold_thread")
    def hold_thread(path):
        tell_again(f"{path}.runs")
        while not is_there(path):
            time.sleep(0.02)
        return "released"

    async def until(path):
        tell_again(f"{path}.runs")
        try:
            while not is_there(path):  # noqa: ASYNC110  # nobody tells of files
                await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            tell(f"{path}.cancelled")
            raise
        return "released"

    @task(name="co.hold")
    async def hold(path):
        """Run until the file `path` is there, telling in ``path.runs`` how often this began."""
        return await until(path)

    @task(name="co.told")
    async def told(path, ended):
        """Run until the file `path` is there, telling in ``{ended}.runs`` how often this ended."""
        released = await until(path)
        tell_again(f"{ended}.runs")
        return released

    @task(name="co.longest_pause")
    async def longest_pause(path):
        """For how long the loop stood still, in seconds, until the file `path` was there."""
        longest, last = 0.0, time.monotonic()
        while not is_there(path):
            await asyncio.sleep(0.02)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        return longest

    @task(name="co.hold_early", acks_late=False)
    async def hold_early(path):
        return await until(path)

    @task(name="co.limited", rate_limit="10/s")
    async def limited():
        """When it began."""
        return time.monotonic()

    @task(name="co.hang_once")
    async def hang_once(path):
        """Stop the loop for good; when run again, say where."""
        if not is_there(path):
            tell(path)
            time.sleep(3600)  # noqa: ASYNC251  # it must not be interrupted
        return os.getpid()

    @task(name="co.eat")
    async def eat(megabytes):
        return len(b"x" * (megabytes << 20))

    return app


@signals.worker_process_init.connect
def begun(**_):
    print("a process has begun", flush=True)


@signals.worker_ready.connect
def ready(**_):
    print(f"outside of tasks the current one is {app.current_task}", flush=True)


app = define(Celery("coroutines"))
app.conf.worker_soft_shutdown_timeout = 0.5
app.conf.worker_blocked_after = 0.3
app.conf.broker_transport_options = {"lease": float(os.environ.get("LEASE", "2"))}

asynchronous = Celery("asynchronous", default_pool="asyncio", set_as_current=False)

impatient = define(Celery("impatient", set_as_current=False))
impatient.conf.worker_blocked_after = 0.3
impatient.conf.broker_transport_options = {"lease": 2, "watchdog": 1}
