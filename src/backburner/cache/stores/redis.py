"""Entries on a Redis or Valkey server. One class serves both clients, the blocking and the asyncio one.

The keys on the server:

    under the prefix       type     what                            ends
    {key}                  string   an entry (see ``entry.py``)     with the entry; never, if put for ever
    \\x01tag:{tag}          string   8 random bytes, its version     a minute after the last entry that can carry it
    \\x01flushed:{tag}      string   when it was, by its clock       a minute later
    \\x01flush              zset     who removes all, since when     when that is done
    \\x01lease:{key}        string   token of who computes           with the lease, or when it has computed
    \\x01wake:{token}       list     one item, passed on             seconds after the lease ended
    \\x01lock:{{name}}      hash     owner, until, fence             a minute after the lock did
    \\x01bell:{{name}}      list     one item, taken by a waiter     after 5 seconds
    \\x01limit:…            string   until when a rate is used up    then
    \\x01changes            string   nothing: somebody listens to    half a minute after it has ended
                                    the channel of that name

This is where redis-py's errors are translated into ours, and where the breaker is consulted and informed.
"""

import math
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from inspect import isawaitable
from typing import Any, Final, cast

import redis
import redis.asyncio
from redis.exceptions import NoScriptError

from backburner.cache.compression import Compression
from backburner.cache.entry import MARK, TIME, TIMES, TIMES_OFFSET, VERSION_BYTES, Entry
from backburner.cache.keys import Keyspace
from backburner.cache.stores.base import REMEMBERED, Find, Outcome, Rest, Seen, Taken, Turn
from backburner.cache.stores.limits import RedisLimits
from backburner.cache.stores.locks import RedisLocks
from backburner.cache.stores.repeats import Repeats
from backburner.errors import CodecError, StoreError, StoreUnavailable
from backburner.events import Events, Tier, Undecodable
from backburner.redis.breaker import Breaker
from backburner.redis.script import Script
from backburner.redis.stream import Abandoned

_BEGIN: Final = Script.load("begin")
_NOTE_FLUSH: Final = Script.load("note_flush")
_RENEW: Final = Script.load("renew")


def _writing(name: str) -> Script:
    """A script that changes entries: writing.lua, which goes before it, has what every change involves."""
    return Script.load("writing", name)


_ADD: Final = _writing("add")
_FINISH: Final = _writing("finish")
_FLUSH_TAGS: Final = _writing("flush_tags")
_FORGET: Final = _writing("forget")
_INCREMENT: Final = _writing("increment")
_PUT: Final = _writing("put")
_REPLACE: Final = _writing("replace")
_RESTAMP: Final = _writing("restamp")
_TAKE: Final = _writing("take")
_TELL_ALL: Final = _writing("tell_all")

_UNAVAILABLE: Final = (
    redis.ConnectionError,  # not an OSError; also refused logins, a server that is loading, an exhausted pool
    redis.TimeoutError,
    redis.exceptions.ReadOnlyError,  # a replica after a failover
    redis.exceptions.ClusterDownError,
    OSError,
)
_NO_DATABASE: Final = "DB index"
"""Part of the error for a connection that asks for a database number which does not exist."""
_SCAN_BATCH: Final = 1000
_TOKEN_BYTES: Final = 8
_WAKE_KEPT: Final = 5.0
"""Seconds that a wake-up is kept for a waiter that is not listening yet."""
_FRESH_BYTES: Final = 16
"""Size of `refresh_at` and `fresh_until`, the first two of the times."""


class RedisStore:
    """Keeps entries on a server.

    Args:
        client: a blocking or asyncio client with redis-py's interface that returns bytes. It is closed with the store.
        patient: makes another client, whose replies may take `patience` seconds longer; for waiting for other
            processes.
        keyspace: the key names to use.
        breaker: shared by all stores of this process that talk to the same server.
        events: told of entries that cannot be read.
        compression: of payloads.
        repeats: spares decoding the same bytes again. With it, callers must not change the entries that they get.
    """

    shares_values = False
    patience = 0.5
    """Seconds of one wait for another process. The server ends it with a push; this bounds the wait if the server
    stalls."""

    def __init__(
        self,
        client: "redis.Redis | redis.asyncio.Redis",
        patient: "Callable[[], redis.Redis | redis.asyncio.Redis]",
        keyspace: Keyspace,
        breaker: Breaker,
        events: Events,
        compression: Compression,
        repeats: Repeats | None = None,
    ) -> None:
        self._client = client
        self._make_patient = patient
        self._patient: redis.Redis | redis.asyncio.Redis | None = None
        self._keyspace = keyspace
        self._breaker = breaker
        self._events = events
        self._compression = compression
        self._repeats = repeats
        self.locks = RedisLocks(self._script, self._pop, keyspace)
        self.limits = RedisLimits(self._script, keyspace)

    def tier_of(self, key: str, entry: Entry) -> Tier:  # noqa: ARG002
        return "server"

    async def find(self, key: str) -> Find:
        stored = await self._command("GET", self._keyspace.entry(key))
        if stored is None:
            return Find(asked=True)
        try:
            entry = Entry.unpack(stored, key)
            payload = self._compression.unpack(entry.payload or b"")
        except CodecError as error:
            return Find(asked=True, stored=stored, unreadable=str(error))
        compressed = payload is not entry.payload
        return Find(None, True, stored, replace(entry, payload=payload), compressed=compressed)

    async def read_one(self, key: str) -> Entry | None:
        # Inlines `_command`, to spare a coroutine: this is the path of most reads.
        if self._breaker.open:
            self._ask_breaker()
        try:
            data = self._client.execute_command("GET", self._keyspace.entry(key))
            if data is not None and data.__class__ is not bytes:
                data = await data
        except (redis.RedisError, OSError) as error:
            raise self._translated(error) from error
        if self._breaker.open:
            self._breaker.succeeded()
        return None if data is None else self._entry(key, data)

    async def read(self, keys: Sequence[str]) -> list[Entry | None]:
        found = await self._command("MGET", *map(self._keyspace.entry, keys))
        return [None if data is None else self._entry(key, data) for key, data in zip(keys, found, strict=True)]

    async def write(self, entries: Mapping[str, Entry], now: float) -> None:
        arguments: list[object] = []
        for key, entry in entries.items():
            arguments += (self._pack(key, entry), _milliseconds(entry.expires_at - now))
        await self._write(_PUT, entries, arguments)

    async def add(self, key: str, entry: Entry, now: float) -> Entry | None:
        data, lifetime = self._pack(key, entry), _milliseconds(entry.expires_at - now)
        while (there := await self._write(_ADD, (key,), [data, lifetime])) is not None:
            found = self._unpack(key, there)
            if found is not None:
                return found
            if await self._replace(key, there, data, lifetime):
                return None
        return None

    async def replace(self, key: str, found: Entry, entry: Entry, now: float) -> bool:
        return await self._replace(key, found.pack(key), self._pack(key, entry), _milliseconds(entry.expires_at - now))

    async def _replace(self, key: str, there: bytes, data: bytes, lifetime: int) -> bool:
        return bool(await self._write(_REPLACE, (key,), [there, data, lifetime]))

    async def take(self, key: str) -> Entry | None:
        return self._whole(key, self._unpack(key, await self._write(_TAKE, (key,))))

    async def forget(self, keys: Sequence[str]) -> int:
        return int(await self._write(_FORGET, keys))

    async def increment(self, key: str, amount: int, begin: Entry, now: float, *, tags_checked: bool) -> int | None:
        data = begin.pack(key)
        payload = begin.payload or b""
        arguments = [
            amount,
            now,
            data[: -len(payload)],
            _milliseconds(begin.expires_at - now),
            int(tags_checked),
        ]
        status, *result = await self._write(_INCREMENT, (key,), arguments)
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
        arguments = [TIMES_OFFSET, times, _milliseconds(expires_at - now), MARK]
        return bool(await self._write(_RESTAMP, (key,), arguments))

    async def expire(self, key: str, now: float) -> bool:
        until = TIMES.pack(now, now, now)[:_FRESH_BYTES]
        return bool(await self._write(_RESTAMP, (key,), [TIMES_OFFSET, until, "", MARK]))

    async def _write(self, script: Script, keys: Iterable[str], arguments: Sequence[object] = ()) -> Any:
        return await self._change(script, self._places(keys), arguments)

    async def _change(self, script: Script, names: Sequence[str], arguments: Sequence[object] = ()) -> Any:
        return await self._script(script, [*names, self._keyspace.channel], arguments)

    def _places(self, keys: Iterable[str]) -> list[str]:
        """For each key, the names of its lease and of its entry."""
        return [name for key in keys for name in (self._keyspace.lease(key), self._keyspace.entry(key))]

    def hear(self, on_push: Callable[[list[Any]], None]) -> None:
        """Have the server announce changes on the client's own connection, if the client supports that."""
        if hear := getattr(self._client, "hear", None):
            hear(self._keyspace.prefix, on_push)

    async def tag_versions(self, tags: Sequence[str]) -> list[bytes | None]:
        return list(await self._command("MGET", *map(self._keyspace.tag, tags)))

    async def pin_tags(self, tags: Sequence[str], lifetime: float) -> list[bytes]:
        names = [self._keyspace.tag(tag) for tag in tags]
        return await self._begin(names, (), "", (), lifetime, 0)

    async def flushed_since(self, tags: Sequence[str], began: int) -> bool:
        noted = await self._command("MGET", *map(self._keyspace.flushed, tags))
        return any(when is not None and int(when) >= began for when in noted)

    async def begin(self, seen: Seen, tags: Sequence[str], lifetime: float, lease: float) -> Turn:
        token = secrets.token_hex(_TOKEN_BYTES)
        marks = [b"*" if mark is None else mark for mark in seen.values()]
        names = [self._keyspace.tag(tag) for tag in tags]
        try:
            result = await self._begin(names, self._places(seen), token, marks, lifetime, lease)
        except (StoreError, GeneratorExit):
            raise
        except BaseException:
            # Cancelled or interrupted: leases may be ours although the reply has not reached us, and others wait for
            # them.
            with suppress(StoreError):
                await self.finish(Turn(tuple(seen), (), token), {}, 0.0)
            raise
        answers = dict(zip(seen, result, strict=False))
        granted = tuple(key for key, answer in answers.items() if answer == 1)
        taken = {
            key: Taken(answer[0].decode(), max(0, answer[1]) / 1000)
            for key, answer in answers.items()
            if isinstance(answer, list)
        }
        if not granted:
            return Turn((), (), token, taken=taken)
        *versions, began = result[len(seen) :]
        return Turn(granted, tuple(zip(tags, versions, strict=True)), token, began, taken)

    async def _begin(
        self,
        tags: Sequence[str],
        places: Sequence[str],
        token: str,
        marks: Sequence[bytes],
        lifetime: float,
        lease: float,
    ) -> list[Any]:
        fresh = [secrets.token_bytes(VERSION_BYTES) for _ in tags]
        arguments = [token, _milliseconds(lease), _milliseconds(lifetime), len(tags), *fresh, *marks]
        return list(await self._script(_BEGIN, [*tags, *places], arguments))

    async def renew(self, tokens: Mapping[str, str], lease: float) -> list[str]:
        names = [self._keyspace.lease(key) for key in tokens]
        held = await self._script(_RENEW, names, [_milliseconds(lease), *tokens.values()])
        return [key for key, still in zip(tokens, held, strict=True) if not still]

    async def finish(self, turn: Turn, outcomes: Mapping[str, Outcome], now: float) -> list[str]:
        names = [self._keyspace.wake(turn.token), self._keyspace.flush, *self._places(turn.keys)]
        arguments: list[object] = [turn.token, turn.began, _milliseconds(_WAKE_KEPT), TIMES_OFFSET]
        for key in turn.keys:
            match outcomes.get(key):
                case None:
                    arguments += ("leave", b"", b"")
                case Rest(until):
                    arguments += ("rest", TIME.pack(until), b"")
                case entry if entry.expires_at <= now:
                    arguments += ("remove", b"", b"")
                case entry:
                    arguments += ("put", self._pack(key, entry), _milliseconds(entry.expires_at - now))
        held = await self._change(_FINISH, names, arguments)
        return [key for key, still in zip(turn.keys, held, strict=True) if still]

    async def wait(self, taken: Taken) -> None:
        wake = self._keyspace.wake(taken.token)
        if await self._pop(wake, taken.seconds):
            # Others may be waiting for the same: each waiter wakes the next.
            await self._pipeline([("RPUSH", wake, 1), ("PEXPIRE", wake, _milliseconds(_WAKE_KEPT))])

    async def _pop(self, name: str, seconds: float) -> bool:
        """Pop an item from a list, waiting for so many seconds or less. Returns whether there was one."""
        if self._patient is None:
            self._patient = self._make_patient()
        self._ask_breaker()
        try:
            popped = await _settle(
                self._patient.execute_command("BLPOP", name, max(0.001, min(seconds, self.patience)))
            )
        except (redis.RedisError, OSError) as error:
            raise self._translated(error) from error
        self._breaker.succeeded()
        return popped is not None

    async def flush_tags(self, tags: Sequence[str]) -> None:
        names = [name for tag in tags for name in (self._keyspace.tag(tag), self._keyspace.flushed(tag))]
        await self._change(_FLUSH_TAGS, names, [_milliseconds(REMEMBERED)])

    async def flush(self) -> None:
        token = secrets.token_hex(_TOKEN_BYTES)
        noted = -math.inf
        cursor: int | bytes = 0
        while True:
            if time.monotonic() > noted + REMEMBERED / 2:
                noted = time.monotonic()
                await self._script(_NOTE_FLUSH, [self._keyspace.flush], [token, _milliseconds(REMEMBERED)])
            cursor, names = await self._command("SCAN", cursor, "MATCH", self._keyspace.pattern, "COUNT", _SCAN_BATCH)
            if names := [name for name in names if not self._keyspace.outlives_flush(name)]:
                await self._command("UNLINK", *names)
            if not int(cursor):
                break
        await self._change(_TELL_ALL, (self._keyspace.flush,), [token])

    async def close(self) -> None:
        for client in (self._client, self._patient):
            if client is not None:
                close = getattr(client, "aclose", None) or client.close
                await _settle(close())
        self._patient = None

    def _pack(self, key: str, entry: Entry) -> bytes:
        payload = entry.payload or b""
        stored = self._compression.pack(payload)
        return (entry if stored is payload else replace(entry, payload=stored)).pack(key)

    def _entry(self, key: str, data: bytes) -> Entry | None:
        """The entry of these bytes, for reading only."""
        repeats = self._repeats
        if repeats is None:
            return self._whole(key, self._unpack(key, data))
        entry = repeats.find(key, data)
        if entry is None:
            entry = self._whole(key, self._unpack(key, data))
            if entry is not None:
                repeats.keep(key, data, entry)
        return entry

    def _whole(self, key: str, entry: Entry | None) -> Entry | None:
        """The entry with its payload decompressed; ``None`` if that fails."""
        if entry is not None and entry.payload is not None:
            try:
                entry.payload = self._compression.unpack(entry.payload)
            except CodecError as error:
                self._events.emit(Undecodable(key, str(error)))
                return None
        return entry

    def _unpack(self, key: str, data: bytes | None) -> Entry | None:
        """The entry of these bytes, its payload still as stored."""
        if data is None:
            return None
        try:
            return Entry.unpack(data, key)
        except CodecError as error:
            self._events.emit(Undecodable(key, str(error)))
            return None

    async def _script(self, script: Script, names: Sequence[str], arguments: Sequence[object]) -> Any:
        try:
            return await self._command("EVALSHA", script.sha, len(names), *names, *arguments)
        except _UnknownScript:
            # The first use on this server, or after SCRIPT FLUSH or a failover.
            return await self._command("EVAL", script.text, len(names), *names, *arguments)

    async def _command(self, *command: Any) -> Any:
        self._ask_breaker()
        try:
            reply = self._client.execute_command(*command)
            if hasattr(reply, "__await__"):
                reply = await reply
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
        if isinstance(error, Abandoned):
            return StoreUnavailable(str(error))
        if isinstance(error, _UNAVAILABLE) or _NO_DATABASE in str(error):
            self._breaker.failed(error)
            return StoreUnavailable(str(error) or type(error).__name__)
        self._breaker.succeeded()
        return StoreError(str(error))


class _UnknownScript(StoreError):
    """The server does not know a script's digest."""


async def _settle(reply: Awaitable[Any] | Any) -> Any:
    """Await a reply of the asyncio client; the blocking one has waited already."""
    return await reply if isawaitable(reply) else reply


def _milliseconds(seconds: float) -> int:
    """Whole milliseconds for the server, at least 1; 0 stands for ever."""
    return 0 if math.isinf(seconds) else max(1, math.ceil(seconds * 1000))
