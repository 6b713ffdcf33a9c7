"""How settings, arguments and Celery's own configuration become servers and defaults. No server is needed."""

import pickle
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import celery
import pytest
from celery import _state
from celery.contrib.django.task import DjangoTask

import backburner
from backburner.errors import ConfigError
from backburner.queue import Celery
from backburner.queue.task import Task
from backburner.settings import Settings


def build(**arguments: Any) -> Celery:
    return Celery("tests", set_as_current=False, **arguments)


def broker(app: Celery) -> str:
    connection = app.connection_for_write()
    return f"{connection.transport_cls}://{connection.hostname}:{connection.port}/{connection.virtual_host or 0}"


def test_the_app_is_a_celery_app_with_our_name_at_the_top() -> None:
    assert issubclass(backburner.Celery, celery.Celery)
    assert backburner.Celery is Celery


def test_the_servers_follow_from_the_settings() -> None:
    app = build(settings=Settings(redis_host="db.example", redis_port=7000, redis_db=3))
    assert broker(app) == "redis://db.example:7000/3"
    assert app.backend.as_uri() == "redis://db.example:7000/3"


def test_without_arguments_the_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "valkey://db.example/2")
    monkeypatch.setenv("CELERY_RESULT_EXPIRES", "60")
    app = build()
    assert broker(app) == "redis://db.example:6379/2"
    assert app.conf.result_expires == 60


def test_explicit_servers_are_taken_as_celery_takes_them() -> None:
    app = build(broker="redis://one", backend="redis://two/4")
    assert broker(app) == "redis://one:6379/0"
    assert app.backend.as_uri() == "redis://two:6379/4"
    assert type(build(broker="redis://one").backend).__name__ == "DisabledBackend"


def test_the_users_configuration_wins_over_our_defaults() -> None:
    app = build(settings=Settings(), task_acks_late=False)
    app.config_from_object(SimpleNamespace(worker_prefetch_multiplier=8, broker_url="redis://configured"))
    app.conf.update(timezone="Europe/Amsterdam")
    assert not app.conf.task_acks_late
    assert app.conf.worker_prefetch_multiplier == 8
    assert str(app.timezone) == "Europe/Amsterdam"
    assert broker(app) == "redis://configured:6379/0"
    assert app.conf.task_track_started, "the rest stays ours"


def test_a_namespace_as_django_projects_use_it_wins_too() -> None:
    app = build()
    app.config_from_object(
        SimpleNamespace(CELERY_BROKER_URL="redis://django", CELERY_TASK_ACKS_LATE=False), namespace="CELERY"
    )
    assert broker(app) == "redis://django:6379/0"
    assert not app.conf.task_acks_late
    assert app.conf.task_track_started


def test_only_json_is_accepted() -> None:
    assert build().conf.accept_content == ["json"]


@pytest.mark.parametrize(
    ("url", "uri"),
    [
        ("valkey://:pw@host:7000/2", "redis://:pw@host:7000/2"),
        ("unix:///run/valkey.sock?db=2", "redis+socket:///run/valkey.sock?virtual_host=2"),
        ("rediss://host", "rediss://host:6379/0"),
        ("redis+sentinel://one,two:7/shop/2", "sentinel://one:26379/2"),
    ],
)
def test_every_dialect_of_a_servers_url_is_understood(url: str, uri: str) -> None:
    app = build(broker=url, backend=url)
    assert app.connection_for_write().as_uri(include_password=True) == uri
    for connection in (app.connection_for_read(), app.connection_for_publishing()):
        assert connection.transport.__class__.__module__ == "backburner.queue.transport.transports"
    assert type(app.backend).__module__ == "backburner.queue.backend"


def test_sentinels_are_asked_for_their_master() -> None:
    app = build(settings=Settings(redis_url="redis+sentinel://:pw@one,two/shop/2"))
    for connection in (app.connection_for_read(), app.connection_for_publishing()):
        assert connection.transport_options["master_name"] == "shop"
        assert len(connection.alt) == 2
    pool = app.backend.client.connection_pool
    assert pool.service_name == "shop"


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2@one?protocol=3",
        "redis://one?password=hunter2",
        "valkey+unix://:hunter2@/run/valkey.sock",
        "redis+sentinel://:hunter2@one:26379,two:26379/shop/0",
    ],
)
def test_reports_show_servers_of_every_form_without_passwords(url: str) -> None:
    app = build(broker=url, backend=url)
    report = app.bugreport()
    masked = url.replace("hunter2", "***")
    assert f"broker_url: '{masked}'" in report
    assert "hunter2" not in report
    assert app.conf.table(with_defaults=True)["result_backend"] == masked
    assert app.conf.table(censored=False)["broker_url"] == url


@pytest.mark.parametrize(
    ("url", "says"), [("redis+cluster://one", "use a cluster"), ("rediss+sentinel://one/m", "Sentinels want TLS")]
)
def test_what_celery_cannot_use_is_said_where_an_app_would_use_it(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build(settings=Settings(redis_url=url))
    settings = Settings(redis_url=url, celery_broker_url="redis://two", celery_result_backend="redis://two")
    assert build(settings=settings).connection_for_publishing().hostname == "two"
    assert build(broker="redis://two", backend="redis://two", settings=None).conf.broker_url == "redis://two"


def test_tls_is_verified_unless_told_otherwise() -> None:
    app = build(broker="rediss://host", backend="rediss://host")
    assert app.connection_for_read().ssl["ssl_cert_reqs"].name == "CERT_REQUIRED"
    assert app.backend.connparams["ssl_cert_reqs"].name == "CERT_REQUIRED"


@pytest.mark.parametrize("url", ["amqp://guest:guest@host//", "memory://"])
def test_other_brokers_are_left_alone(url: str) -> None:
    app = build(broker=url, backend="cache+memory://")
    connection = app.connection_for_write()
    assert connection.transport_cls == url.partition(":")[0]
    assert "socket_timeout" not in connection.transport_options


def test_a_broker_that_keeps_no_records_leaves_states_to_celery() -> None:
    app = build(broker="memory://", backend="cache+memory://")
    assert app.AsyncResult("nobody-knows").state == "PENDING"
    assert app.AsyncResult("nobody-knows").snapshot().state == "PENDING"


def test_a_wrong_url_is_said_at_once() -> None:
    with pytest.raises(ConfigError, match="sentinel"):
        build(broker="redis+sentinel://host").connection_for_write()


def test_settings_in_the_place_of_the_name_are_refused_rather_than_not_seen() -> None:
    with pytest.raises(ConfigError, match=r"settings=settings"):
        Celery(Settings(redis_url="redis://elsewhere:6379/0"))


def test_a_broker_or_backend_that_celery_does_not_know_is_said_where_the_app_is_built() -> None:
    with pytest.raises(ConfigError, match=r"'foo://:\*\*\*@x': there is no broker 'foo'; there are .*amqp"):
        build(settings=Settings(celery_broker_url="foo://:secret@x"))
    with pytest.raises(ConfigError, match=r"there is no result backend 'foo'; there are .*db, .*redis"):
        build(settings=Settings(celery_result_backend="foo://x"))


def test_one_that_comes_by_another_way_is_said_where_it_is_first_used() -> None:
    app = build(broker="foo://x", backend="foo://x")
    for use in (app.connection_for_write, lambda: app.backend, lambda: app.send_task("task")):
        with pytest.raises(ConfigError, match="'foo'"):
            use()


@pytest.mark.parametrize(
    ("broker", "backend"),
    [
        ("sqs://", "rpc://"),
        ("amqp://one;amqp://two", "db+sqlite:///results.db"),
        ("kombu.transport.memory:Transport://", "celery.backends.rpc.RPCBackend://"),
    ],
)
def test_all_that_celery_knows_is_taken(broker: str, backend: str) -> None:
    assert build(settings=Settings(celery_broker_url=broker, celery_result_backend=backend))


def test_defaults_that_cannot_be_made_are_said_where_the_app_is_built() -> None:
    class Unbounded(Settings):
        celery_result_expires: float = float("inf")

    with pytest.raises(OverflowError, match="infinity"):
        build(settings=Unbounded())


def test_an_app_survives_pickling_as_spawned_workers_need() -> None:
    app = pickle.loads(pickle.dumps(build(settings=Settings(redis_url="redis://elsewhere:1/1"))))
    assert isinstance(app, Celery)
    assert broker(app) == "redis://elsewhere:1/1"


def test_a_base_class_of_celerys_own_gets_our_verbs() -> None:
    class Audited(celery.Task):
        max_retries = 7

    app = build()

    @app.task(base=Audited, shared=False)
    def audited() -> None: ...

    assert audited.max_retries == 7
    assert audited.adelay
    assert isinstance(audited._get_current_object(), Audited)


def test_shared_tasks_get_our_verbs() -> None:
    @celery.shared_task(name="tests.shared")
    async def shared(number: int) -> int:
        return number

    assert build().tasks["tests.shared"].adelay


def test_in_a_django_project_tasks_can_be_enqueued_on_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    committed: list[Callable[[], Any]] = []
    monkeypatch.setattr("django.db.transaction.on_commit", committed.append)
    monkeypatch.setattr(sys, "path", sys.path[:])  # to which Celery adds the project's folder
    monkeypatch.setattr(_state, "default_app", _state.default_app)
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "shop.settings")
    app = build()
    app.conf.task_always_eager = True
    ran: list[int] = []

    def run(number: int) -> None:
        ran.append(number)

    class Audited(DjangoTask):
        abstract = True

    for number, base in enumerate((None, celery.Task, DjangoTask, Audited)):
        task: Any = app.task(name=f"tests.committed.{number}", shared=False, base=base)(run)
        assert task.adelay
        task.delay_on_commit(number)
    assert not ran
    for enqueue in committed:
        enqueue()
    assert ran == [0, 1, 2, 3]
    assert pickle.loads(pickle.dumps(app)).Task.delay_on_commit
    assert not hasattr(build(task_cls=Task).Task, "delay_on_commit"), "another one was asked for"
