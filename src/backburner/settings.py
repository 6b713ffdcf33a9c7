"""The settings, and the only place that reads the environment.

One ``.env`` configures cache and queue: say where the server is (``REDIS_*``), and the cache and Celery follow from it
unless they are told otherwise. Every field can be set by an environment variable of the same name in capitals.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from ipaddress import IPv6Address
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    Secret,
    SecretBytes,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from backburner import refusal
from backburner.errors import ConfigError
from backburner.redis.url import SERVER_SCHEMES, ServerURL, mask_password
from backburner.size import byte_count

refusal.install()  # here, since an application often builds its settings before it imports anything of the queue

_NAME = re.compile(r"[^\s:/?#@\[\]]+")


def _host(host: str) -> str:
    if not _NAME.fullmatch(host):
        try:
            IPv6Address(host)
        except ValueError:
            raise ValueError(
                "only the name or the address; the port goes into REDIS_PORT, a URL into REDIS_URL"
            ) from None
    return host


def _server_url(url: str) -> str:
    ServerURL.parse(url)
    return url


def _cache_url(url: str) -> str:
    return url if url.startswith("memory://") else _server_url(url)


def _celery_url(url: str) -> str:
    scheme, separator, _ = url.partition("://")
    if not separator:
        raise ValueError("it must be a URL such as redis://localhost:6379/0")
    return _server_url(url) if scheme in SERVER_SCHEMES else url


_CENTURY = 36_525 * 86_400
_HOUR = 3600

_Host = Annotated[str, AfterValidator(_host)]
_Server = Annotated[str, AfterValidator(_server_url)]
_CacheStore = Annotated[str, AfterValidator(_cache_url)]
_Bytes = Annotated[int, BeforeValidator(byte_count)]
_Seconds = Annotated[float, Field(gt=0, le=_CENTURY, allow_inf_nan=False)]
_Patience = Annotated[float, Field(gt=0, le=_HOUR, allow_inf_nan=False)]
_Celery = Annotated[str, AfterValidator(_celery_url)]


class Settings(BaseSettings):
    """What Backburner needs to know. Build it without arguments to read the environment and ``.env``.

    Values given to the constructor win over the environment, which wins over ``.env``. A variable that is set to
    nothing counts as not set. Subclass it to add your own settings.

    Raises:
        ConfigError: a value is wrong. The message names each variable, its value (secrets masked) and what is right.
            Or ``.env`` cannot be read, or there is no setting of that name.
    """

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,  # pydantic would print passwords
        validate_default=False,
    )

    redis_host: _Host = Field(default="localhost", description="Name or address of the Redis or Valkey server")
    redis_port: int = Field(default=6379, ge=1, le=65535, description="Its port")
    redis_db: int = Field(default=0, ge=0, description="Its database")
    redis_username: str | None = Field(default=None, description="Its user, where it has access control lists")
    redis_password: SecretStr | None = Field(default=None, description="Its password, if it asks for one")
    redis_url: _Server = Field(default="", description="All of the above in one URL; wins over them")

    cache_url: _CacheStore = Field(
        default="",
        description="Where the cache lives: memory://?policy=lru&max_items=10000&max_bytes=64MB, or a server",
    )
    cache_prefix: str = Field(
        default="cache:", min_length=1, description="Put before every key; flush() removes these and no others"
    )
    cache_default_ttl: _Seconds = Field(
        default=3600, description="Seconds that an entry lives when nothing else is said"
    )
    cache_serializer: Literal["json", "pickle"] = Field(default="json", description="How values become bytes")
    cache_signing_key: SecretStr | None = Field(
        default=None, description="Signs pickles; needed for CACHE_SERIALIZER=pickle"
    )
    cache_compression: Literal["auto", "zstd", "none"] = Field(
        default="auto", description="Of large values on the server; auto: zstd if the package zstandard is installed"
    )
    cache_max_value_bytes: int = Field(
        default=16 * 1024 * 1024,
        gt=0,
        description="Larger values are not cached; 16 MiB take half of the timeout at 1 Gbit/s",
    )
    cache_l1: bool = Field(
        default=True, description="Keep copies in each process, dropped when the server says that they changed"
    )
    cache_l1_items: int = Field(default=10_000, gt=0, description="Copies kept in each process at most")
    cache_l1_bytes: _Bytes = Field(
        default=64_000_000, description="What they may take of its memory, such as 64MB or 64MiB"
    )
    cache_l1_policy: Literal["lru", "s3fifo", "lfu", "ttl"] = Field(
        default="s3fifo", description="Which copies make room"
    )
    cache_timeout: _Patience = Field(
        default=0.25, description="Seconds that one cache operation may cost when the server is ill"
    )

    celery_broker_url: _Celery = Field(default="", description="Where jobs wait; any broker of Celery's")
    celery_result_backend: _Celery = Field(
        default="", description="Where results are kept; any result backend of Celery's"
    )
    celery_publish_timeout: _Patience = Field(
        default=1.0, description="Seconds that enqueueing may take before PublishError"
    )
    celery_publish_replicas: int = Field(
        default=0, ge=0, description="Replicas of the server that must have a job before it counts as enqueued"
    )
    celery_result_expires: _Seconds = Field(default=86_400, description="Seconds that a finished job's result is kept")

    database_url: str = Field(
        default="sqlite:///.backburner/app.db", description="The application's database, as SQLAlchemy writes it"
    )
    smtp_url: str = Field(default="smtp://localhost:1025", pattern=r"^smtps?://", description="Where mail is handed in")

    def __init__(self, **values: Any) -> None:
        self._refuse_unknown(values)
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_explain(error, type(self))) from None
        except SettingsError as error:  # a setting of a subclass that is written as JSON, and is none
            raise ConfigError(f"{error}: it is written as JSON") from None
        except OSError as error:
            raise ConfigError(f"{error.filename} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:  # it quotes what may be a part of a password
            file = values.get("_env_file", self.model_config.get("env_file"))
            raise ConfigError(f"{file} cannot be read: it is not UTF-8; save it as that") from None

    @classmethod
    def _refuse_unknown(cls, values: Iterable[str]) -> None:
        """Other programs' variables are ignored. An argument is meant for these settings."""
        fields = cls.model_fields
        aliased = any(field.validation_alias for field in fields.values())
        if aliased or cls.model_config.get("extra") != "ignore":  # what a subclass takes is its own affair
            return
        for name in values:
            if name.lower() not in fields and not name.startswith("_"):  # such are options of pydantic-settings
                meant = get_close_matches(name.lower(), fields, 1)
                raise ConfigError(f"there is no setting {name!r}{f'; do you mean {meant[0]!r}?' if meant else ''}")

    @model_validator(mode="after")
    def _derive(self) -> Self:
        server = self.redis_url or self._server_from_parts().redis_url
        try:
            celery = ServerURL.parse(server).celery_url
        except ConfigError:  # raised again by who wants a Celery
            celery = server
        followers = {
            "redis_url": server,
            "cache_url": server,
            "celery_broker_url": celery,
            "celery_result_backend": celery,
        }
        for name, value in followers.items():
            if not getattr(self, name):
                # The model is frozen for its users; here it is still being made.
                self.__dict__[name] = value
        return self

    def _server_from_parts(self) -> ServerURL:
        return ServerURL(
            host=self.redis_host,
            port=self.redis_port,
            database=self.redis_db,
            username=self.redis_username,
            password=self.redis_password.get_secret_value() if self.redis_password else None,
        )

    @property
    def names_a_server(self) -> bool:
        """Whether anybody said where the server is, or the default (localhost:6379) is only assumed."""
        return not self.model_fields_set.isdisjoint({"redis_url", "redis_host"})

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, mask_password(value) if isinstance(value, str) else value


def _explain(error: ValidationError, settings: type[Settings]) -> str:
    """One line for each wrong variable: its name, its value unless secret, what is wrong and what it is for."""
    lines = []
    for problem in error.errors(include_url=False):
        message = problem["msg"].removeprefix("Value error, ")
        if not problem["loc"]:  # of all settings together: its input is every value, secrets among them
            lines.append(message)
            continue
        name = str(problem["loc"][0])
        field = next(
            (each for own, each in settings.model_fields.items() if name in (own, each.validation_alias)), None
        )
        what = f" ({field.description[0].lower()}{field.description[1:]})" if field and field.description else ""
        lines.append(f"{name.upper()}={_shown(name, field, problem['input'])}: {message}{what}")
    return "\n".join(lines)


def _shown(name: str, field: FieldInfo | None, value: object) -> str:
    if field is None or _is_secret(name, field):
        return "***"
    return repr(mask_password(value) if isinstance(value, str) else value)


def _is_secret(name: str, field: FieldInfo) -> bool:
    kinds = (field.annotation, *get_args(field.annotation))
    return any(word in name.lower() for word in ("password", "key", "secret", "token")) or any(
        isinstance(kind, type) and issubclass(kind, Secret | SecretBytes | SecretStr) for kind in kinds
    )
