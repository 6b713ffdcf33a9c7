"""Translates the URLs of broker and result backend into Celery's dialect.

Celery reads URLs from its arguments, its configuration, the environment and the command line. They are
translated where a connection is made, so it does not matter where a URL came from. URLs of other
brokers (``amqp://``, ``sqs://``, …) are left as they are.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from celery.app.backends import BACKEND_ALIASES
from celery.app.utils import filter_hidden_settings
from celery.utils.imports import load_extension_class_names
from kombu.transport import TRANSPORT_ALIASES

from backburner.errors import ConfigError
from backburner.redis.url import SERVER_SCHEMES, ServerURL, mask_password

_CELERYS_SENTINEL = re.compile(r"sentinel://[^/]*(/\d*)?(\?.*)?$")
"""``sentinel://host:26379/0``: Celery's own dialect, which names the master in the transport options."""

_CLASS: Final = re.compile(r"[.:]")

_URLS: Final = frozenset({"broker_url", "broker_read_url", "broker_write_url", "result_backend"})
"""Settings that hold a server's URL, or a list of them."""


def celery_url(url: Any, *, broker: bool = False) -> tuple[Any, dict[str, object]]:
    """The URL (or list of URLs) as Celery understands it, or its `broker`, and the transport options it implies.

    Raises:
        ConfigError: the URL is for Redis or Valkey, and invalid.
    """
    if isinstance(url, str):
        parts = [_one(part, broker=broker) for part in url.split(";")]
        return ";".join(part for part, _ in parts), _merged(options for _, options in parts)
    if isinstance(url, list | tuple):
        parts = [celery_url(part, broker=broker) for part in url]
        return [part for part, _ in parts], _merged(options for _, options in parts)
    return url, {}


def check_broker(url: Any) -> None:
    """Refuse a translated URL, or list of URLs, of a broker that kombu does not know.

    Raises:
        ConfigError: kombu does not know the broker.
    """
    _check_schemes("broker", url, TRANSPORT_ALIASES)


def check_backend(url: Any) -> None:
    """Refuse a translated URL of a result backend that Celery does not know, as `check_broker`."""
    _check_schemes("result backend", url, BACKEND_ALIASES, extensions="celery.result_backends")


def is_redis(url: Any) -> bool:
    """Whether a translated URL is of a Redis or Valkey server."""
    return isinstance(url, str) and url.startswith(("redis://", "rediss://", "redis+socket://", "sentinel://"))


def shown(table: Callable[..., dict[str, Any]], with_defaults: bool = False, censored: bool = True) -> dict[str, Any]:
    """Celery's `table` of the configuration, as people see it in reports and in Flower. Celery cannot read all URLs
    that it is to mask."""
    settings = table(with_defaults, censored=False)
    if not censored:
        return settings
    urls = {name: _masked(settings.pop(name)) for name in list(settings) if name.lower() in _URLS}
    return {**filter_hidden_settings(settings), **urls}


def _masked(url: Any) -> Any:
    if isinstance(url, list | tuple):
        return [_masked(each) for each in url]
    return mask_password(url) if isinstance(url, str) else url


def _one(url: str, *, broker: bool) -> tuple[str, dict[str, object]]:
    scheme = url.partition("://")[0].lower() if "://" in url else ""
    if scheme not in SERVER_SCHEMES or _CELERYS_SENTINEL.match(url):
        return url, {}
    server = ServerURL.parse(url)
    return server.broker_url if broker else server.celery_url, server.celery_options


def _check_schemes(what: str, url: Any, aliases: Iterable[str], extensions: str | None = None) -> None:
    known = set(aliases)
    for part in url.split(";") if isinstance(url, str) else url if isinstance(url, list | tuple) else ():
        scheme, separator, _ = str(part).partition("://")
        # With a dot or a colon it is the name of a class; the backend named before a plus parses the rest by itself.
        if not separator or {scheme, scheme.partition("+")[0]} & known or _CLASS.search(scheme):
            continue
        # Looked up last, since that reads the metadata of installed packages.
        known |= {each[0] for each in load_extension_class_names(extensions)} if extensions else set()
        if scheme not in known:
            raise ConfigError(
                f"{mask_password(part)!r}: there is no {what} {scheme!r}; there are {', '.join(sorted(known))}"
            )


def _merged(options: Iterable[dict[str, object]]) -> dict[str, object]:
    return {name: value for each in options for name, value in each.items()}
