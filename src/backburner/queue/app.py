"""The Celery application: stock Celery with our defaults, our producer and truthful results.

Everything Celery documents works. This module only assembles the parts; each part has its own module.
"""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

import celery
from celery.app import backends
from celery.fixups.django import DjangoFixup
from kombu import pools

from backburner.errors import ConfigError
from backburner.queue import amqp, cancellation, coroutines, dependencies, ending, health, pool, reload
from backburner.queue.announcing import Announced
from backburner.queue.arguments import Arguments, positional_checker
from backburner.queue.backend import OVERRIDES
from backburner.queue.canvas import record_later
from backburner.queue.deadline import deadline
from backburner.queue.decoration import BoundTaskDecorator, TaskDecorator
from backburner.queue.defaults import READ_OPTIONS, WRITE_OPTIONS, defaults, results_kept, servers
from backburner.queue.failed import FailedJobs
from backburner.queue.hearing import Hearing
from backburner.queue.lifespan import Lifespan, Lifespans, Living
from backburner.queue.limits import Limited
from backburner.queue.options import check
from backburner.queue.pool import bridge
from backburner.queue.pool.caught import Catching
from backburner.queue.pool.serving import Serving
from backburner.queue.producer import Producer
from backburner.queue.publishing import publishing
from backburner.queue.result import Job
from backburner.queue.scaling import Scaling
from backburner.queue.servers import celery_url, check_backend, check_broker, is_redis, shown
from backburner.queue.task import PING, Task, ping
from backburner.queue.transport.redis import by_ours, transport_for
from backburner.redis.url import mask_password
from backburner.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")

pool.register()

_RECONNECT = {"interval_start": 0.5, "interval_step": 0.5, "interval_max": 1.0}
"""Seconds between a worker's attempts to reach its broker."""
_PATIENCE = 10
"""How many times the usual budget a job gets that a worker tries again, or that beat sends: nobody waits for these, and
one that cannot be sent is lost."""
_PATIENT_POLICY = {"max_retries": 100, "interval_max": 0.5}
"""With pauses that grow to so many seconds, it does not end before the budget does."""


class Celery(celery.Celery):
    """A ``celery.Celery`` with settings.

    ``Celery("app", settings=settings)``, or ``Celery("app", broker="redis://…", backend="redis://…")`` as with Celery.
    Without either, ``Settings()`` reads the environment and ``.env``. Configuration by any of Celery's own means
    overrides the settings, and the defaults that `backburner.queue.defaults` lists with their reasons.
    ``default_pool="asyncio"`` selects its workers' pool, unless the configuration or the command line does.

    Raises:
        ConfigError: a setting or a server's URL is wrong.
    """

    amqp_cls = "backburner.queue.publishing:AMQP"
    control_cls = "backburner.queue.publishing:Control"
    task_cls = "backburner.queue.task:Task"

    def __init__(
        self, *args: Any, settings: Settings | None = None, default_pool: str | None = None, **kwargs: Any
    ) -> None:
        if args and isinstance(args[0], Settings):  # Celery would take them for its name
            raise ConfigError('settings are given by name: Celery("shop", settings=settings)')
        self.settings = settings or Settings()
        self._our_defaults = defaults(self.settings)  # here: the signal that configures Celery swallows errors
        self._default_pool = default_pool
        self._servers_from_settings = settings is not None or "broker" not in kwargs
        if self._servers_from_settings:
            check_broker(celery_url(self.settings.celery_broker_url)[0])
            check_backend(celery_url(self.settings.celery_result_backend)[0])
        super().__init__(*args, **kwargs)
        fixups: list[object] = self._fixups  # type: ignore[attr-defined]  # the stubs leave it out
        if self.task_cls == Celery.task_cls and any(isinstance(each, DjangoFixup) for each in fixups):
            self.task_cls = "backburner.queue.django:DjangoTask"  # which Celery does where the class is its own
        self.task(name=PING, shared=False)(ping)
        self.lifespans = Lifespans(self)
        self.dependency_overrides: dict[Callable[..., Any], Callable[..., Any]] = {}
        """For tests: what to call in place of a dependency, as in FastAPI."""
        self.steps["worker"].update((Living, Scaling))
        self.steps["consumer"].update((cancellation.Remembered, Announced, Limited, Serving, Catching, Hearing))
        ending.install()
        health.install(self)
        reload.install(self)

    def on_init(self) -> None:
        self.loader.override_backends = OVERRIDES
        self.on_after_configure.connect(self._apply_defaults, weak=False)
        self.on_after_finalize.connect(coroutines.map_coroutines, weak=False)

    def _apply_defaults(self, source: Any, **_: Any) -> None:
        # The last map holds Celery's own defaults. Its add_defaults would put ours before the user's
        # configuration.
        celerys = source.maps[-1]
        celerys.update(self._our_defaults)
        if self._default_pool is not None:
            celerys["worker_pool"] = self._default_pool
        if self._servers_from_settings and not source.get("broker_url"):
            celerys.update(servers(self.settings))
        source.__dict__["table"] = partial(shown, source.table)  # an assignment would be a setting

    def __reduce_keys__(self) -> dict[str, Any]:
        return super().__reduce_keys__() | {"settings": self.settings, "default_pool": self._default_pool}

    def bugreport(self) -> str:
        """What ``celery report`` prints: versions and the configuration, without passwords."""
        url = str(self.conf.result_backend)
        return str(super().bugreport()).replace(url, mask_password(url))

    def uses_utc_timezone(self) -> bool:
        """Whether the app's time zone is UTC. Celery asks for each message, and its own comparison is slow."""
        return self._is_in_utc

    @cached_property  # as `timezone` is in Celery
    def _is_in_utc(self) -> bool:
        return bool(super().uses_utc_timezone())

    def connection_for_read(self, url: Any = None, **options: Any) -> Any:
        """A connection that consumes. `url` may be anything that Celery or `ServerURL` understands."""
        connection = self._connect(url or self.conf.broker_read_url, READ_OPTIONS, options)
        # Celery's worker waits ever longer between attempts to reach its broker, up to half a minute.
        connection.ensure_connection = partial(connection.ensure_connection, **_RECONNECT)
        return connection

    def connection_for_write(self, url: Any = None, **options: Any) -> Any:
        """A connection for remote control and the like. `url` as above."""
        return self._connect(url or self.conf.broker_write_url, WRITE_OPTIONS, options, named=False)

    @property
    def pool(self) -> Any:
        """Connections for callers that bring none: remote control, purging."""
        if self._pool is None:  # type: ignore[has-type]  # the stubs leave these out
            self._ensure_after_fork()  # type: ignore[attr-defined]
            pools.set_limit(self.conf.broker_pool_limit)
            # Not made of `connection_for_write`: a pool copies its connection, and copies know only Celery's transport.
            self._pool = pools.connections[self._connect(self.conf.broker_write_url, WRITE_OPTIONS, {})]
        return self._pool

    def connection_for_publishing(self) -> Any:
        """A connection that tasks are published on."""
        url = self.conf.broker_write_url
        options = {} if self.conf.broker_transport else amqp.publishing(url)
        promises = {"job_record_expires": results_kept(self.conf), "replicas": self.settings.celery_publish_replicas}
        return self._connect(url, WRITE_OPTIONS | promises, options)

    def _connect(self, url: Any, defaults: dict[str, Any], options: dict[str, Any], *, named: bool = True) -> Any:
        # A Sentinel's master is named there, and must not be lost because the user sets another option.
        is_own = url == self.settings.celery_broker_url
        of_settings = servers(self.settings)["broker_transport_options"] if is_own else {}
        url, implied = celery_url(url, broker=True)
        check_broker(url)
        options["transport_options"] = {
            **(defaults if is_redis(url) else {}),
            **of_settings,
            **self.conf.broker_transport_options,
            **implied,
            **(options.get("transport_options") or {}),
        }
        if self.conf.broker_transport == "redis" and is_redis(url):
            options.setdefault("transport", url.partition(":")[0].partition("+")[0])
        elif self.conf.broker_transport in {None, "backburner"}:
            if not named and is_redis(url):
                # Flower and others read this connection's URL, and know only the names of Celery's transports.
                connection = super()._connection(url, **options)  # type: ignore[misc]  # the stubs leave it out
                connection.get_transport_cls = lambda: transport_for(url)
                # Celery's worker would try for ever to send a heartbeat, and not serve its event loop meanwhile. An
                # event that cannot be sent is kept.
                connection.ensure = partial(connection.ensure, max_retries=0)
                return connection
            url, arguments = by_ours(url)
            options = arguments | options
        return super()._connection(url, **options)  # type: ignore[misc]  # as above

    def _get_backend(self) -> Any:
        url, implied = celery_url(self.backend_cls or self.conf.result_backend)
        check_backend(url)
        if implied:
            self.conf.result_backend_transport_options = self.conf.result_backend_transport_options | implied
        found: Any = backends.by_url(url, self.loader)  # a class and a URL; the stubs are wrong
        backend, url = found
        return backend(app=self, url=url)

    if TYPE_CHECKING:

        @overload  # type: ignore[override]  # the stubs lose the function's types
        def task(self, fun: Callable[P, Coroutine[Any, Any, T]], /) -> Task[P, Coroutine[Any, Any, T], T]: ...
        @overload
        def task(self, fun: Callable[P, T], /) -> Task[P, T, T]: ...
        @overload
        def task(self, *, bind: Literal[True], **options: Any) -> BoundTaskDecorator: ...
        @overload
        def task(self, *, bind: Literal[False] = False, **options: Any) -> TaskDecorator: ...
        def task(self, *args: Any, **options: Any) -> Any: ...

    else:

        def task(self, *args, **options):
            """Celery's decorator, which also checks the function right away; see `dependencies.check`."""
            look_at = partial(dependencies.check, bound=options.get("bind", False), base=options.get("base"))
            if args and callable(args[0]):
                look_at(args[0])
                return super().task(*args, **options)
            decorate = super().task(*args, **options)

            def checked(function):
                look_at(function)
                return decorate(function)

            return checked

    @overload
    def lifespan(self, function: Callable[..., AsyncIterator[T]], /) -> Lifespan[T]: ...
    @overload
    def lifespan(self, function: Callable[..., AbstractAsyncContextManager[T]], /) -> Lifespan[T]: ...
    def lifespan(self, function: Callable[..., Any], /) -> Lifespan[Any]:
        """Have each process that runs tasks enter this async context manager before its first task, and exit it after
        its last one. The function, an ``async def`` that yields once, may take the app as its parameter.

        Returns:
            An object that, called in one of these processes, returns what was yielded.

        Raises:
            ConfigError: it is not such a function.
        """
        return self.lifespans.add(function)

    def publish_budget(self) -> AbstractContextManager[None]:
        """Share one ``CELERY_PUBLISH_TIMEOUT``, counted from now, among all jobs that the block enqueues."""
        return deadline(self.settings.celery_publish_timeout)

    def send_task(self, name: str, *args: Any, **options: Any) -> Any:
        """Enqueue a task by its name, with Celery's options.

        Raises:
            TypeError, ValueError: an option means nothing.
            PublishError: the broker did not take the job within ``CELERY_PUBLISH_TIMEOUT``.
        """
        check(options)
        if bridge.is_here():  # a job of the asyncio pool, which must not keep the loop waiting
            return bridge.in_thread(partial(self.send_task, name, *args, **options))
        budget = self.settings.celery_publish_timeout
        if options.get("retries") or (options.get("headers") or {}).get("celery_beat_task"):
            budget *= _PATIENCE
            options.setdefault("retry_policy", _PATIENT_POLICY)
        with publishing(self, name, budget):
            record_later(self, options)
            job: Any = super().send_task(name, *args, **options)
        job.enqueued, job.arguments = True, getattr(self.tasks.get(name), "arguments", None)
        return job

    @cached_property
    def producer(self) -> Producer:
        """The `Producer`, which enqueues the jobs that need nothing special."""
        return Producer(self)

    @property
    def failed_jobs(self) -> FailedJobs:
        """The jobs that workers could not do and that are kept on the broker's server, to be tried again or let go."""
        return FailedJobs(self)

    def close(self) -> None:
        """Close the connections of the producer, of the result backend and of Celery. They are reopened when needed,
        but callers that are waiting for a result at that moment are left waiting."""
        self.producer.close()
        backend: Any = self._backend  # type: ignore[attr-defined]  # the stubs leave it out
        if hasattr(backend, "listener"):
            backend.close()
        super().close()

    @cached_property
    def AsyncResult(self) -> type[Job[Any]]:  # noqa: N802  # Celery's name
        """`Job`, bound to this app."""
        return self.subclass_with_self(Job, name="Job", reverse="AsyncResult")

    def type_checker(self, fun: Callable[..., Any], bound: bool = False) -> Any:
        """Celery's check of a call's arguments, against the signature the user wrote."""
        view = coroutines.callers_view(fun)
        return positional_checker(view, bound=bound) or super().type_checker(view, bound)

    def _task_from_fun(  # type: ignore[override]  # all other options are passed on
        self, fun: Callable[..., Any], name: Any = None, base: Any = None, bind: bool = False, **options: Any
    ) -> Any:
        if base is not None and issubclass(self.Task, base):
            base = None  # the app's own base is a subclass of it
        elif base is not None and not issubclass(base, Task):
            base = type(base.__name__, (base, self.Task), {"abstract": True, "__module__": base.__module__})
        # Celery reads these when the task has been made, which is too late here.
        strict: bool = self.strict_typing  # type: ignore[attr-defined]  # the stubs leave it out
        said = (options.get("typing"), getattr(base or self.Task, "typing", None), strict)
        typed = bool(next(each for each in said if each is not None) and not options.get("pydantic"))
        if typed:
            # Celery's hook for converting the arguments of a call, whether pydantic is involved or not.
            arguments = Arguments(fun, bound=bind)
            options["arguments"] = arguments
            options["_dump_pydantic_arguments"] = staticmethod(arguments.encode)
        run = coroutines.runnable(fun, bind, typed=typed)
        return super()._task_from_fun(run, name=name, base=base, bind=bind, **options)
