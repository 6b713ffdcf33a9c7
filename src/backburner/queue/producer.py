"""The fast path of enqueueing, many times faster than Celery's own: which calls may take it, and their messages.

A job's message is a filled-in `Template`, sent by `backburner.queue.sending`. If a job needs more than that (receivers
of before_task_publish, stamps, links, routers that look at arguments, another serializer, another broker), `Producer`
returns ``None``, and Celery's own path is taken within the same budget (`backburner.queue.publishing`).
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import count
from numbers import Real
from typing import TYPE_CHECKING, Any, Final

import celery
import celery.app.base
import celery.app.task
import kombu
from celery import signals
from celery._state import get_current_worker_task
from celery.app.routes import MapRoute
from celery.backends.base import Backend
from celery.exceptions import SoftTimeLimitExceeded
from kombu.exceptions import EncodeError
from kombu.transport.redis import Channel

from backburner.cache.runtime import run
from backburner.errors import ConfigError
from backburner.queue.backend import RedisBackend
from backburner.queue.publishing import AMQP, NotEnqueued
from backburner.queue.sending import CHUNK, Call, Chunk, Delivery, Port, Sender
from backburner.queue.template import Encoded, Template, Unsuitable, quote
from backburner.redis.url import ServerURL

if TYPE_CHECKING:
    from backburner.queue.result import Job

log = logging.getLogger("backburner.queue")

_SAME_FOR_ALL: Final = frozenset({"queue", "priority", "ignore_result", "time_limit", "soft_time_limit"})
_UNDERSTOOD: Final = _SAME_FOR_ALL | {
    "task_id", "countdown", "eta", "expires", "root_id", "parent_id", "add_to_parent",
}  # fmt: skip
_HARMLESS: Final = frozenset(Channel.from_transport_options) - {"body_encoding", "deadletter_queue"} | {
    "job_record_expires", "lease", "master_name", "max_deliveries", "replicas", "unknown_task_grace", "watchdog",
}  # fmt: skip
"""Transport options that do not change messages, or that templates take into account."""
_PLAIN: Final = (int, float, str, type(None))
"""Types of options that a template may depend on."""
_MOST_TEMPLATES: Final = 1000
"""Templates per app. Options that differ from call to call (a computed time limit) go through Celery beyond that."""
_ELSEWHERE: Final = ("broker_use_ssl", "broker_login_method", "broker_user", "broker_password", "broker_vhost")
"""Settings about the broker that its URL does not contain."""


def _own(function: Any, module: Any) -> Any:
    """The function, if it was defined in this module and nobody has wrapped it since."""
    return function if getattr(function, "__globals__", None) is vars(module) else None


_send_task = _own(celery.Celery.send_task, celery.app.base)
_apply_async = _own(celery.Task.apply_async, celery.app.task)
_publish = _own(kombu.Producer.publish, kombu.messaging)


class Producer:
    """Enqueues jobs that need nothing special. Usable from threads, from coroutines of several loops, and after
    forks."""

    def __init__(self, app: celery.Celery) -> None:
        self._app = app
        self._setup: _Setup | None = None

    def publish(self, task: Any, calls: Sequence[Call], options: Mapping[str, Any]) -> "list[Job[Any]] | None":
        """Enqueue a job for each call. ``None`` if that is left to Celery, and nothing was sent.

        Raises:
            PublishError: the broker did not confirm them. The budget is for each `CHUNK` of them.
        """
        setup = self._setup_for(options)
        if setup is None or setup.sender is None:
            return None
        return run(self._publish(setup, setup.sender.line, task, calls, options))

    async def apublish(self, task: Any, calls: Sequence[Call], options: Mapping[str, Any]) -> "list[Job[Any]] | None":
        """As `publish`."""
        setup = self._setup_for(options)
        if setup is None or setup.sender is None:
            return None
        return await self._publish(setup, setup.sender.stream(), task, calls, options)

    def look_again(self) -> None:
        """Check everything again: something has changed that cannot be detected."""
        if (setup := self._setup) is not None:
            setup.is_outdated = True

    def close(self) -> None:
        """Close the connections."""
        setup, self._setup = self._setup, None
        if setup is not None and setup.sender is not None:
            setup.sender.close()

    # What can be enqueued here

    def _setup_for(self, options: Mapping[str, Any]) -> "_Setup | None":
        """What enqueueing here needs; ``None`` if it is impossible here, as far as that is known before a message is
        made."""
        conf: Any = self._app.conf
        setup = self._setup
        if setup is None or not setup.holds(conf):
            setup = self._renewed(conf)
        if (
            setup.sender is None
            or signals.before_task_publish.receivers
            or signals.task_sent.receivers
            or (options and not _UNDERSTOOD.issuperset(options))
            or setup.is_eager(conf)
            # Whatever wraps Celery's functions (Sentry, Datadog, a test) must see each job.
            or celery.Celery.send_task is not _send_task
            or celery.Task.apply_async is not _apply_async
            or kombu.Producer.publish is not _publish
            or "send_task" in vars(self._app)
        ):
            return None
        return setup

    def _renewed(self, conf: Any) -> "_Setup":
        app: Any = self._app
        seen = _Seen(conf)  # first, so that changes during what follows are noticed
        # If the result backend prepares for each result, it does so on Celery's path.
        prepares = type(app.backend).on_task_call not in (Backend.on_task_call, RedisBackend.on_task_call)
        is_plain = (
            not prepares
            and conf.task_protocol == 2
            and type(app.amqp) is AMQP
            and type(app).send_task.__module__.startswith("backburner.")
            and all(isinstance(route, MapRoute) for route in app.amqp.routes)
        )
        url = _server(conf) if is_plain else ""
        before = self._setup
        # Threads may do this at the same time; then one result is kept, and the others are used once.
        setup = self._setup = _Setup(conf, seen, Sender(app, url, app.settings.celery_publish_timeout) if url else None)
        if before is not None and before.sender is not None and before.pid == os.getpid():
            before.sender.close()
        return setup

    # Enqueueing

    async def _publish(
        self, setup: "_Setup", port: Port, task: Any, calls: Sequence[Call], options: Mapping[str, Any]
    ) -> "list[Job[Any]] | None":
        terms = self._terms(setup, task, options)
        template = terms and (setup.templates.get(terms.key) or await self._template(setup, port, task, terms))
        if not terms or not template:
            return None
        if len(calls) > CHUNK:
            return await self._publish_chunks(setup, port, task, calls, template, terms)
        if not calls:
            return []
        told = self._encoded(task, template, calls)
        if told is None:
            return None
        chunk = self._chunk(setup, template, terms, *told)
        delivery = port.deliver(chunk)
        jobs = self._jobs(task, terms, chunk.ids)  # while it is on its way
        await delivery()
        await self._tell(port, terms, chunk, jobs)
        return jobs

    async def _publish_chunks(
        self, setup: "_Setup", port: Port, task: Any, calls: Sequence[Call], template: Template, terms: "_Terms"
    ) -> "list[Job[Any]] | None":
        encoded: list[tuple[list[Call], list[Encoded]]] = []
        # All of it before anything is sent, so that one wrong call means that no job is enqueued.
        for start in range(0, len(calls), CHUNK):
            if encoded:
                await port.pause(0)
            some = self._encoded(task, template, calls[start : start + CHUNK], start)
            if some is None:
                return None
            encoded.append(some)
        jobs: list[Job[Any]] = []

        async def arrived(chunk: Chunk, delivery: Delivery, some: "list[Job[Any]]") -> None:
            try:
                await delivery()
            except NotEnqueued as error:
                tell_enqueued(error, len(jobs), len(calls))
                raise
            await self._tell(port, terms, chunk, some)
            jobs.extend(some)

        # While a chunk is on its way, its jobs and the next chunk are made.
        under_way: tuple[Chunk, Delivery, list[Job[Any]]] | None = None
        for part in encoded:
            chunk = self._chunk(setup, template, terms, *part)
            if under_way is not None:
                await arrived(*under_way)
            under_way = chunk, port.begin(chunk), self._jobs(task, terms, chunk.ids)
        if under_way is not None:
            await arrived(*under_way)
        return jobs

    async def _tell(self, port: Port, terms: "_Terms", chunk: Chunk, jobs: "Sequence[Job[Any]]") -> None:
        """Tell whoever wants to know that the jobs are enqueued now."""
        if signals.after_task_publish.receivers:
            await port.aside(_tell_receivers, chunk)
        if terms.add_to is not None:
            for job in jobs:
                terms.add_to.add_trail(job)

    def _terms(self, setup: "_Setup", task: Any, options: Mapping[str, Any]) -> "_Terms | None":
        """The terms that these options stand for; ``None`` if they are not of the usual kinds."""
        parent = get_current_worker_task()
        ignored, expires = task.ignore_result, task.expires
        if parent is None and not options and expires is None:
            usual = setup.usual.get(task)
            if usual is None or usual.ignored is not ignored:
                usual = setup.usual[task] = _Terms((task, ignored, False), ignored)
            return usual
        terms = _Terms((), options.get("ignore_result", ignored), options.get("root_id"), options.get("parent_id"))
        for name in ("task_id", "root_id", "parent_id", "queue"):
            if not isinstance(options.get(name), str | None):
                return None
        terms.task_id = options.get("task_id")
        same = {name: value for name, value in options.items() if name in _SAME_FOR_ALL}
        if not all(isinstance(value, _PLAIN) for value in same.values()):
            return None
        if parent is not None:
            if not (terms.root_id and terms.parent_id):
                terms.root_id = terms.root_id or parent.request.root_id or parent.request.id
                terms.parent_id = terms.parent_id or parent.request.id
                if setup.inherits_priority:
                    return None  # the outcome depends on the task, its routes and the call
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
        # With their types, because 1 equals True and 1.0.
        terms.key = (
            task,
            ignored,
            expires is not None,
            *((name, same[name], type(same[name])) for name in sorted(same)),
        )
        return terms

    async def _template(self, setup: "_Setup", port: Port, task: Any, terms: "_Terms") -> Template | None:
        templates = setup.templates
        if terms.key in templates or len(templates) >= _MOST_TEMPLATES:
            return templates.get(terms.key)
        options = {name: value for name, value, _ in terms.key[3:]}
        try:
            template = await port.aside(self._compile, task, options, terms.key[2])
        except Unsuitable as error:
            log.info("jobs of %s are enqueued in Celery's own way: %s", task.name, error)
            template = None
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:  # noqa: BLE001  # if it is one, Celery's own path raises it again
            log.info("a job of %s is enqueued in Celery's own way: %s", task.name, error)
            return None
        templates[terms.key] = template
        return template

    def _compile(self, task: Any, options: Mapping[str, Any], expires: bool) -> Template:
        limits = task.soft_time_limit, task.time_limit
        if type(task).shadow_name is not celery.Task.shadow_name or (all(limits) and limits[0] > limits[1]):
            raise Unsuitable("Celery has something to say about each of them")
        return Template(self._app, task, options, expires=expires)

    def _encoded(
        self, task: Any, template: Template, calls: Sequence[Call], first: int = 0
    ) -> tuple[list[Call], list[Encoded]] | None:
        """The calls, with arguments as Celery knows them, and what their messages contain; ``None`` if one is wrong, so
        that Celery reports it. `first` is the place of the first one among all calls."""
        check = task.arguments_check
        dump = task._dump_pydantic_arguments  # noqa: SLF001  # as Celery does
        said: list[Call] = []
        encoded = []
        try:
            for args, kwargs in calls:
                if not isinstance(args, tuple | list) or type(kwargs) is not dict:
                    return None
                if check is not None:
                    check(*args, **kwargs)
                call = dump(args, kwargs) if dump else (args, kwargs)
                said.append(call)
                encoded.append(template.encoded(*call))
        except (TypeError, EncodeError) as error:
            if first or len(calls) > 1:
                point_out(error, first + len(encoded))
            raise
        return said, encoded

    def _chunk(
        self,
        setup: "_Setup",
        template: Template,
        terms: "_Terms",
        calls: Sequence[Call],
        encoded: Sequence[Encoded],
    ) -> Chunk:
        """Make messages."""
        parent = quote(terms.parent_id) if terms.parent_id is not None else "null"
        common = parent, quote(self._app.thread_oid), terms.eta, terms.expires, terms.expiration
        root_id = quote(terms.root_id) if terms.root_id else None
        announces = template.announces and setup.sender is not None and setup.sender.has_listeners()
        ids, messages, announcements = [], [], []
        token = ""
        for each in encoded:
            job_id = terms.task_id or new_id()
            tag, quoted = next(setup.tags), f'"{job_id}"' if terms.task_id is None else quote(job_id)
            ids.append(job_id)
            messages.append(template.message(quoted, root_id or quoted, tag, each, common))
            token = token or tag[1:-1]
            if announces:
                announcements.append(template.announcement(quoted, root_id or quoted, tag, each, common))
        return Chunk(template, ids, calls, messages, announcements, token, terms.due, terms.task_id is None)

    def _jobs(self, task: Any, terms: "_Terms", ids: Sequence[str]) -> "list[Job[Any]]":
        if type(task).AsyncResult is celery.Task.AsyncResult:
            backend, make = task.backend, self._app.AsyncResult
            jobs: list[Any] = [make(task_id, backend=backend) for task_id in ids]
        else:
            jobs = [task.AsyncResult(task_id) for task_id in ids]
        for job in jobs:
            job.ignored = terms.ignored
            job.enqueued, job.arguments = True, task.arguments
        return jobs


class _Seen:
    """A configuration as it was."""

    def __init__(self, conf: Any) -> None:
        self.changes = dict(conf.changes)
        self.maps = list(conf.maps)

    def holds(self, conf: Any) -> bool:
        """Whether nothing has changed. The sources of settings are compared by identity, the changed settings by
        value."""
        return bool(self.changes == conf.changes and self.maps == conf.maps)


class _Setup:
    """What is valid while process and configuration stay the same."""

    is_outdated = False

    def __init__(self, conf: Any, seen: _Seen, sender: Sender | None) -> None:
        self.sender = sender
        """Where to enqueue; ``None`` if that is left to Celery."""
        self.pid = os.getpid()  # a forked child needs connections of its own, and messages contain the sender
        self.templates: dict[tuple[Any, ...], Template | None] = {}
        self.usual: dict[Any, _Terms] = {}
        """The terms of tasks without options, enqueued by nobody's task."""
        self.tags = map(f'"{os.urandom(8).hex()}-{{:x}}"'.format, count())
        self.inherits_priority = conf.task_inherit_parent_priority
        self._seen = seen
        self._eager_keys = conf._to_keys("task_always_eager")  # noqa: SLF001  # reading it by its name costs 3 us

    def holds(self, conf: Any) -> bool:
        """Whether nothing has changed."""
        return self._seen.holds(conf) and not self.is_outdated and self.pid == os.getpid()

    def is_eager(self, conf: Any) -> bool:
        """Whether jobs are to run on the spot; tests switch that back and forth, in any source of settings."""
        for mapping in conf.maps:
            for key in self._eager_keys:
                if key in mapping:
                    return bool(mapping[key])
        return False


@dataclass(slots=True)
class _Terms:
    """The meaning of a call's options, in JSON where it goes into messages. Immutable."""

    key: tuple[Any, ...]
    """The template's key: the task, whether its result is ignored, whether it expires, other options."""
    ignored: Any
    root_id: str | None = None
    parent_id: str | None = None
    task_id: str | None = None
    due: float | None = None
    eta: str = "null"
    expires: str = "null"
    expiration: str = "null"
    add_to: Any = None
    """The running task, which keeps account of what it enqueues."""


def point_out(error: Exception, place: int) -> None:
    """Note on an error which of many calls it is about."""
    error.add_note(f"That is about calls[{place}]. No job was enqueued.")


def tell_enqueued(error: Exception, done: int, calls: int) -> None:
    """Note on an error how many of the calls were enqueued before, if any were."""
    if done:
        error.add_note(f"The first {done} of {calls} jobs were enqueued.")


def new_id() -> str:
    """A random UUID of version 4, as Celery's are, in a third of the time."""
    digits = os.urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


def _tell_receivers(chunk: Chunk) -> None:
    template = chunk.template
    for (args, kwargs), message in zip(chunk.calls, chunk.messages, strict=True):
        signals.after_task_publish.send(
            sender=template.place.task,
            body=(args, kwargs, template.embedded),
            headers=template.headers(message),
            exchange="",
            routing_key=template.queue,
        )


def _server(conf: Any) -> str:
    """The URL of the broker, if it says all there is to know."""
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
