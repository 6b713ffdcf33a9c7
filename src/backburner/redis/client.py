"""Build redis-py clients from a server's URL, with a time budget for every step.

By default, redis-py retries ten times and waits five seconds each: a silent server costs a minute per GET. Here,
connecting and each reply get `timeout` seconds and nothing is retried; what a failure means is up to the caller.
"""

from functools import cache
from pathlib import Path
from typing import Any, cast

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.backoff
import redis.retry
import redis.sentinel

from backburner.errors import ConfigError
from backburner.redis.cluster import (
    AsyncClusterConnection,
    AsyncClusterSSLConnection,
    ClusterConnection,
    ClusterSSLConnection,
)
from backburner.redis.in_step import in_step
from backburner.redis.url import TLS_FILES, ServerURL

_ASYNC_CONNECTIONS = 64
"""Connections of one event loop; further coroutines wait for a free one."""
_LONGEST = 86_400
"""Seconds. Sockets accept no more than a few months, and a day is as good as for ever."""
_THREADS = 10_000
"""Connections of blocking clients: one for each thread that waits for another process, never an error for the 101st."""


def connect(url: str, *, timeout: float, name: str = "backburner") -> "redis.Redis":
    """A blocking client. No connection is made yet.

    Args:
        url: any URL that `ServerURL` understands.
        timeout: seconds for connecting, and for each reply.
        name: the client name, as CLIENT LIST shows it.

    Raises:
        ConfigError: the URL is not that of a server, or names a file that does not exist; or the timeout is invalid.
    """
    server = _server(url)
    options = _options(timeout, name) | {"retry": redis.retry.Retry(redis.backoff.NoBackoff(), 0)}
    options["max_connections"] = _THREADS
    client = _blocking(server, options)
    client.connection_pool.connection_class = in_step(client.connection_pool.connection_class)
    return client


def _blocking(server: ServerURL, options: dict[str, Any]) -> "redis.Redis":
    if server.sentinels:
        sentinel: Any = redis.sentinel.Sentinel  # redis-py has no types for it
        return cast(
            "redis.Redis",
            sentinel(server.sentinels, sentinel_kwargs=options, **options | _login(server)).master_for(
                server.master, redis_class=_Master
            ),
        )
    if server.nodes:
        kind: Any = ClusterSSLConnection if server.tls else ClusterConnection
        return redis.Redis.from_pool(redis.ConnectionPool(connection_class=kind, **options | _place(server)))
    return redis.Redis.from_pool(redis.ConnectionPool.from_url(server.redis_url, **options | _protocol(server)))


def aconnect(url: str, *, timeout: float, name: str = "backburner") -> "redis.asyncio.Redis":
    """An asyncio client for the event loop that first uses it; otherwise as `connect`."""
    server = _server(url)
    options = _options(timeout, name) | {"retry": redis.asyncio.retry.Retry(redis.backoff.NoBackoff(), 0)}
    if server.sentinels:
        sentinel: Any = redis.asyncio.sentinel.Sentinel
        return cast(
            "redis.asyncio.Redis",
            sentinel(server.sentinels, sentinel_kwargs=options, **options | _login(server)).master_for(
                server.master, redis_class=_AsyncMaster
            ),
        )
    if server.nodes:
        kind: Any = AsyncClusterSSLConnection if server.tls else AsyncClusterConnection
        waiting: dict[str, Any] = {"max_connections": _ASYNC_CONNECTIONS, "timeout": timeout}
        return redis.asyncio.Redis.from_pool(
            redis.asyncio.BlockingConnectionPool(connection_class=kind, **waiting | options | _place(server))
        )
    # A plain pool raises when all its connections are in use; this one waits, within the same budget.
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        server.redis_url,
        max_connections=_ASYNC_CONNECTIONS,
        **{"timeout": timeout} | options | _protocol(server),
    )
    return redis.asyncio.Redis.from_pool(pool)


class _Master(redis.Redis):
    """Closes its connections to the Sentinels too, which redis-py leaves to the garbage collector."""

    def close(self) -> None:
        super().close()
        pool: Any = self.connection_pool
        for sentinel in pool.sentinel_manager.sentinels:
            sentinel.close()


class _AsyncMaster(redis.asyncio.Redis):
    """As `_Master`."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await super().aclose(close_connection_pool)
        pool: Any = self.connection_pool
        for sentinel in pool.sentinel_manager.sentinels:
            await sentinel.aclose()


def _server(url: str) -> ServerURL:
    server = ServerURL.parse(url)
    for name, value in server.options:
        if name in TLS_FILES and not Path(value).exists():
            raise ConfigError(f"{server.masked}: {name} is {value!r}, where nothing is")
    return server


def _options(timeout: float, name: str) -> dict[str, Any]:
    if not 0 < timeout <= _LONGEST:
        raise ConfigError(f"timeout={timeout!r}: seconds, more than 0 and no more than {_LONGEST}; write timeout=0.25")
    return {"socket_timeout": timeout, "socket_connect_timeout": timeout, "client_name": name} | driver()


@cache
def driver() -> dict[str, Any]:
    """What redis-py tells the server about itself, as connection options. Without them it reads its package metadata
    from disk for every connection: five milliseconds, on the event loop too."""
    try:
        from redis.driver_info import DriverInfo  # since redis-py 7.2
    except ImportError:
        return {}
    return {"driver_info": DriverInfo()}


def _protocol(server: ServerURL) -> dict[str, Any]:
    # RESP2 needs no HELLO, which old servers and proxies refuse; `?protocol=3` in the URL asks for the other one.
    return {} if "protocol" in dict(server.options) else {"protocol": 2}


def _login(server: ServerURL) -> dict[str, Any]:
    return {
        "db": server.database,
        "username": server.username,
        "password": server.password,
        "ssl": server.tls,
        "protocol": 2,
        **server.redis_options,
    }


def _place(server: ServerURL) -> dict[str, Any]:
    if server.slot is None:
        raise ConfigError(f"{server.masked}: a cluster is for caches; nothing else knows which of its nodes to use")
    login = {name: value for name, value in _login(server).items() if name != "ssl"}
    return login | {"nodes": server.nodes, "slot": server.slot}
