"""Handing jobs to the broker: many times faster than Celery, within a budget, once, and without asking anybody else.

A job is one call of ``enqueue.lua``, over a connection that all threads share, or all coroutines of a loop; its message
is a `Template`, filled in. Where a job needs what that does not do (receivers of before_task_publish, stamps, links,
routers that look at arguments, another serializer, another broker), `Producer` says so, and Celery's own path is taken
within the same budget (`publishing`).

Nothing is sent twice without need, and a second attempt is the same delivery to the server's script. How long a name
lookup takes is the one thing that nobody can bound.
"""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from itertools import count
from numbers import Real
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast
from weakref import WeakKeyDictionary

import celery
import celery.app.amqp
import redis
from celery import signals
from celery._state import get_current_worker_task
from celery.app.routes import MapRoute
from celery.backends.base import Backend
from kombu import pools
from kombu.exceptions import OperationalError
from kombu.transport.redis import Channel

from backburner.cache.runtime import run
from backburner.errors import ConfigError, PublishError
from backburner.queue.backend import RedisBackend
from backburner.queue.deadline import OutOfTime, deadline, limited
from backburner.queue.delivery import ENQUEUE
from backburner.queue.template import Template, quote
from backburner.queue.transport.redis import delivery
from backburner.redis.blocking import BlockingClient
from backburner.redis.command import again
from backburner.redis.pipelined import PipelinedClient
from backburner.redis.url import ServerURL, mask_password

if TYPE_CHECKING:
    from backburner.queue.app import Celery
    from backburner.queue.result import Job

T = TypeVar("T")

log = logging.getLogger("backburner.queue")

CHUNK: Final = 200
"""Jobs that are enqueued in one write: enough to make it cheap, few enough to be made without holding up a loop."""
_ATTEMPTS: Final = 2
_PAUSE: Final = 0.05
"""Share of the budget between attempts: who cut a connection may cut the next one too."""
_SAME_FOR_ALL: Final = frozenset({"queue", "priority", "ignore_result", "time_limit", "soft_time_limit"})
_UNDERSTOOD: Final = _SAME_FOR_ALL | {
    "task_id", "countdown", "eta", "expires", "root_id", "parent_id", "add_to_parent",
}  # fmt: skip
_LOOK_FOR_LISTENERS: Final = 0.1
"""Seconds without events about jobs, while nobody listens: making one costs a third of what a job costs."""
_HARMLESS: Final = frozenset(Channel.from_transport_options) - {"body_encoding", "deadletter_queue"} | {
    "job_record_expires", "lease", "master_name", "max_deliveries", "unknown_task_grace", "watchdog",
}  # fmt: skip
"""Options of transports that change nothing about a message, or that templates know."""
_ELSEWHERE: Final = ("broker_use_ssl", "broker_login_method", "broker_user", "broker_password", "broker_vhost")
"""Settings that say about the broker what its URL does not say."""
_FOREIGN: Final = (OutOfTime, OperationalError, redis.RedisError, OSError)


class NotEnqueued(PublishError, OperationalError):
    """A `PublishError` that code written for Celery knows as well: Celery promises an OperationalError."""


Call = tuple[Sequence[Any], dict[str, Any]]
"""Arguments of a task."""


class Producer:
    """Enqueues what needs nothing special. Usable from threads, coroutines of several loops, and forks."""

    def __init__(self, app: "Celery") -> None:
        self._app = app
        self._budget = app.settings.celery_publish_timeout
        self._setup: _Setup | None = None

    def publish(self, task: Any, calls: Sequence[Call], options: Mapping[str, Any]) -> "list[Job[Any]] | None":
        """Enqueue a job for each call; ``None`` if that is Celery's affair, and nothing was sent.

        Raises:
            PublishError: the broker did not confirm them. Of many, `CHUNK` at a time have the whole budget.
        """
        setup = self._setup_for(options)
        if setup is None or setup.line is None:
            return None
        return run(self._publish(setup, setup.line, task, calls, options))

    async def apublish(self, task: Any, calls: Sequence[Call], options: Mapping[str, Any]) -> "list[Job[Any]] | None":
        """As `publish`."""
        setup = self._setup_for(options)
        return await self._publish(setup, setup.stream(), task, calls, options) if setup else None

    def close(self) -> None:
        """Close the connection that threads share. Those of event loops end with their loops."""
        setup, self._setup = self._setup, None
        if setup is not None:
            setup.close()

    # What can be enqueued here

    def _setup_for(self, options: Mapping[str, Any]) -> "_Setup | None":
        """``None`` if it cannot be done here, as far as one can tell before a message is made."""
        conf: Any = self._app.conf
        setup = self._setup
        if setup is None or not setup.holds(conf):
            setup = self._renewed(conf)
        if (
            setup.line is None
            or signals.before_task_publish.receivers
            or signals.task_sent.receivers
            or (options and not _UNDERSTOOD.issuperset(options))
            or setup.is_eager(conf)
        ):
            return None
        return setup

    def _renewed(self, conf: Any) -> "_Setup":
        app: Any = self._app
        # A result backend that prepares for each result does so in Celery's path.
        prepares = type(app.backend).on_task_call not in (Backend.on_task_call, RedisBackend.on_task_call)
        is_plain = (
            not prepares
            and conf.task_protocol == 2
            and type(app.amqp) is AMQP
            and type(app).send_task.__module__.startswith("backburner.")
            and all(isinstance(route, MapRoute) for route in app.amqp.routes)
        )
        before = self._setup
        # Threads may do this at the same time. What is not kept is used once.
        setup = self._setup = _Setup(conf, _server(conf) if is_plain else "", self._budget)
        if before is not None and before.pid == os.getpid():
            before.close()
        return setup

    # Enqueueing

    async def _publish(
        self, setup: "_Setup", port: "_Port", task: Any, calls: Sequence[Call], options: Mapping[str, Any]
    ) -> "list[Job[Any]] | None":
        terms = self._terms(setup, task, options)
        template = terms and await self._template(setup, port, task, terms)
        if not terms or not template:
            return None
        chunks = []
        for start in range(0, len(calls), CHUNK):
            if start:
                await port.pause(0)
            chunk = self._chunk(setup, task, template, terms, calls[start : start + CHUNK])
            if chunk is None:
                return None
            chunks.append(chunk)
        jobs: list[Job[Any]] = []
        send = partial(self._send, setup)
        for chunk in chunks:
            try:
                await port.deliver(chunk, send)
            except NotEnqueued as error:
                if jobs:
                    error.add_note(f"The first {len(jobs)} of {len(calls)} jobs were enqueued.")
                raise
            jobs += self._jobs(task, terms, chunk.ids)
            if signals.after_task_publish.receivers:
                await port.aside(_tell_receivers, chunk)
        return jobs

    def _terms(self, setup: "_Setup", task: Any, options: Mapping[str, Any]) -> "_Terms | None":
        """What the options mean; ``None`` if they are not of the usual kinds."""
        parent = get_current_worker_task()
        ignored, expires = task.ignore_result, task.expires
        if parent is None and not options and expires is None:
            return _Terms((task, ignored, False), ignored)
        terms = _Terms((), options.get("ignore_result", ignored), options.get("root_id"), options.get("parent_id"))
        for name in ("task_id", "root_id", "parent_id", "queue"):
            if not isinstance(options.get(name), str | None):
                return None
        terms.task_id = options.get("task_id")
        same = {name: value for name, value in options.items() if name in _SAME_FOR_ALL}
        if parent is not None:
            if not (terms.root_id and terms.parent_id):
                terms.root_id = terms.root_id or parent.request.root_id or parent.request.id
                terms.parent_id = terms.parent_id or parent.request.id
                if setup.inherits_priority:
                    same.setdefault("priority", (parent.request.delivery_info or {}).get("priority"))
            if options.get("add_to_parent", True):
                terms.add_to = parent
        countdown, eta, expires = options.get("countdown"), options.get("eta"), options.get("expires", expires)
        now = self._app.now()
        if countdown:
            if not _is_number(countdown):
                return None
            eta = now + timedelta(seconds=countdown)
        if eta:
            if not _is_moment(eta):
                return None
            terms.due, terms.eta = eta.timestamp(), f'"{eta.isoformat()}"'
        if expires is not None:
            if _is_number(expires):
                expires = now + timedelta(seconds=expires)
            if not _is_moment(expires) or expires < now:
                return None
            terms.expires = f'"{expires.isoformat()}"'
            terms.expiration = f'"{int((expires - now).total_seconds() * 1000)}"'
        terms.key = (task, ignored, expires is not None, *sorted(same.items()))
        return terms

    async def _template(self, setup: "_Setup", port: "_Port", task: Any, terms: "_Terms") -> Template | None:
        templates = setup.templates
        if terms.key not in templates:
            templates[terms.key] = await port.aside(self._compile, task, dict(terms.key[3:]), terms.key[2])
        return templates[terms.key]

    def _compile(self, task: Any, options: Mapping[str, Any], expires: bool) -> Template | None:
        limits = task.soft_time_limit, task.time_limit
        if type(task).shadow_name is not celery.Task.shadow_name or (all(limits) and limits[0] > limits[1]):
            return None
        try:
            return Template(self._app, task, options, expires=expires)
        except Exception as error:  # noqa: BLE001  # if it is one, Celery's own path raises it again
            log.info("jobs of %s are enqueued in Celery's own way: %s", task.name, error)
            return None

    def _chunk(
        self, setup: "_Setup", task: Any, template: Template, terms: "_Terms", calls: Sequence[Call]
    ) -> "_Chunk | None":
        """Make messages; ``None`` if Celery is to say what is wrong with them."""
        ids, messages, announcements, token = [], [], [], ""
        reply_to = quote(self._app.thread_oid)
        parent_id = quote(terms.parent_id) if terms.parent_id else "null"
        root_id = quote(terms.root_id) if terms.root_id else None
        check = task.__header__ if task.typing else None
        dump = task._dump_pydantic_arguments  # noqa: SLF001  # as Celery does
        announces = template.announces and setup.has_listeners()
        for args, kwargs in calls:
            if not isinstance(args, tuple | list) or type(kwargs) is not dict:
                return None
            if check is not None:
                check(*args, **kwargs)
            task_id = terms.task_id or new_id()
            tag, quoted = next(setup.tags), quote(task_id)
            values = {
                "id": quoted,
                "root": root_id or quoted,
                "parent": parent_id,
                "reply_to": reply_to,
                "eta": terms.eta,
                "expires": terms.expires,
                "expiration": terms.expiration,
                "tag": tag,
            }
            messages.append(template.fill(values, *(dump(args, kwargs) if dump else (args, kwargs))))
            ids.append(task_id)
            token = token or tag[1:-1]
            if announces:
                announcements.append(template.announce(values))
        return _Chunk(template, ids, calls, messages, announcements, token, terms.due, terms.task_id is None)

    async def _send(self, setup: "_Setup", port: "_Port", chunk: "_Chunk") -> None:
        began, attempts, script = time.monotonic(), 0, ("EVALSHA", ENQUEUE.sha)
        template, words = chunk.template, chunk.words()
        with port.budgeted():
            while True:
                try:
                    if template.queue not in setup.declared:
                        for binding in template.bindings:
                            await port.execute(*binding)
                        setup.declared.add(template.queue)
                    heard = await port.execute(*script, *words)
                except redis.exceptions.NoScriptError:
                    script = ("EVAL", ENQUEUE.text)
                except _FOREIGN as error:
                    attempts += 1
                    setup.declared.discard(template.queue)  # the next server may be an empty one
                    # A second attempt is the same delivery to the script. An error of the server's own stays one.
                    late = time.monotonic() - began > self._budget / 2
                    if attempts == _ATTEMPTS or late or isinstance(error, redis.ResponseError):
                        raise _not_enqueued(self._app, template.place.task, began, error) from error
                    await port.pause(_PAUSE * self._budget)
                else:
                    if chunk.announcements:
                        setup.listeners = heard > 0
                    return

    def _jobs(self, task: Any, terms: "_Terms", ids: Sequence[str]) -> "list[Job[Any]]":
        if type(task).AsyncResult is celery.Task.AsyncResult:
            backend, make = task.backend, self._app.AsyncResult
            jobs = [make(task_id, backend) for task_id in ids]
        else:
            jobs = [task.AsyncResult(task_id) for task_id in ids]
        for job in jobs:
            job.ignored = terms.ignored
            job.enqueued, job.arguments = True, task.arguments
            if terms.add_to is not None:
                terms.add_to.add_trail(job)
        return jobs


class _Setup:
    """What holds as long as process and configuration stay the same."""

    def __init__(self, conf: Any, url: str, budget: float) -> None:
        self.url = url
        """Where to enqueue; empty if that is Celery's affair."""
        self.pid = os.getpid()  # the parent's connections are the parent's, and messages tell who sent them
        self.templates: dict[tuple[Any, ...], Template | None] = {}
        self.declared: set[str] = set()
        self.tags = map(f'"{os.urandom(8).hex()}-{{:x}}"'.format, count())
        self.line = _Line(url, budget) if url else None
        """For threads."""
        self.inherits_priority = conf.task_inherit_parent_priority
        self.listeners = False
        """Whether anybody heard the last announcement."""
        self._changes, self._maps = dict(conf.changes), len(conf.maps)
        self._eager_keys = conf._to_keys("task_always_eager")  # noqa: SLF001  # reading it by its name costs 3 us
        self._look_for_listeners_at = 0.0
        self._budget = budget
        self._streams: WeakKeyDictionary[asyncio.AbstractEventLoop, _Stream] = WeakKeyDictionary()

    def holds(self, conf: Any) -> bool:
        """Whether nothing has changed."""
        return self._changes == conf.changes and self._maps == len(conf.maps) and self.pid == os.getpid()

    def is_eager(self, conf: Any) -> bool:
        """Whether jobs are to run on the spot; tests switch that to and fro, in any of the places of settings."""
        for mapping in conf.maps:
            for key in self._eager_keys:
                if key in mapping:
                    return bool(mapping[key])
        return False

    def has_listeners(self) -> bool:
        """Whether anybody may want to hear of jobs; if nobody did, that is asked anew now and then."""
        now = time.monotonic()
        if not self.listeners and now < self._look_for_listeners_at:
            return False
        self._look_for_listeners_at = now + _LOOK_FOR_LISTENERS
        return True

    def stream(self) -> "_Stream":
        """For the running event loop."""
        loop = asyncio.get_running_loop()
        stream = self._streams.get(loop)
        if stream is None:
            stream = self._streams[loop] = _Stream(self.url, self._budget)
        return stream

    def close(self) -> None:
        """Close the connection of threads."""
        if self.line is not None:
            self.line.close()


@dataclass(slots=True)
class _Terms:
    """What the options say; what goes into messages as JSON."""

    key: tuple[Any, ...]
    """Of the template: the task, whether its result is ignored, whether it expires, other options."""
    ignored: Any
    root_id: str | None = None
    parent_id: str | None = None
    task_id: str | None = None
    due: float | None = None
    eta: str = "null"
    expires: str = "null"
    expiration: str = "null"
    add_to: Any = None
    """The task that runs here, which keeps account of what it enqueues."""


@dataclass(slots=True)
class _Chunk:
    """What goes to the server in one call."""

    template: Template
    ids: list[str]
    calls: Sequence[Call]
    messages: list[str]
    announcements: list[str]
    token: str
    due: float | None
    has_new_ids: bool

    def words(self) -> tuple[str, ...]:
        """How many keys, the keys and the arguments of the script."""
        place = self.template.place
        keys = place.keys(self.ids)
        return str(len(keys)), *keys, *place.arguments(self.messages, self.token, self.due, self.announcements)


class _Port(Protocol):
    """In what the blocking and the asyncio way differ."""

    def budgeted(self) -> AbstractContextManager[None]:
        """Bound what is sent in the block, where its connection does not do so by itself."""
        ...

    def execute(self, *words: str) -> Awaitable[Any]:
        """Send a command, and wait for its reply."""
        ...

    async def deliver(self, chunk: _Chunk, send: "_Send") -> None:
        """Send a chunk, alone or with others."""
        ...

    async def aside(self, function: Callable[..., T], *args: Any) -> T:
        """Call what may take long."""
        ...

    async def pause(self, seconds: float) -> None:
        """Wait, and let others have a turn."""
        ...


_Send = Callable[[_Port, _Chunk], Awaitable[None]]


class _Line(BlockingClient):
    """One connection for all threads."""

    def __init__(self, url: str, budget: float) -> None:
        # A thread waits for the one that has the connection, and then for its own reply; a second attempt is to fit in.
        super().__init__(url, timeout=budget / 3, name="backburner-producer")
        pool = self._client.connection_pool
        pool.connection_class = limited(pool.connection_class)
        self._budget = budget

    def budgeted(self) -> AbstractContextManager[None]:
        return deadline(self._budget)

    async def execute(self, *words: str) -> Any:
        return self.execute_command(*words)

    async def deliver(self, chunk: _Chunk, send: _Send) -> None:
        await send(self, chunk)

    async def aside(self, function: Callable[..., T], *args: Any) -> T:
        return function(*args)

    async def pause(self, seconds: float) -> None:
        if seconds:
            time.sleep(seconds)  # noqa: ASYNC251  # what threads do; there is no loop here


class _Stream(PipelinedClient):
    """One connection for all coroutines of a loop. What they enqueue of one task in one tick is one chunk."""

    budgeted = staticmethod(nullcontext)

    def __init__(self, url: str, budget: float) -> None:
        super().__init__(url, timeout=(1 - _PAUSE) * budget / _ATTEMPTS, name="backburner-producer")
        self._loop = asyncio.get_running_loop()
        self._gathering: dict[Template, tuple[_Chunk, list[asyncio.Future[None]]]] = {}
        self._sending: set[asyncio.Task[None]] = set()

    def execute(self, *words: str) -> Awaitable[Any]:
        return self.execute_command(*words)

    async def deliver(self, chunk: _Chunk, send: _Send) -> None:
        if len(chunk.ids) > 1 or chunk.due is not None or not chunk.has_new_ids:
            await send(self, chunk)
            return
        template, future = chunk.template, self._loop.create_future()
        if template not in self._gathering:
            mine = replace(chunk, ids=chunk.ids[:], messages=chunk.messages[:], announcements=chunk.announcements[:])
            self._gathering[template] = mine, [future]
            self._loop.call_soon(self._send_gathered, template, send)
        else:
            gathered, futures = self._gathering[template]
            gathered.ids += chunk.ids
            gathered.messages += chunk.messages
            gathered.announcements += chunk.announcements
            futures.append(future)
            if len(futures) == CHUNK:
                self._send_gathered(template, send)
        await future

    def _send_gathered(self, template: Template, send: _Send) -> None:
        if template in self._gathering:
            task = self._loop.create_task(self._send_for_all(*self._gathering.pop(template), send))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _send_for_all(self, chunk: _Chunk, futures: list[asyncio.Future[None]], send: _Send) -> None:
        try:
            await send(self, chunk)
        except Exception as error:  # noqa: BLE001  # raised for each caller
            for future in futures:
                if not future.done():
                    future.set_exception(again(error))
        else:
            for future in futures:
                if not future.done():
                    future.set_result(None)
        finally:
            for future in futures:
                future.cancel()  # no-op, unless this ends with its loop

    async def aside(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.to_thread(function, *args)

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class AMQP(celery.app.amqp.AMQP):
    """Celery's message factory, publishing over connections of our own."""

    @property
    def producer_pool(self) -> Any:
        """The pool of producers that tasks are published with."""
        if self._producer_pool is None:  # type: ignore[has-type]  # the stubs leave it out
            pool = pools.producers[cast("Celery", self.app).connection_for_publishing()]
            pool.limit = self.app.pool.limit
            self._producer_pool = pool
        return self._producer_pool

    publisher_pool = producer_pool


@contextmanager
def publishing(app: celery.Celery, task: str, budget: float) -> Iterator[None]:
    """Publish in the block, in Celery's way: within `budget` seconds, as one delivery, with foreign errors translated.

    Raises:
        PublishError: the broker did not take the job.
    """
    began = time.monotonic()
    try:
        with deadline(budget), delivery():
            yield
    except PublishError:
        raise
    except _FOREIGN as error:
        raise _not_enqueued(app, task, began, error) from error


def job_record(app: celery.Celery, job_id: str) -> dict[str, str] | None:
    """What was written when the job was enqueued: name, queue, enqueued (ms). Empty if it never was.

    ``None`` means that nothing can be said: this broker keeps no records.
    """
    with app.producer_or_acquire() as producer:
        read = getattr(producer.channel, "job_record", None)
        return None if read is None else read(job_id)


def new_id() -> str:
    """A random UUID of version 4, as Celery's are, in a third of the time."""
    digits = os.urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


def _tell_receivers(chunk: _Chunk) -> None:
    template = chunk.template
    for (args, kwargs), message in zip(chunk.calls, chunk.messages, strict=True):
        signals.after_task_publish.send(
            sender=template.place.task,
            body=(args, kwargs, template.embedded),
            headers=template.headers(message),
            exchange="",
            routing_key=template.queue,
        )


def _not_enqueued(app: celery.Celery, task: str, began: float, error: BaseException) -> NotEnqueued:
    broker = mask_password(str(app.conf.broker_write_url))
    return NotEnqueued(
        f"the job {task!r} was not enqueued: {broker} did not confirm it within {time.monotonic() - began:.2f} s "
        f"({str(error) or 'no answer'}). Check that the broker runs and can be reached (CELERY_BROKER_URL "
        "or REDIS_URL); CELERY_PUBLISH_TIMEOUT says how long to try. A broker that is only slow may take "
        "the job later"
    )


def _server(conf: Any) -> str:
    """The URL of the broker, if it says all there is to say; else nothing."""
    options = conf.broker_transport_options
    if any(conf[name] for name in _ELSEWHERE) or not _HARMLESS.issuperset(options):
        return ""
    url = conf.broker_write_url
    if isinstance(url, str) and url.startswith("sentinel://") and "master_name" in options:
        first, *others = url.split(";")
        hosts = [first.removeprefix("sentinel://").partition("/")[0], *(_host(other) for other in others)]
        database = first.removeprefix("sentinel://").partition("/")[2]
        url = f"redis+sentinel://{','.join(hosts)}/{options['master_name']}/{database}"
    try:
        ServerURL.parse(url)
    except (ConfigError, AttributeError):
        return ""
    return str(url)


def _host(sentinel: str) -> str:
    return sentinel.removeprefix("sentinel://").partition("/")[0].rpartition("@")[2]


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_moment(value: Any) -> bool:
    return isinstance(value, datetime) and value.tzinfo is not None
