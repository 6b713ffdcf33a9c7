"""Server URLs: parsed once, then written in the dialect of redis-py, kombu or Celery.

People write ``valkey://``, redis-py wants ``redis://``, kombu ``redis+socket://`` where redis-py says ``unix://``, and
each has its own notation for Sentinel. This module knows them all and does no I/O.

    redis://[user[:password]@]host[:port][/db]        also valkey://
    rediss://…                                        TLS; also valkeys://
    unix:///path/to/socket[?db=n]                     also redis+socket://, redis+unix://, valkey+unix://
    redis+sentinel://[…@]host[:port],host…/master[/db]    also sentinel://, valkey+sentinel://; with TLS rediss+…
    redis+cluster://[…@]host[:port],host…             some nodes of a cluster, see `for_prefix`; also valkey+cluster://;
                                                      with TLS rediss+…
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from redis.connection import parse_url
from redis.crc import key_slot

from backburner.errors import ConfigError

_Server = TypeVar("_Server", bound="ServerURL")

REDIS_PORT = 6379
SENTINEL_PORT = 26379

_TCP = {"redis": False, "valkey": False, "rediss": True, "valkeys": True}
_UNIX = {"unix", "socket", "redis+socket", "redis+unix", "valkey+socket", "valkey+unix"}
_SENTINEL = {
    "sentinel": False,
    "redis+sentinel": False,
    "valkey+sentinel": False,
    "rediss+sentinel": True,
    "valkeys+sentinel": True,
}
_CLUSTER = {"redis+cluster": False, "valkey+cluster": False, "rediss+cluster": True, "valkeys+cluster": True}
SERVER_SCHEMES = frozenset({*_TCP, *_UNIX, *_SENTINEL, *_CLUSTER})
"""All schemes that mean a Redis or Valkey server."""

_SEPARATOR = re.compile(r";(?=[a-z+]+://)")  # a password may hold a semicolon too
_EXAMPLES = (
    "redis://localhost:6379/0, rediss://…, valkey://…, unix:///run/valkey.sock?db=0, "
    "redis+sentinel://host1,host2/mymaster/0 or redis+cluster://host1,host2"
)
_SECRET_OPTION = re.compile(r"(?<=[?&])([^=&]*(?:password|secret|token)[^=&]*)=[^&]*", re.IGNORECASE)
_OPTIONS = frozenset(
    {
        *("client_name", "protocol", "max_connections", "health_check_interval"),
        *("socket_timeout", "socket_connect_timeout", "socket_keepalive", "socket_read_size", "retry_on_timeout"),
    }
)
TLS_FILES = frozenset({"ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile"})
_TLS_OPTIONS = TLS_FILES | {
    *("ssl_cert_reqs", "ssl_ca_data", "ssl_check_hostname", "ssl_ciphers", "ssl_min_version", "ssl_password"),
}
_CERTIFICATES = ("required", "optional", "none")
_HASH_TAG = re.compile(r"[^{]*\{([^}]+)\}")


def mask_password(url: str) -> str:
    """The URL, or Celery's list of URLs, with secrets replaced by ``***``: fit for logs and messages."""
    return ";".join(_mask(one) for one in _SEPARATOR.split(url))


def for_prefix(url: str, prefix: str) -> str:
    """For a cluster, the URL of the node that serves the keys with a prefix. Other URLs stay as they are.

    Raises:
        ConfigError: the prefix has no hash tag, so the cluster would spread its keys over several nodes.
    """
    if url.partition("://")[0].lower() not in _CLUSTER:
        return url
    tag = _HASH_TAG.match(prefix)
    if tag is None:
        name = prefix.rstrip(":")
        raise ConfigError(
            f"the prefix {prefix!r} has no hash tag: in a cluster, one keeps all of a cache's keys on one node, where "
            f"they can be changed together. Write the prefix '{{{name}}}:'"
        )
    return f"{url}{'&' if '?' in url else '?'}slot={key_slot(tag[1].encode())}"


def _mask(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    rest = _SECRET_OPTION.sub(r"\1=***", rest)
    credentials, at, host = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    if colon:
        rest = f"{user}:***@{host}"
    elif at and "/" not in credentials:  # in a path it is part of a name, as of a database's file
        rest = f"***@{host}"
    return f"{scheme}{separator}{rest}"


@dataclass(frozen=True, slots=True, repr=False)
class ServerURL:
    """Where a server is, and how to log in."""

    host: str = "localhost"
    port: int = REDIS_PORT
    database: int = 0
    username: str | None = None
    password: str | None = None
    tls: bool = False
    socket_path: str | None = None
    """Path of a Unix socket; host and port are then unused."""
    sentinels: tuple[tuple[str, int], ...] = ()
    """Addresses of Sentinels; host and port are then unused, and `master` names what to ask them for."""
    master: str | None = None
    nodes: tuple[tuple[str, int], ...] = ()
    """Addresses of some nodes of a cluster; host and port are then unused."""
    slot: int | None = None
    """A slot of the cluster; the node that serves it is the server."""
    options: tuple[tuple[str, str], ...] = ()
    """The rest of the query string: options of redis-py's connections (``ssl_ca_certs``, ``protocol``, …)."""

    def __repr__(self) -> str:
        return f"ServerURL({self.masked!r})"

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read a URL in any of the dialects above.

        Raises:
            ConfigError: the scheme is unknown or a part is invalid. The message never holds the password.
        """
        scheme = url.partition("://")[0].lower() if "://" in url else ""
        if scheme not in SERVER_SCHEMES:
            raise ConfigError(f"{mask_password(url)!r} is not a server URL: write {_EXAMPLES}")
        try:
            server = _with_login(cls._parse(scheme, _split(url)))
            _ = server.redis_options
        except ValueError as error:
            raise ConfigError(
                f"{mask_password(url)!r} is not a usable server URL: {error}. Write {_EXAMPLES}"
            ) from None
        return server

    @classmethod
    def _parse(cls, scheme: str, parts: SplitResult) -> Self:
        if scheme in _TCP:
            return cls._parse_tcp(parts, tls=_TCP[scheme])
        if scheme in _UNIX:
            return cls._parse_unix(parts)
        if scheme in _SENTINEL:
            return cls._parse_sentinel(parts, tls=_SENTINEL[scheme])
        return cls._parse_cluster(parts, tls=_CLUSTER[scheme])

    @classmethod
    def _parse_tcp(cls, parts: SplitResult, *, tls: bool) -> Self:
        query = _query(parts)
        return cls(
            host=unquote(parts.hostname or "localhost"),
            port=parts.port or REDIS_PORT,
            database=_database(query.pop("db", "") or query.pop("virtual_host", "") or parts.path.strip("/")),
            username=_text(parts.username),
            password=_text(parts.password),
            tls=tls,
            options=tuple(query.items()),
        )

    @classmethod
    def _parse_unix(cls, parts: SplitResult) -> Self:
        query = _query(parts)
        path = unquote(parts.path)
        if not path or path == "/":
            raise ValueError("it names no socket file; a Unix socket has three slashes, unix:///run/valkey.sock")
        return cls(
            database=_database(query.pop("db", "") or query.pop("virtual_host", "")),
            username=_text(parts.username),
            password=_text(parts.password),
            socket_path=path,
            options=tuple(query.items()),
        )

    @classmethod
    def _parse_sentinel(cls, parts: SplitResult, *, tls: bool) -> Self:
        query = _query(parts)
        username, password, hosts = _authority(parts.netloc, SENTINEL_PORT)
        master, _, database = parts.path.strip("/").partition("/")
        master = query.pop("master_name", "") or query.pop("master", "") or unquote(master)
        if not master:
            raise ValueError("it names no master; write redis+sentinel://host1,host2/mymaster/0")
        return cls(
            database=_database(query.pop("db", "") or database),
            username=username,
            password=password,
            tls=tls,
            sentinels=hosts,
            master=master,
            options=tuple(query.items()),
        )

    @classmethod
    def _parse_cluster(cls, parts: SplitResult, *, tls: bool) -> Self:
        query = _query(parts)
        username, password, hosts = _authority(parts.netloc, REDIS_PORT)
        if not hosts:
            raise ValueError("it names no node; write redis+cluster://host1,host2")
        if _database(query.pop("db", "") or parts.path.strip("/")):
            raise ValueError("a cluster has no database but 0")
        slot = query.pop("slot", None)
        return cls(
            username=username,
            password=password,
            tls=tls,
            nodes=hosts,
            slot=None if slot is None else int(slot),
            options=tuple(query.items()),
        )

    @property
    def redis_options(self) -> dict[str, Any]:
        """The options as redis-py takes them: numbers are numbers.

        Raises:
            ValueError: there is no such option, or its value is invalid.
        """
        for name, value in self.options:
            if name == "ssl_cert_reqs" and value not in _CERTIFICATES:
                raise ValueError(f"ssl_cert_reqs is {', '.join(_CERTIFICATES)}")
            if name in _TLS_OPTIONS and not self.tls:
                raise ValueError(f"the option {name!r} is for TLS, with rediss://")
            if name not in _OPTIONS | _TLS_OPTIONS:
                raise ValueError(f"there is no option {name!r}; there are {', '.join(sorted(_OPTIONS | _TLS_OPTIONS))}")
        read: Callable[[str], dict[str, Any]] = parse_url  # redis-py has no types for it
        return read(f"redis://?{urlencode(self.options)}")

    @property
    def redis_url(self) -> str:
        """For redis-py: ``redis://``, ``rediss://``, ``unix://``. Sentinels and clusters have no URL there."""
        return self._written(dict(self.options), unix="unix", database="db")

    @property
    def celery_url(self) -> str:
        """For Celery, as a setting. Sentinel also needs `celery_options`, and a broker `broker_url`.

        Raises:
            ConfigError: it is a cluster, which Celery cannot use, or Sentinels with TLS, which its URLs cannot express.
        """
        if self.sentinels and self.tls:
            raise ConfigError(
                f"Celery does not know from a URL that Sentinels want TLS ({self.masked}): set CELERY_BROKER_URL and "
                "CELERY_RESULT_BACKEND to sentinel://…, and broker_use_ssl, redis_backend_use_ssl and master_name as "
                "it documents them"
            )
        if self.nodes:
            raise ConfigError(
                f"Celery cannot use a cluster ({self.masked}): set CACHE_URL to the cluster, and REDIS_URL to a server "
                "of its own"
            )
        if self.sentinels:
            hosts = (f"sentinel://{self._credentials}{host}:{port}/{self.database}" for host, port in self.sentinels)
            return ";".join(hosts)
        query = dict(self.options)
        if self.tls:
            # Celery refuses a TLS URL that leaves this open, and does not verify unless told to.
            query.setdefault("ssl_cert_reqs", "required")
        return self._written(query, unix="redis+socket", database="virtual_host")

    def _written(self, query: dict[str, str], *, unix: str, database: str) -> str:
        """In the dialect that has these names for the scheme of a socket, and for the option with its database."""
        if self.socket_path is not None:
            query[database] = str(self.database)
            return f"{unix}://{self._credentials}{quote(self.socket_path)}?{urlencode(query)}"
        tail = f"?{urlencode(query)}" if query else ""
        return f"{'rediss' if self.tls else 'redis'}://{self._credentials}{self._authority}/{self.database}{tail}"

    @property
    def broker_url(self) -> str:
        """`celery_url` for kombu, which accepts no options in a URL except those of TLS."""
        return replace(self, options=tuple(each for each in self.options if each[0] in _TLS_OPTIONS)).celery_url

    @property
    def celery_options(self) -> dict[str, object]:
        """Transport options that a Celery URL cannot carry."""
        return {"master_name": self.master} if self.sentinels and not self.tls else {}

    @property
    def masked(self) -> str:
        """For people and logs: no password."""
        if self.sentinels:
            hosts = ",".join(f"{host}:{port}" for host, port in self.sentinels)
            return f"{'rediss' if self.tls else 'redis'}+sentinel://{hosts}/{self.master}/{self.database}"
        if self.nodes:
            hosts = ",".join(f"{host}:{port}" for host, port in self.nodes)
            return f"{'rediss' if self.tls else 'redis'}+cluster://{hosts}"
        return mask_password(self.redis_url)

    @property
    def _authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def _credentials(self) -> str:
        if self.password is None and self.username is None:
            return ""
        return f"{quote(self.username or '', safe='')}:{quote(self.password or '', safe='')}@"


def _with_login(server: _Server) -> _Server:
    """The user and password may be given as options, too."""
    options = dict(server.options)
    username, password = options.pop("username", None), options.pop("password", None)
    return replace(
        server,
        username=server.username or username,
        password=server.password or password,
        options=tuple(options.items()),
    )


def _split(url: str) -> SplitResult:
    """Split a URL, refusing an unencoded password whose tail would pass for a port, a database or a host."""
    unencoded = ValueError("a password with / ? # [ or ] in it must be percent-encoded, or put into REDIS_PASSWORD")
    try:
        parts = urlsplit(url)
    except ValueError:  # about brackets; it quotes what is between them
        if "@" in url:
            raise unencoded from None
        raise
    beside = parts.netloc and "@" not in parts.netloc and "@" in parts.path + parts.query.partition("=")[0]
    if beside or parts.fragment:
        raise unencoded
    return parts


def _query(parts: SplitResult) -> dict[str, str]:
    query = dict(parse_qsl(parts.query))
    if "ssl_cert_reqs" in query:  # kombu and Celery know Python's names for it, too
        query["ssl_cert_reqs"] = query["ssl_cert_reqs"].removeprefix("CERT_").lower()
    return query


def _text(part: str | None) -> str | None:
    return unquote(part) if part else None


def _database(text: str) -> int:
    try:
        number = int(text or 0)
    except ValueError:
        number = -1
    if number < 0:
        raise ValueError(f"the database must be a number such as 0, not {text!r}")
    return number


def _authority(netloc: str, port: int) -> tuple[str | None, str | None, tuple[tuple[str, int], ...]]:
    """User, password and addresses. Several hosts with ports are no valid authority for urlsplit().port."""
    credentials, _, hosts = netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    return _text(username), _text(password), tuple(_address(host, port) for host in hosts.split(",") if host)


def _address(text: str, port: int) -> tuple[str, int]:
    host, separator, given = text.rpartition(":")
    if not separator:
        return text, port
    if not given.isdigit():
        raise ValueError(f"the address {text!r} has no usable port")
    return host, int(given)
