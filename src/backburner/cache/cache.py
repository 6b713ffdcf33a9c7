"""The verbs that users call: each once for blocking code, and once with an `a` in front for asyncio. Thin: the
engine does it.

A cache may be used from threads, tasks, several event loops and forked children. Its blocking verbs also work inside a
running event loop, which they block for as long as the server takes.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar, Unpack, overload
from weakref import WeakKeyDictionary, WeakSet, finalize, ref

from backburner.cache.codec import codec_for
from backburner.cache.compression import Compression
from backburner.cache.context import Context
from backburner.cache.counters import COUNTED, Counters
from backburner.cache.engine import FOREVER, MISSING, Engine
from backburner.cache.entry import ENCODED, TTL, Duration, Entry, seconds
from backburner.cache.explanation import Explanation
from backburner.cache.flight import Flights
from backburner.cache.keys import Keyspace, check_key, check_tags
from backburner.cache.leases import Leases
from backburner.cache.limiter import Limiter
from backburner.cache.locks import Lock
from backburner.cache.owed import Owed
from backburner.cache.plan import FlexibleOptions, Options, Plan
from backburner.cache.remember import ReadThrough
from backburner.cache.remember_many import ReadThroughMany
from backburner.cache.runtime import AsyncioRuntime, BlockingRuntime, run
from backburner.cache.shape import Shape, shape_of
from backburner.cache.stats import Stats
from backburner.cache.stores import MemoryStore, Near, RedisStore, Store, TieredStore
from backburner.cache.stores.repeats import Repeats
from backburner.cache.trouble import TROUBLE, TroubleLog
from backburner.errors import CodecError, ConfigError
from backburner.events import BreakerClosed, BreakerOpened, Events, Hit
from backburner.redis.blocking import BlockingClient
from backburner.redis.breaker import Breaker
from backburner.redis.client import aconnect, connect
from backburner.redis.pipelined import PipelinedClient
from backburner.redis.url import ServerURL, for_prefix
from backburner.settings import Settings

if TYPE_CHECKING:
    from backburner.cache.memo import MemoizedCache

T = TypeVar("T")
D = TypeVar("D")

Callback = Callable[[], T] | Callable[[Context], T]
"""Computes a value; may take a `Context` to decide about its entry."""
Coroutines = Callback[Awaitable[T]]
AsyncCallback = Callback[T] | Coroutines[T]
ManyCallback = Callable[[list[str]], Mapping[str, T]]
"""Computes the values of several keys."""
ManyCoroutines = Callable[[list[str]], Awaitable[Mapping[str, T]]]
AsyncManyCallback = ManyCallback[T] | ManyCoroutines[T]


def _no_callback(*_: object) -> NoReturn:
    raise TypeError("remember needs a callback, which computes the value: remember(key, ttl=300, callback=load)")


def _no_loop() -> None:
    """In place of a reference to one."""


def _said(
    grace: Duration | None,
    soft_timeout: Duration | None,
    hard_timeout: Duration | None,
    none_ttl: Duration | None,
    jitter: Duration | None,
    throttle: Duration | None,
) -> dict[str, Duration | None]:
    return {
        "grace": grace,
        "soft_timeout": soft_timeout,
        "hard_timeout": hard_timeout,
        "none_ttl": none_ttl,
        "jitter": jitter,
        "throttle": throttle,
    }


class Verbs:
    """What `Cache` and `TaggedCache` have in common.

    A `ttl` is seconds, a `timedelta` or text such as ``"10m"``; ``None`` means the cache's default, zero or less
    removes.
    Keys are text. Values come back equal and of the same type; what cannot is refused with a `CodecError`. With the
    server gone, reads find nothing and writes say ``False``, unless the cache is strict.

    Raises:
        ValueError: a key, tag or ttl makes no sense.
        CodecError: a value cannot be stored; the message says what to do.
        ValueTooLarge: a value given has more bytes than the cache takes.
        StoreError: others only from a strict cache, which does not degrade.
    """

    _tags: tuple[str, ...] = ()

    def _engine(self) -> Engine:
        raise NotImplementedError

    def _aengine(self) -> Engine:
        raise NotImplementedError

    def _hit(self, key: str) -> object:
        raise NotImplementedError

    def _hit_as(self, key: str, annotation: Any) -> object:
        raise NotImplementedError

    # One value

    @overload
    def get(self, key: str, default: None = None, *, type: type[T]) -> T | None: ...
    @overload
    def get(self, key: str, default: D, *, type: type[T]) -> T | D: ...
    @overload
    def get(self, key: str, default: object = None, *, type: object = None) -> Any: ...
    def get(self, key: str, default: object = None, *, type: Any = None) -> Any:
        """The value of a key, or the default.

        Args:
            type: what the value must be, such as ``list[Book]``: pydantic checks it, and converts where it does that.
                One that does not fit is not there for this reader, which is an event, `Undecodable`.
        """
        value = self._hit(key) if type is None else self._hit_as(key, type)
        if value is MISSING:
            value = run(self._get(self._engine(), check_key(key), shape_of(type)))
        return default if value is MISSING else value

    @overload
    async def aget(self, key: str, default: None = None, *, type: type[T]) -> T | None: ...
    @overload
    async def aget(self, key: str, default: D, *, type: type[T]) -> T | D: ...
    @overload
    async def aget(self, key: str, default: object = None, *, type: object = None) -> Any: ...
    async def aget(self, key: str, default: object = None, *, type: Any = None) -> Any:
        """As `get`."""
        value = self._hit(key) if type is None else self._hit_as(key, type)
        if value is MISSING:
            value = await self._get(self._aengine(), check_key(key), shape_of(type))
        return default if value is MISSING else value

    def _get(self, engine: Engine, key: str, shape: Shape | None) -> Coroutine[Any, Any, object]:
        return engine.get(key, shape)

    def has(self, key: str) -> bool:
        """Whether a key has a value, ``None`` included."""
        return run(self._engine().has(check_key(key)))

    async def ahas(self, key: str) -> bool:
        """As `has`."""
        return await self._aengine().has(check_key(key))

    def missing(self, key: str) -> bool:
        """Whether a key has no value."""
        return not self.has(key)

    async def amissing(self, key: str) -> bool:
        """As `missing`."""
        return not await self.ahas(key)

    def put(self, key: str, value: object, ttl: TTL = None) -> bool:
        """Store a value. Whether it was stored."""
        return run(self._engine().put({check_key(key): value}, ttl, self._tags))

    async def aput(self, key: str, value: object, ttl: TTL = None) -> bool:
        """As `put`."""
        return await self._aengine().put({check_key(key): value}, ttl, self._tags)

    def forever(self, key: str, value: object) -> bool:
        """Store a value without an end. Whether it was stored."""
        return self.put(key, value, FOREVER)

    async def aforever(self, key: str, value: object) -> bool:
        """As `forever`."""
        return await self.aput(key, value, FOREVER)

    def add(self, key: str, value: object, ttl: TTL = None) -> bool:
        """Store a value if the key has none; of several callers one succeeds. Whether it was stored."""
        return run(self._engine().add(check_key(key), value, ttl, self._tags))

    async def aadd(self, key: str, value: object, ttl: TTL = None) -> bool:
        """As `add`."""
        return await self._aengine().add(check_key(key), value, ttl, self._tags)

    @overload
    def pull(self, key: str, default: None = None, *, type: type[T]) -> T | None: ...
    @overload
    def pull(self, key: str, default: D, *, type: type[T]) -> T | D: ...
    @overload
    def pull(self, key: str, default: object = None, *, type: object = None) -> Any: ...
    def pull(self, key: str, default: object = None, *, type: Any = None) -> Any:
        """Remove a key and give its value, or the default; of several callers one gets it. `type`: as for `get`."""
        value = run(self._engine().pull(check_key(key), shape_of(type)))
        return default if value is MISSING else value

    @overload
    async def apull(self, key: str, default: None = None, *, type: type[T]) -> T | None: ...
    @overload
    async def apull(self, key: str, default: D, *, type: type[T]) -> T | D: ...
    @overload
    async def apull(self, key: str, default: object = None, *, type: object = None) -> Any: ...
    async def apull(self, key: str, default: object = None, *, type: Any = None) -> Any:
        """As `pull`."""
        value = await self._aengine().pull(check_key(key), shape_of(type))
        return default if value is MISSING else value

    def forget(self, key: str) -> bool:
        """Remove a key. Whether there was something to remove."""
        return run(self._engine().forget((check_key(key),))) > 0

    async def aforget(self, key: str) -> bool:
        """As `forget`."""
        return await self._aengine().forget((check_key(key),)) > 0

    def touch(self, key: str, ttl: TTL = None) -> bool:
        """Let a key's value live for `ttl` from now on. Whether it had one."""
        return run(self._engine().touch(check_key(key), ttl))

    async def atouch(self, key: str, ttl: TTL = None) -> bool:
        """As `touch`."""
        return await self._aengine().touch(check_key(key), ttl)

    def expire(self, key: str) -> bool:
        """Let a key's value count as old: nobody gets it, save where a callback fails that should replace it.
        Whether it had one."""
        return run(self._engine().expire(check_key(key)))

    async def aexpire(self, key: str) -> bool:
        """As `expire`."""
        return await self._aengine().expire(check_key(key))

    # Reading through

    # The options stand here one by one, and not as `**options`, since Python would make a dict of them for every hit.

    @overload
    def remember(
        self, key: str, ttl: TTL = None, callback: Callback[Any] = ..., *, type: type[T], **options: Unpack[Options]
    ) -> T: ...
    @overload
    def remember(
        self, key: str, ttl: TTL = None, callback: Callback[T] = ..., *, type: object = None, **options: Unpack[Options]
    ) -> T: ...
    def remember(
        self,
        key: str,
        ttl: TTL = None,
        callback: Callback[Any] = _no_callback,
        *,
        grace: Duration | None = None,
        soft_timeout: Duration | None = None,
        hard_timeout: Duration | None = None,
        none_ttl: Duration | None = None,
        jitter: Duration | None = None,
        throttle: Duration | None = None,
        type: Any = None,
    ) -> Any:
        """The value of a key, or else what `callback` gives, which is stored.

        Of several callers in this process one calls back, the others wait for it. What the callback raises reaches all
        of them as it is, and nothing is stored. A key that is removed, or a tag flushed, while it computes wins: the
        caller gets the value, and it is not stored. Shortly before the value ends, one caller computes it anew while
        the others still get it: the earlier, the longer that takes.

        `Options` tells what the others are: grace, timeouts, negative caching, jitter. `type`: what the value must be,
        as for `get`; a stored one that does not fit is computed anew. It holds for what the callback gives, too.

        Raises:
            CodecError: what the callback gives cannot be stored, or does not fit.
            RuntimeError: the callback asks for the key that it computes.
            CallbackTimeout: nothing within `hard_timeout`.
        """
        value = self._hit(key) if type is None else self._hit_as(key, type)
        if value is MISSING:
            options = _said(grace, soft_timeout, hard_timeout, none_ttl, jitter, throttle)
            plan = Plan.of(callback, self._engine().lifetime(ttl), self._tags, options, shape=shape_of(type))
            value = run(self._read_through(self._engine()).remember(check_key(key), plan))
        return value

    @overload
    async def aremember(
        self,
        key: str,
        ttl: TTL = None,
        callback: AsyncCallback[Any] = ...,
        *,
        type: type[T],
        **options: Unpack[Options],
    ) -> T: ...
    @overload
    async def aremember(
        self,
        key: str,
        ttl: TTL = None,
        callback: Coroutines[T] = ...,
        *,
        type: object = None,
        **options: Unpack[Options],
    ) -> T: ...
    @overload
    async def aremember(
        self,
        key: str,
        ttl: TTL = None,
        callback: Callback[T] = ...,
        *,
        type: object = None,
        **options: Unpack[Options],
    ) -> T: ...
    async def aremember(
        self,
        key: str,
        ttl: TTL = None,
        callback: AsyncCallback[Any] = _no_callback,
        *,
        grace: Duration | None = None,
        soft_timeout: Duration | None = None,
        hard_timeout: Duration | None = None,
        none_ttl: Duration | None = None,
        jitter: Duration | None = None,
        throttle: Duration | None = None,
        type: Any = None,
    ) -> Any:
        """As `remember`; the callback may be a coroutine function."""
        value = self._hit(key) if type is None else self._hit_as(key, type)
        if value is MISSING:
            options = _said(grace, soft_timeout, hard_timeout, none_ttl, jitter, throttle)
            plan = Plan.of(callback, self._engine().lifetime(ttl), self._tags, options, shape=shape_of(type))
            value = await self._read_through(self._aengine()).remember(check_key(key), plan)
        return value

    @overload
    def remember_forever(
        self, key: str, callback: Callback[Any] = ..., *, type: type[T], **options: Unpack[Options]
    ) -> T: ...
    @overload
    def remember_forever(
        self, key: str, callback: Callback[T] = ..., *, type: object = None, **options: Unpack[Options]
    ) -> T: ...
    def remember_forever(
        self, key: str, callback: Callback[Any] = _no_callback, *, type: Any = None, **options: Unpack[Options]
    ) -> Any:
        """As `remember`, without an end."""
        return self.remember(key, FOREVER, callback, type=type, **options)

    @overload
    async def aremember_forever(
        self, key: str, callback: AsyncCallback[Any] = ..., *, type: type[T], **options: Unpack[Options]
    ) -> T: ...
    @overload
    async def aremember_forever(
        self, key: str, callback: Coroutines[T] = ..., *, type: object = None, **options: Unpack[Options]
    ) -> T: ...
    @overload
    async def aremember_forever(
        self, key: str, callback: Callback[T] = ..., *, type: object = None, **options: Unpack[Options]
    ) -> T: ...
    async def aremember_forever(
        self, key: str, callback: AsyncCallback[Any] = _no_callback, *, type: Any = None, **options: Unpack[Options]
    ) -> Any:
        """As `remember_forever`."""
        return await self.aremember(key, FOREVER, callback, type=type, **options)

    @overload
    def flexible(
        self,
        key: str,
        ttl: tuple[Duration, Duration],
        callback: Callback[Any] = ...,
        *,
        type: type[T],
        **options: Unpack[FlexibleOptions],
    ) -> T: ...
    @overload
    def flexible(
        self,
        key: str,
        ttl: tuple[Duration, Duration],
        callback: Callback[T] = ...,
        *,
        type: object = None,
        **options: Unpack[FlexibleOptions],
    ) -> T: ...
    def flexible(
        self,
        key: str,
        ttl: tuple[Duration, Duration],
        callback: Callback[Any] = _no_callback,
        *,
        soft_timeout: Duration | None = None,
        hard_timeout: Duration | None = None,
        none_ttl: Duration | None = None,
        jitter: Duration | None = None,
        throttle: Duration | None = None,
        type: Any = None,
    ) -> Any:
        """As `remember`, but who comes late need not wait: with ``ttl=(fresh, stale)`` a value older than `fresh` is
        given at once and computed anew in the background, and only one older than `stale` is waited for.

        The callback may run when the caller has long gone on, in another thread: it must not use what belongs to the
        caller's request, such as its database session.

        Of the options of `remember` it has no `grace`, which `stale` is.

        Raises:
            ValueError: `stale` is shorter than `fresh`.
        """
        value = self._hit(key) if type is None else self._hit_as(key, type)
        if value is MISSING:
            options = _said(None, soft_timeout, hard_timeout, none_ttl, jitter, throttle)
            plan = Plan.flexible(callback, ttl, self._tags, options, shape=shape_of(type))
            value = run(self._read_through(self._engine()).remember(check_key(key), plan))
        return value

    @overload
    async def aflexible(
        self,
        key: str,
        ttl: tuple[Duration, Duration],
        callback: AsyncCallback[Any] = ...,
        *,
        type: type[T],
        **options: Unpack[FlexibleOptions],
    ) -> T: ...
    @overload
    async def aflexible(
        self,
        key: str,
        ttl: tuple[Duration, Duration],
        callback: Coroutines[T] = ...,
        *,
        type: object = None,
        **options: Unpack[FlexibleOptions],
    ) -> T: ...
    @overload
    async def aflexible(
        self,
        key: str,
        ttl: tuple[Duration, Duration],
        callback: Callback[T] = ...,
        *,
        type: object = None,
        **options: Unpack[FlexibleOptions],
    ) -> T: ...
    async def aflexible(
        self,
        key: str,
        ttl: tuple[Duration, Duration],
        callback: AsyncCallback[Any] = _no_callback,
        *,
        soft_timeout: Duration | None = None,
        hard_timeout: Duration | None = None,
        none_ttl: Duration | None = None,
        jitter: Duration | None = None,
        throttle: Duration | None = None,
        type: Any = None,
    ) -> Any:
        """As `flexible`; in the background means in a task of this event loop."""
        value = self._hit(key) if type is None else self._hit_as(key, type)
        if value is MISSING:
            options = _said(None, soft_timeout, hard_timeout, none_ttl, jitter, throttle)
            plan = Plan.flexible(callback, ttl, self._tags, options, shape=shape_of(type))
            value = await self._read_through(self._aengine()).remember(check_key(key), plan)
        return value

    def _read_through(self, engine: Engine) -> ReadThrough:
        return ReadThrough(engine, self._engine())

    # Several values

    @overload
    def many(self, keys: Iterable[str], *, type: type[T]) -> dict[str, T]: ...
    @overload
    def many(self, keys: Iterable[str], *, type: object = None) -> dict[str, Any]: ...
    def many(self, keys: Iterable[str], *, type: Any = None) -> dict[str, Any]:
        """The values of those keys that have one, in one round trip. `type`: of each value, as for `get`."""
        return run(self._engine().many([check_key(key) for key in keys], shape_of(type)))

    @overload
    async def amany(self, keys: Iterable[str], *, type: type[T]) -> dict[str, T]: ...
    @overload
    async def amany(self, keys: Iterable[str], *, type: object = None) -> dict[str, Any]: ...
    async def amany(self, keys: Iterable[str], *, type: Any = None) -> dict[str, Any]:
        """As `many`."""
        return await self._aengine().many([check_key(key) for key in keys], shape_of(type))

    def put_many(self, values: Mapping[str, object], ttl: TTL = None) -> bool:
        """Store several values in one round trip. Whether all were stored."""
        return run(self._engine().put({check_key(key): value for key, value in values.items()}, ttl, self._tags))

    async def aput_many(self, values: Mapping[str, object], ttl: TTL = None) -> bool:
        """As `put_many`."""
        return await self._aengine().put({check_key(key): value for key, value in values.items()}, ttl, self._tags)

    def forget_many(self, keys: Iterable[str]) -> int:
        """Remove several keys in one round trip. How many had something to remove."""
        return run(self._engine().forget([check_key(key) for key in keys]))

    async def aforget_many(self, keys: Iterable[str]) -> int:
        """As `forget_many`."""
        return await self._aengine().forget([check_key(key) for key in keys])

    @overload
    def remember_many(
        self,
        keys: Iterable[str],
        ttl: TTL = None,
        callback: ManyCallback[Any] = ...,
        *,
        type: type[T],
        **options: Unpack[Options],
    ) -> dict[str, T]: ...
    @overload
    def remember_many(
        self,
        keys: Iterable[str],
        ttl: TTL = None,
        callback: ManyCallback[T] = ...,
        *,
        type: object = None,
        **options: Unpack[Options],
    ) -> dict[str, T]: ...
    def remember_many(
        self,
        keys: Iterable[str],
        ttl: TTL = None,
        callback: ManyCallback[Any] = _no_callback,
        *,
        type: Any = None,
        **options: Unpack[Options],
    ) -> dict[str, Any]:
        """The values of keys; those missing are computed by one call of `callback` with the list of them, which gives a
        dict. Keys that it leaves out have no value, and nothing is stored for them.

        Each key is computed once, also where several callers or processes ask for overlapping lists at once: each
        calls back for what nobody else computes, and waits for the rest.

        Args:
            type: of each value, as for `remember`.
            options: see `Options`. With `grace`, values of before are given when the callback fails and all keys
                that it was called for have one. The timeouts are for the whole list.

        Raises:
            CallbackTimeout: nothing for some key within `hard_timeout`.
        """
        names = [check_key(key) for key in keys]
        plan = self._plan_many(callback, ttl, options, type)
        return run(ReadThroughMany(self._engine()).remember(names, plan))

    @overload
    async def aremember_many(
        self,
        keys: Iterable[str],
        ttl: TTL = None,
        callback: AsyncManyCallback[Any] = ...,
        *,
        type: type[T],
        **options: Unpack[Options],
    ) -> dict[str, T]: ...
    @overload
    async def aremember_many(
        self,
        keys: Iterable[str],
        ttl: TTL = None,
        callback: ManyCoroutines[T] = ...,
        *,
        type: object = None,
        **options: Unpack[Options],
    ) -> dict[str, T]: ...
    @overload
    async def aremember_many(
        self,
        keys: Iterable[str],
        ttl: TTL = None,
        callback: ManyCallback[T] = ...,
        *,
        type: object = None,
        **options: Unpack[Options],
    ) -> dict[str, T]: ...
    async def aremember_many(
        self,
        keys: Iterable[str],
        ttl: TTL = None,
        callback: AsyncManyCallback[Any] = _no_callback,
        *,
        type: Any = None,
        **options: Unpack[Options],
    ) -> dict[str, Any]:
        """As `remember_many`; the callback may be a coroutine function."""
        names = [check_key(key) for key in keys]
        plan = self._plan_many(callback, ttl, options, type)
        return await ReadThroughMany(self._aengine()).remember(names, plan)

    def _plan_many(self, callback: Callable[..., Any], ttl: TTL, options: Options, type: Any) -> Plan:
        lifetime, shape = self._engine().lifetime(ttl), shape_of(type)
        return Plan.of(callback, lifetime, self._tags, options, shape=shape)

    # Counting

    def increment(self, key: str, amount: int = 1, ttl: TTL = None) -> int:
        """Add to a whole number of 64 bits, atomically, and give the sum. A key without a value begins at 0 and
        lives for `ttl`.

        The end of a number that is there already stays. With the server gone the result is ``False``, which counts
        as 0.

        Raises:
            TypeError: the value is no whole number, or the amount is none.
            OverflowError: the sum needs more than 64 bits; the number stays as it was.
        """
        total = run(self._engine().increment(check_key(key), amount, ttl, self._tags))
        return False if total is None else total

    async def aincrement(self, key: str, amount: int = 1, ttl: TTL = None) -> int:
        """As `increment`."""
        total = await self._aengine().increment(check_key(key), amount, ttl, self._tags)
        return False if total is None else total

    def decrement(self, key: str, amount: int = 1, ttl: TTL = None) -> int:
        """As `increment`, the other way."""
        return self.increment(key, -amount, ttl)

    async def adecrement(self, key: str, amount: int = 1, ttl: TTL = None) -> int:
        """As `decrement`."""
        return await self.aincrement(key, -amount, ttl)


class Cache(Verbs):
    """A cache on a Redis or Valkey server, or in memory.

    Args:
        url: ``redis://…`` and the other dialects of `backburner.redis.url`, or ``memory://?policy=lru&max_items=10000``
            with the policies ``lru``, ``s3fifo``, ``lfu`` and ``ttl`` and, if wanted, ``&max_bytes=64MB``.
        prefix: put before every key on the server; `flush` removes what begins with it, and nothing else.
        default_ttl: how long entries live when nothing else is said; ``None``: for ever.
        serializer: ``json`` keeps types; ``pickle`` takes almost anything, and signs it.
        signing_key: at least 16 bytes, for ``pickle``.
        compression: ``zstd``, ``auto`` (zstd if the package zstandard is installed) or ``None``. On the server, not in
            memory, and only of values of more than 2 KB that become smaller by a tenth or more.
        max_value_bytes: encoded, before compression. A larger value is refused by `put` and `add`; what is computed is
            given to the caller and not stored, which is an event, or an error if the cache is strict.
        l1: keep copies of entries in use in this process, dropped as soon as the server says that they changed: a
            write in another process is seen within milliseconds, one's own at once. Needs a thread and a connection.
        l1_items: copies kept at most.
        l1_bytes: what they may take in memory, in bytes or as text: ``"64MB"``, ``"64MiB"``.
        l1_policy: which of them make room, as in the URL.
        timeout: seconds that connecting, and each reply, may take.
        lease: seconds after which a process that computes a value, and was killed, is replaced by another that waits
            for it. It does not limit callbacks: leases are renewed.
        strict: raise when the server cannot do something, instead of going on without it.
        clock: Unix time in seconds; for tests.

    Raises:
        ConfigError: an argument is wrong; the message says which.
    """

    _latest: tuple[Callable[[], object], Engine | None]
    """The event loop that used this last, and its engine."""

    def __init__(
        self,
        url: str = "redis://localhost:6379/0",
        *,
        prefix: str = "cache:",
        default_ttl: TTL = 3600,
        serializer: str = "json",
        signing_key: str | bytes | None = None,
        compression: str | None = "auto",
        max_value_bytes: int = 16 * 1024 * 1024,
        l1: bool = True,
        l1_items: int = 10_000,
        l1_bytes: int | str = "64MB",
        l1_policy: str = "s3fifo",
        timeout: float = 0.25,
        lease: float = 10.0,
        strict: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not prefix:
            raise ConfigError(
                "a cache needs a prefix, or flush() would remove everything on the server; write prefix='cache:'"
            )
        self.prefix = prefix
        self.codec = codec_for(serializer, signing_key.encode() if isinstance(signing_key, str) else signing_key)
        """Turns values into bytes. `codec.register` and `codec.register_model` teach it more types."""
        if max_value_bytes < 1:
            raise ConfigError(f"max_value_bytes={max_value_bytes}: nothing could be stored")
        self._max_value_bytes = max_value_bytes
        self._compression = Compression(compression, max_value_bytes)
        self.events = Events()
        """Subscribe here to be told what happens."""
        self.events.subscribe(TroubleLog(), *TROUBLE)
        self._url = url = for_prefix(url, prefix)
        self._timeout = timeout
        if not lease > 0:
            raise ConfigError(f"lease={lease!r}: seconds that a dead process is waited for; write lease=10")
        self._lease = lease
        self._strict = strict
        self._clock = clock
        self._default_ttl = FOREVER if default_ttl is None else seconds(default_ttl)
        self._counters = Counters()
        self.events.subscribe(self._counters.note, *COUNTED)
        self._owed = Owed()
        self._memory = MemoryStore.from_url(url) if url.startswith("memory://") else None
        self._server = "" if self._memory is not None else ServerURL.parse(url).masked
        self._near = None
        self._repeats = None if l1 else Repeats()
        if l1 and self._memory is None:
            self._near = Near(
                url,
                Keyspace(prefix),
                policy=l1_policy,
                max_items=l1_items,
                max_bytes=l1_bytes,
                timeout=timeout,
            )
            finalize(self, self._near.stop)
        self._local = self._memory if self._near is None else self._near
        if self._local is not None:
            self._local.on_evicted = self._counters.evicted
        self._start()
        _all_caches.add(self)

    @classmethod
    def from_settings(cls, settings: Settings, *, strict: bool = False) -> Self:
        """The cache that ``CACHE_*`` and ``REDIS_*`` describe."""
        key = settings.cache_signing_key
        return cls(
            settings.cache_url,
            prefix=settings.cache_prefix,
            default_ttl=settings.cache_default_ttl,
            serializer=settings.cache_serializer,
            signing_key=key.get_secret_value() if key else None,
            compression=None if settings.cache_compression == "none" else settings.cache_compression,
            max_value_bytes=settings.cache_max_value_bytes,
            l1=settings.cache_l1,
            l1_items=settings.cache_l1_items,
            l1_bytes=settings.cache_l1_bytes,
            l1_policy=settings.cache_l1_policy,
            timeout=settings.cache_timeout,
            strict=strict,
        )

    def __repr__(self) -> str:
        return f"<Cache {self._server or self._url} prefix={self.prefix!r}>"

    def tags(self, *tags: str) -> "TaggedCache":
        """The same cache, whose writes carry these tags; flushing any one of them makes them dead."""
        return TaggedCache(self, check_tags(tags))

    def memo(self) -> "MemoizedCache":
        """The same cache, which within one request, or another `memo_scope`, reads a key once and gives the same object
        from then on. Outside it is the cache itself."""
        from backburner.cache.memo import MemoizedCache  # here, since it builds on this module

        return MemoizedCache(self)

    def lock(self, name: str, ttl: Duration = 30, *, wait: Duration | None = None, owner: str | None = None) -> Lock:
        """A lock that one owner at a time can hold: ``with cache.lock("import", ttl=30): …``.

        Args:
            name: what only one may do at a time; locks and keys have nothing to do with each other.
            ttl: how long it is held at most, unless it is extended.
            wait: how long to wait for it at most; ``None``: as long as `ttl`.
            owner: the token of an owner elsewhere, to extend or release what that one acquired.
        """
        return Lock(self, name, ttl, wait, owner)

    def limiter(self, name: str, *, fail_open: bool = True) -> Limiter:
        """A rate limiter: ``if not cache.limiter("login").allow(address, "5/minute"): …``.

        Args:
            name: what is counted.
            fail_open: whether everything is allowed while the server does not answer, or nothing.
        """
        return Limiter(self, name, fail_open=fail_open)

    def flush(self) -> bool:
        """Remove everything under this cache's prefix, except locks and rate limits. Whether that was done; if not,
        it is before the next read."""
        return run(self._engine().flush())

    async def aflush(self) -> bool:
        """As `flush`."""
        return await self._aengine().flush()

    def explain(self, key: str) -> Explanation:
        """Why a read of a key finds what it finds: where its entry lies, its times, tags and size, and the reason for a
        miss. Print it. It changes nothing, and is not counted."""
        return run(self._engine().explain(check_key(key)))

    async def aexplain(self, key: str) -> Explanation:
        """As `explain`."""
        return await self._aengine().explain(check_key(key))

    def stats(self) -> Stats:
        """What happened so far."""
        namespaces = self._counters.snapshot()
        stats = Stats(
            namespaces=namespaces,
            available=not self._breaker.open,
            tracking=self._near.tracking if self._near is not None else None,
            memory_items=len(self._local) if self._local is not None else 0,
            memory_bytes=self._local.bytes if self._local is not None else 0,
        )
        for counts in namespaces.values():
            stats += counts
        return stats

    def namespace(self, key: str) -> str:
        """The namespace that `stats` counts a key in."""
        return self._counters.namespace(key)

    def close(self) -> None:
        """Close the connections of the blocking verbs. The cache can be used again; it connects anew."""
        if self._near is not None:
            self._near.stop()
        run(self._engine().store.close())

    async def aclose(self) -> None:
        """Close all connections: those of the blocking verbs, and those of the running event loop."""
        self._latest = (_no_loop, None)
        engine = self._aengines.pop(asyncio.get_running_loop(), None)
        if engine is not None:
            await engine.store.close()
        self.close()

    def _start(self) -> None:
        self._breaker = Breaker(
            on_open=lambda pause, error: self.events.emit(BreakerOpened(self._server, pause, error)),
            on_close=lambda elapsed: self.events.emit(BreakerClosed(self._server, elapsed)),
        )
        self._flights = Flights()
        self._leases = Leases(self._lease, lambda tokens: run(self._blocking.renew(tokens)))
        self._aengines: WeakKeyDictionary[asyncio.AbstractEventLoop, Engine] = WeakKeyDictionary()
        self._latest = (_no_loop, None)
        self._blocking = self._engine_with(self._store(BlockingClient, connect), BlockingRuntime(self._clock))

    def _after_fork(self) -> None:
        """Leave connections, locks and flights to the parent: a child that used them too would mix up both."""
        if self._local is not None:
            self._local.after_fork()
        self._counters.after_fork()
        self._start()

    def _engine(self) -> Engine:
        return self._blocking

    def _aengine(self) -> Engine:
        loop = asyncio.get_running_loop()
        known, engine = self._latest  # looked at first, since mostly it is the only one
        if known() is loop and engine is not None:
            return engine
        engine = self._aengines.get(loop)
        if engine is None:
            engine = self._aengines[loop] = self._engine_with(
                self._store(PipelinedClient, aconnect), AsyncioRuntime(self._clock)
            )
        self._latest = ref(loop), engine
        return engine

    def _engine_with(self, store: Store, runtime: BlockingRuntime | AsyncioRuntime) -> Engine:
        return Engine(
            store,
            runtime,
            codec=self.codec,
            flights=self._flights,
            owed=self._owed,
            events=self.events,
            counters=self._counters,
            default_ttl=self._default_ttl,
            max_value_bytes=self._max_value_bytes,
            leases=self._leases,
            strict=self._strict,
        )

    def _store(self, connector: Callable[..., Any], patient: Callable[..., Any]) -> Store:
        if self._memory is not None:
            return self._memory
        keyspace, name = Keyspace(self.prefix), "backburner-cache"
        client = connector(self._url, timeout=self._timeout, name=name)
        waiting = partial(patient, self._url, timeout=self._timeout + RedisStore.patience, name=name)
        far = RedisStore(client, waiting, keyspace, self._breaker, self.events, self._compression, self._repeats)
        if self._near is None:
            return far
        return TieredStore(self._near, far, keyspace, self.codec.decode, self._clock)

    def _peek(self, key: str) -> Entry | None:
        """A fresh entry that is in this process, as `_hit` finds it; not counted."""
        # Written out in `_hit` once more: a call there is what every hit would pay.
        local = self._local
        entry = local.peek(key) if local is not None else None
        if local is None or entry is None or (now := self._clock()) >= entry.refresh_at or now >= entry.fresh_until:
            return None
        if entry.tags and entry.tags_held_at != local.generation and local.flushed(entry):
            return None
        return entry

    def _count_hit(self, key: str, entry: Entry) -> None:
        """Note that an entry of `_peek` was given, and say so."""
        if entry.counts is None:
            entry.counts = self._counters.of(key).tiers["memory"]
        entry.counts.hits += 1
        if self.events.listening and Hit in self.events.listening:
            self.events.emit(Hit(key, "memory"))

    def _hit(self, key: str) -> object:
        """A fresh value that is in this process, without a coroutine, a lock or I/O; else `MISSING`."""
        local = self._local
        if local is None:
            return MISSING
        try:
            entry = local.peek(key)
        except TypeError:  # not hashable; check_key says so better
            return MISSING
        if entry is None or (now := self._clock()) >= entry.refresh_at or now >= entry.fresh_until:
            return MISSING
        if entry.tags and entry.tags_held_at != local.generation and local.flushed(entry):
            return MISSING
        value = entry.value
        if value is ENCODED and (value := self._blocking.value(key, entry)) is MISSING:
            return MISSING
        counts = entry.counts
        if counts is None:
            counts = entry.counts = self._counters.of(key).tiers["memory"]
        counts.hits += 1
        if self.events.listening and Hit in self.events.listening:
            self.events.emit(Hit(key, "memory"))
        return value

    def _hit_as(self, key: str, annotation: Any) -> object:
        """As `_hit`, of a type; `MISSING` also if it does not fit, which who looks again tells."""
        shape, entry = shape_of(annotation), self._peek(check_key(key))
        if shape is None or entry is None or (value := self._blocking.value(key, entry)) is MISSING:
            return MISSING
        try:
            value = shape.fit(value)
        except CodecError:
            return MISSING
        self._count_hit(key, entry)
        return value


class TaggedCache(Verbs):
    """A cache whose writes carry tags. Reads need no tags: an entry is one entry, whoever asks."""

    def __init__(self, cache: Cache, tags: tuple[str, ...]) -> None:
        self._cache = cache
        self._tags = tags

    # Asked for each time, since a fork gives the cache new ones.
    def _engine(self) -> Engine:
        return self._cache._engine()  # noqa: SLF001 - the other half of the same class

    def _aengine(self) -> Engine:
        return self._cache._aengine()  # noqa: SLF001

    def _hit(self, key: str) -> object:
        return self._cache._hit(key)  # noqa: SLF001

    def _hit_as(self, key: str, annotation: Any) -> object:
        return self._cache._hit_as(key, annotation)  # noqa: SLF001

    def __repr__(self) -> str:
        return f"<TaggedCache {self._tags} of {self._cache!r}>"

    def tags(self, *tags: str) -> "TaggedCache":
        """The same, with more tags."""
        return TaggedCache(self._cache, check_tags((*self._tags, *tags)))

    def flush(self) -> bool:
        """Make every entry with any of these tags dead, at once and at a cost that does not depend on their number.

        Whether that was done; if the server is gone, it is done before the next read from it.
        """
        return run(self._engine().flush_tags(self._tags))

    async def aflush(self) -> bool:
        """As `flush`."""
        return await self._aengine().flush_tags(self._tags)


_all_caches: WeakSet[Cache] = WeakSet()


def _reset_after_fork() -> None:
    for cache in list(_all_caches):
        cache._after_fork()  # noqa: SLF001 - same module


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_reset_after_fork)
