"""One .env configures cache and queue; a wrong value is explained and no secret is shown."""

from pathlib import Path

import pytest
from pydantic import AliasChoices, Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from backburner import Cache, Settings
from backburner.errors import ConfigError
from backburner.redis.url import ServerURL
from tests.guide import CELERY, SERVER_AND_CACHE


def test_the_guides_env_file_loads_as_printed() -> None:
    Path(".env").write_text(f"{SERVER_AND_CACHE}\n{CELERY}")
    settings = Settings()
    assert (settings.redis_host, settings.redis_port, settings.redis_db) == ("localhost", 6379, 0)
    assert settings.redis_password is None
    assert (settings.cache_prefix, settings.cache_default_ttl, settings.cache_serializer) == ("cache:", 3600, "json")
    assert settings.redis_url == settings.cache_url == "redis://localhost:6379/0"
    assert settings.celery_broker_url == settings.celery_result_backend == "redis://localhost:6379/0"


def test_without_any_setting_the_defaults_of_the_guide_count() -> None:
    settings = Settings()
    assert settings.redis_url == "redis://localhost:6379/0"
    assert settings.celery_broker_url == settings.celery_result_backend == "redis://localhost:6379/0"
    assert (settings.cache_prefix, settings.cache_default_ttl, settings.cache_serializer) == ("cache:", 3600, "json")
    assert not settings.names_a_server


def test_cache_and_celery_follow_the_parts_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HOST": "cache.internal", "PORT": "6380", "DB": "2", "PASSWORD": "p@ss/w:rd"}.items():
        monkeypatch.setenv(f"REDIS_{name}", value)
    settings = Settings()
    url = "redis://:p%40ss%2Fw%3Ard@cache.internal:6380/2"
    assert settings.redis_url == settings.cache_url == settings.celery_broker_url == url
    assert settings.celery_result_backend == url
    assert settings.names_a_server


def test_a_url_wins_over_the_parts_and_celery_gets_its_own_dialect() -> None:
    settings = Settings(redis_url="unix:///run/valkey.sock?db=3", redis_host="ignored")
    assert settings.cache_url == "unix:///run/valkey.sock?db=3"
    assert settings.celery_broker_url == "redis+socket:///run/valkey.sock?virtual_host=3"


def test_what_is_said_of_celery_wins_over_what_follows() -> None:
    settings = Settings(redis_url="valkey://one", celery_broker_url="amqp://guest@rabbit//")
    assert settings.celery_broker_url == "amqp://guest@rabbit//"
    assert settings.celery_result_backend == "redis://one:6379/0"


def test_the_environment_wins_over_the_file_and_arguments_win_over_both(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("REDIS_PORT=1\nCACHE_PREFIX=file:\nCACHE_TIMEOUT=3\n")
    monkeypatch.setenv("REDIS_PORT", "2")
    monkeypatch.setenv("CACHE_PREFIX", "environment:")
    settings = Settings(redis_port=4)
    assert (settings.redis_port, settings.cache_prefix, settings.cache_timeout) == (4, "environment:", 3)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("REDIS_PORT", "banana", "valid integer"),
        ("REDIS_PORT", "70000", "less than or equal to 65535"),
        ("REDIS_HOST", "localhost:6379", "the port goes into REDIS_PORT"),
        ("REDIS_HOST", "redis://localhost", "a URL into REDIS_URL"),
        ("REDIS_HOST", "[::1]", "only the name or the address"),
        ("REDIS_DB", "-1", "greater than or equal to 0"),
        ("REDIS_URL", "http://localhost", "redis://localhost:6379/0"),
        ("REDIS_URL", "redis://localhost/books", "must be a number"),
        ("CACHE_URL", "file:///tmp", "redis://localhost:6379/0"),
        ("CACHE_DEFAULT_TTL", "0", "greater than 0"),
        ("CACHE_DEFAULT_TTL", "1e300", "less than or equal to 3155760000"),
        ("CACHE_TIMEOUT", "inf", "finite number"),
        ("CACHE_TIMEOUT", "1e10", "less than or equal to 3600"),
        ("CELERY_PUBLISH_TIMEOUT", "nan", "finite number"),
        ("CELERY_RESULT_EXPIRES", "inf", "finite number"),
        ("CACHE_SERIALIZER", "xml", "'json' or 'pickle'"),
        ("CELERY_BROKER_URL", "localhost:6379", "must be a URL"),
        ("CELERY_PUBLISH_TIMEOUT", "soon", "valid number"),
        ("SMTP_URL", "localhost", "smtps?://"),
    ],
)
def test_a_wrong_value_names_the_variable_the_value_and_what_is_right(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        Settings()
    assert f"{name}={value!r}" in str(caught.value)
    assert says in str(caught.value)


def test_all_wrong_values_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Settings(redis_port="x", cache_serializer="y")
    assert "REDIS_PORT" in str(caught.value)
    assert "CACHE_SERIALIZER" in str(caught.value)


def test_no_secret_is_shown_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        redis_password="hunter2",
        redis_url="redis://user:hunter2@host",
        cache_signing_key="hunter2hunter2hunter2",
        celery_broker_url="amqp://user:hunter2@rabbit",
        database_url="postgresql://user:hunter2@db/books",
        smtp_url="smtp://user:hunter2@mail",
    )
    assert "hunter2" not in repr(settings) + str(settings)
    assert "hunter2" not in repr(Cache.from_settings(settings))
    for name, value in {"REDIS_URL": "redis://user:hunter2@host/x", "CACHE_URL": "nothing://a:hunter2@b"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        Settings(redis_password=["hunter2"])
    assert "hunter2" not in str(caught.value)
    assert "***" in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_file_that_cannot_be_read_is_named_and_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_bytes("REDIS_PASSWORD=caf\xe9".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"^\.env cannot be read: it is not UTF-8; save it as that$") as caught:
        Settings()
    assert caught.value.__suppress_context__

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", ".env")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ConfigError, match=r"^\.env cannot be read: Permission denied$"):
        Settings()


def test_a_setting_of_a_subclass_that_is_no_json_is_told_without_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    class Several(Settings):
        tokens: list[str]

    monkeypatch.setenv("TOKENS", "hunter2,hunter2")
    with pytest.raises(ConfigError, match=r"tokens.*: it is written as JSON") as caught:
        Several()
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_what_a_subclass_declares_a_secret_is_one_whatever_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shop(Settings):
        stripe: SecretStr = Field(min_length=8)
        smtp_pass: SecretStr | None = Field(default=None, min_length=8)
        pin: SecretStr = Field(validation_alias="SHOP_PIN", min_length=8)
        mail: str = Field(validation_alias=AliasChoices("SHOP_PASSWORD", "PASSWORD"), min_length=8)

    for name in ("STRIPE", "SMTP_PASS", "SHOP_PIN", "SHOP_PASSWORD"):
        monkeypatch.setenv(name, "hunter2")
    with pytest.raises(ConfigError) as caught:
        Shop()
    assert "hunter2" not in str(caught.value)
    told = [line.partition(":")[0] for line in str(caught.value).splitlines()]
    assert told == ["STRIPE=***", "SMTP_PASS=***", "SHOP_PIN=***", "SHOP_PASSWORD=***"]


def test_what_is_wrong_with_settings_together_is_told_without_any_of_them() -> None:
    class Paired(Settings):
        @model_validator(mode="after")
        def check(self) -> "Paired":
            raise ValueError("write both")

    Path(".env").write_text("FOREIGN_TOKEN=hunter2\nREDIS_PASSWORD=hunter2\n")
    with pytest.raises(ConfigError, match="write both") as caught:
        Paired()
    assert "hunter2" not in str(caught.value)


def test_a_cluster_may_be_the_only_server_where_there_are_no_jobs() -> None:
    settings = Settings(redis_url="redis+cluster://one,two")
    assert settings.cache_url == settings.redis_url


@pytest.mark.parametrize("host", ["valkey", "db.internal", "127.0.0.1", "::1", "fe80::1%eth0"])
def test_names_and_addresses_of_both_kinds_are_hosts(host: str) -> None:
    assert ServerURL.parse(Settings(redis_host=host).redis_url).host == host


def test_pickle_needs_a_signing_key() -> None:
    with pytest.raises(ConfigError, match="CACHE_SIGNING_KEY"):
        Cache.from_settings(Settings(cache_url="memory://", cache_serializer="pickle"))
    cache = Cache.from_settings(
        Settings(cache_url="memory://", cache_serializer="pickle", cache_signing_key="0123456789abcdef")
    )
    cache.put("key", {1, 2})
    assert cache.get("key") == {1, 2}


def test_an_argument_that_is_no_setting_is_told_with_what_is_meant() -> None:
    with pytest.raises(ConfigError, match="there is no setting 'redis_ulr'; do you mean 'redis_url'"):
        Settings(redis_ulr="redis://db.internal")  # type: ignore[call-arg]

    class Shop(Settings):
        model_config = SettingsConfigDict(extra="allow")

    class Named(Settings):
        pin: str = Field(default="", validation_alias=AliasChoices("SHOP_PIN", "PIN"))

    assert Shop(currency="EUR").model_extra == {"currency": "EUR"}  # type: ignore[call-arg]
    assert Named(PIN="1234", _env_file=None).pin == "1234"  # type: ignore[call-arg]


def test_a_cache_without_a_prefix_is_refused() -> None:
    with pytest.raises(ConfigError, match="prefix"):
        Cache("memory://", prefix="")


def test_settings_in_the_place_of_a_url_are_told_where_they_belong() -> None:
    with pytest.raises(ConfigError, match=r"not Settings; of settings: Cache\.from_settings\(settings\)"):
        Cache(Settings())  # type: ignore[arg-type]


@pytest.mark.parametrize("ttl", ["soon", 0, -1, "0s", True])
def test_a_cache_refuses_a_default_ttl_in_which_nothing_would_be_kept(ttl: object) -> None:
    with pytest.raises(ConfigError, match="default_ttl"):
        Cache("memory://", default_ttl=ttl)
