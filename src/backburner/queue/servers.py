"""Where broker and result backend are, in Celery's words.

Celery reads URLs from its arguments, its configuration, the environment and the command line. They are
translated where a connection is made, so it does not matter which of these one came from. URLs of other
brokers (``amqp://``, ``sqs://``, …) pass as they are.
"""

import re
from collections.abc import Iterable
from typing import Any

from backburner.redis.url import SERVER_SCHEMES, ServerURL

_CELERYS_SENTINEL = re.compile(r"sentinel://[^/]*(/\d*)?(\?.*)?$")
"""``sentinel://host:26379/0``: Celery's own dialect, which names the master in the transport options."""


def celery_url(url: Any) -> tuple[Any, dict[str, object]]:
    """The URL (or list of URLs) as Celery understands it, and the transport options it implies.

    Raises:
        ConfigError: the URL is meant for Redis or Valkey, and wrong.
    """
    if isinstance(url, str):
        parts = [_one(part) for part in url.split(";")]
        return ";".join(part for part, _ in parts), _merged(options for _, options in parts)
    if isinstance(url, list | tuple):
        parts = [celery_url(part) for part in url]
        return [part for part, _ in parts], _merged(options for _, options in parts)
    return url, {}


def is_redis(url: Any) -> bool:
    """Whether a translated URL means a Redis or Valkey server."""
    return isinstance(url, str) and url.startswith(("redis://", "rediss://", "redis+socket://", "sentinel://"))


def _one(url: str) -> tuple[str, dict[str, object]]:
    scheme = url.partition("://")[0].lower() if "://" in url else ""
    if scheme not in SERVER_SCHEMES or _CELERYS_SENTINEL.match(url):
        return url, {}
    server = ServerURL.parse(url)
    return server.celery_url, server.celery_options


def _merged(options: Iterable[dict[str, object]]) -> dict[str, object]:
    return {name: value for each in options for name, value in each.items()}
