"""Entries on a Redis or Valkey server. One class serves both of redis-py's clients, the blocking and the asyncio one.

What lies there, all of it under the cache's prefix:

    {prefix}{key}          string   an entry (see ``entry.py``)    expires with the entry; never, if put for ever
    {prefix}\\x01tag:{tag}  string   8 random bytes, its version    outlives the entries that carry it

This is where redis-py's errors become ours, and where the breaker is asked and told.
"""

import math
import secrets
from collections.abc import Awaitable, Mapping, Sequence
from inspect import isawaitable
from typing import Any, Final, cast

import redis
import redis.asyncio
from redis.exceptions import NoScriptError

from backburner.cache.entry import TIMES, TIMES_OFFSET, VERSION_BYTES, Entry
from backburner.cache.keys import Keyspace
from backburner.errors import CodecError, StoreError, StoreUnavailable
from backburner.events import Events, Undecodable
from backburner.redis.breaker import Breaker
from backburner.redis.script import Script

_INCREMENT: Final = Script.load("increment")
_PIN_TAGS: Final = Script.load("pin_tags")
_REPLACE: Final = Script.load("replace")
_RESTAMP: Final = Script.load("restamp")

_UNAVAILABLE: Final = (
    redis.ConnectionError,  # not an OSError; also refused logins, a server that is loading, an exhausted pool
    redis.TimeoutError,
    redis.exceptions.ReadOnlyError,  # a replica after a failover
    redis.exceptions.ClusterDownError,
    OSError,
)
_SCAN_BATCH: Final = 1000
_FRESH_BYTES: Final = 16
"""`refresh_at` and `fresh_until` among the times."""


class RedisStore:
    """Keeps entries on a server.

    Args:
        client: a client of redis-py's, blocking or asyncio, that gives bytes. It is closed with the store.
        keyspace: the names to use there.
        breaker: shared by all stores of this process that talk to the same server.
        events: told of entries that cannot be read.
    """

    shares_values = False

    def __init__(
        self,
        client: "redis.Redis | redis.asyncio.Redis",
        keyspace: Keyspace,
        breaker: Breaker,
        events: Events,
    ) -> None:
        self._client = client
        self._keyspace = keyspace
        self._breaker = breaker
        self._events = events

    async def read(self, keys: Sequence[str]) -> list[Entry | None]:
        names = [self._keyspace.entry(key) for key in keys]
        if len(names) == 1:
            found = [await self._command("GET", names[0])]
        else:
            found = await self._command("MGET", *names)
        return [self._unpack(key, data) for key, data in zip(keys, found, strict=True)]

    async def write(self, entries: Mapping[str, Entry], now: float) -> None:
        commands = [
            ("SET", self._keyspace.entry(key), entry.pack(), *_expiry(entry.expires_at, now))
            for key, entry in entries.items()
        ]
        if len(commands) == 1:
            await self._command(*commands[0])
        else:
            await self._pipeline(commands)

    async def add(self, key: str, entry: Entry, now: float) -> Entry | None:
        name, data = self._keyspace.entry(key), entry.pack()
        while not await self._command("SET", name, data, "NX", *_expiry(entry.expires_at, now)):
            there = await self._command("GET", name)
            if there is None:
                continue  # it ended in between
            found = self._unpack(key, there)
            if found is not None:
                return found
            if await self._replace(name, there, data, entry.expires_at - now):
                return None
        return None

    async def replace(self, key: str, found: Entry, entry: Entry, now: float) -> bool:
        return await self._replace(self._keyspace.entry(key), found.pack(), entry.pack(), entry.expires_at - now)

    async def _replace(self, name: str, there: bytes, data: bytes, lifetime: float) -> bool:
        return bool(await self._script(_REPLACE, [name], [there, data, _milliseconds(lifetime)]))

    async def take(self, key: str) -> Entry | None:
        return self._unpack(key, await self._command("GETDEL", self._keyspace.entry(key)))

    async def forget(self, keys: Sequence[str]) -> int:
        return int(await self._command("UNLINK", *map(self._keyspace.entry, keys)))

    async def increment(self, key: str, amount: int, begin: Entry, now: float, *, tags_checked: bool) -> int | None:
        data = begin.pack()
        payload = begin.payload or b""
        arguments = [
            amount,
            now,
            data[: -len(payload)],
            _milliseconds(begin.expires_at - now),
            int(tags_checked),
        ]
        status, *result = await self._script(_INCREMENT, [self._keyspace.entry(key)], arguments)
        match status:
            case b"ok":
                return int(result[0])
            case b"tagged":
                return None
            case b"type":
                raise TypeError("not a whole number of 64 bits")
            case _:
                raise OverflowError("the sum does not fit into 64 bits")

    async def touch(self, key: str, fresh_until: float, expires_at: float, now: float) -> bool:
        times = TIMES.pack(fresh_until, fresh_until, expires_at)
        arguments = [TIMES_OFFSET, times, _milliseconds(expires_at - now)]
        return bool(await self._script(_RESTAMP, [self._keyspace.entry(key)], arguments))

    async def expire(self, key: str, now: float) -> bool:
        until = TIMES.pack(now, now, now)[:_FRESH_BYTES]
        return bool(await self._script(_RESTAMP, [self._keyspace.entry(key)], [TIMES_OFFSET, until, ""]))

    async def tag_versions(self, tags: Sequence[str]) -> list[bytes | None]:
        return list(await self._command("MGET", *map(self._keyspace.tag, tags)))

    async def pin_tags(self, tags: Sequence[str], lifetime: float) -> list[bytes]:
        fresh = [secrets.token_bytes(VERSION_BYTES) for _ in tags]
        names = [self._keyspace.tag(tag) for tag in tags]
        return list(await self._script(_PIN_TAGS, names, [_milliseconds(lifetime), *fresh]))

    async def flush_tags(self, tags: Sequence[str]) -> None:
        await self._command("UNLINK", *map(self._keyspace.tag, tags))

    async def flush(self) -> None:
        cursor: int | bytes = 0
        while True:
            cursor, names = await self._command("SCAN", cursor, "MATCH", self._keyspace.pattern, "COUNT", _SCAN_BATCH)
            if names:
                await self._command("UNLINK", *names)
            if not int(cursor):
                return

    async def close(self) -> None:
        close = getattr(self._client, "aclose", None) or self._client.close
        await _settle(close())

    def _unpack(self, key: str, data: bytes | None) -> Entry | None:
        if data is None:
            return None
        try:
            return Entry.unpack(data)
        except CodecError as error:
            self._events.emit(Undecodable(key, str(error)))
            return None

    async def _script(self, script: Script, names: Sequence[str], arguments: Sequence[object]) -> Any:
        try:
            return await self._command("EVALSHA", script.sha, len(names), *names, *arguments)
        except _UnknownScript:
            # First use on this server, SCRIPT FLUSH, or a failover.
            return await self._command("EVAL", script.text, len(names), *names, *arguments)

    async def _command(self, *command: Any) -> Any:
        self._ask_breaker()
        try:
            reply = await _settle(self._client.execute_command(*command))
        except (redis.RedisError, OSError) as error:
            raise self._translated(error) from error
        self._breaker.succeeded()
        return reply

    async def _pipeline(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        self._ask_breaker()
        try:
            pipeline = self._client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            replies = await _settle(pipeline.execute())
        except (redis.RedisError, OSError) as error:
            raise self._translated(error) from error
        self._breaker.succeeded()
        return cast("list[Any]", replies)

    def _ask_breaker(self) -> None:
        if not self._breaker.allows():
            raise StoreUnavailable(
                f"the server is left alone for a moment because it did not answer: {self._breaker.cause}"
            )

    def _translated(self, error: Exception) -> StoreError:
        if isinstance(error, NoScriptError):
            self._breaker.succeeded()
            return _UnknownScript()
        if isinstance(error, _UNAVAILABLE):
            self._breaker.failed(error)
            return StoreUnavailable(str(error) or type(error).__name__)
        self._breaker.succeeded()
        return StoreError(str(error))


class _UnknownScript(StoreError):
    """The server does not know a script's digest."""


async def _settle(reply: Awaitable[Any] | Any) -> Any:
    """Wait for a reply if the client is the asyncio one; the blocking one has waited already."""
    return await reply if isawaitable(reply) else reply


def _milliseconds(seconds: float) -> int:
    """For the server, where 0 stands for ever and less than a millisecond cannot be said."""
    return 0 if math.isinf(seconds) else max(1, math.ceil(seconds * 1000))


def _expiry(expires_at: float, now: float) -> tuple[object, ...]:
    return () if math.isinf(expires_at) else ("PX", _milliseconds(expires_at - now))
