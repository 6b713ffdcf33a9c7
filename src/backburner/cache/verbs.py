"""The verbs that users call: each once for blocking code, and once with an `a` in front for asyncio.

They only check arguments and answer hits in memory; everything else is done by the engine that `Cache` provides.
"""

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any, NoReturn, TypeVar, Unpack, overload

from backburner.cache.context import Context
from backburner.cache.engine import FOREVER, MISSING, Engine
from backburner.cache.entry import TTL, Duration
from backburner.cache.keys import check_key, check_keys, check_values
from backburner.cache.plan import FlexibleOptions, Options, Plan
from backburner.cache.remember import ReadThrough
from backburner.cache.remember_many import ReadThroughMany
from backburner.cache.runtime import run
from backburner.cache.shape import Shape, shape_of

T = TypeVar("T")
D = TypeVar("D")

Callback = Callable[[], T] | Callable[[Context], T]
"""Computes a value; may take a `Context`, to influence how it is stored."""
Coroutines = Callback[Awaitable[T]]
AsyncCallback = Callback[T] | Coroutines[T]
ManyCallback = Callable[[list[str]], Mapping[str, T]]
"""Computes the values of the keys in a list."""
ManyCoroutines = Callable[[list[str]], Awaitable[Mapping[str, T]]]
AsyncManyCallback = ManyCallback[T] | ManyCoroutines[T]


def _no_callback(*_: object) -> NoReturn:
    raise TypeError("remember needs a callback, which computes the value: remember(key, ttl=300, callback=load)")


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
    """The verbs of `Cache`, `TaggedCache` and `MemoizedCache`.

    A `ttl` is a number of seconds, a `timedelta` or text such as ``"10m"``; ``None`` means the cache's default, and
    zero or less removes the key. Keys are text. Values come back equal and of the same type; one that cannot is refused
    with a `CodecError`. While the server is away, reads find nothing and writes return ``False``, unless the cache is
    strict.

    Raises:
        ValueError: a key, tag or ttl is invalid.
        CodecError: a value cannot be stored; the message says what to do.
        ValueTooLarge: a value to be stored has more bytes than the cache allows.
        StoreError: any other failure of the server; only if the cache is strict.
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

    def tags(self, *tags: str) -> "Verbs":
        """The same cache, but its writes carry these tags."""
        raise NotImplementedError

    def flush(self) -> bool:
        """Remove everything, or what carries the tags. Returns whether that was done."""
        raise NotImplementedError

    async def aflush(self) -> bool:
        """As `flush`."""
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
            type: what the value must be, such as ``list[Book]``. pydantic checks it, and converts where it usually
                does. A value that does not fit counts as missing, and is reported by the event `Undecodable`.
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
        """Whether a key has a value; ``None`` is one."""
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
        """Store a value. Returns whether it was stored."""
        return run(self._engine().put({check_key(key): value}, ttl, self._tags))

    async def aput(self, key: str, value: object, ttl: TTL = None) -> bool:
        """As `put`."""
        return await self._aengine().put({check_key(key): value}, ttl, self._tags)

    def forever(self, key: str, value: object) -> bool:
        """Store a value that does not expire. Returns whether it was stored."""
        return self.put(key, value, FOREVER)

    async def aforever(self, key: str, value: object) -> bool:
        """As `forever`."""
        return await self.aput(key, value, FOREVER)

    def add(self, key: str, value: object, ttl: TTL = None) -> bool:
        """Store a value if the key has none; of several callers, one succeeds. Returns whether it was stored."""
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
        """Remove a key and return its value, or the default; of several callers, one gets it. `type`: as for `get`."""
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
        """Remove a key. Returns whether there was something to remove."""
        return run(self._engine().forget((check_key(key),))) > 0

    async def aforget(self, key: str) -> bool:
        """As `forget`."""
        return await self._aengine().forget((check_key(key),)) > 0

    def touch(self, key: str, ttl: TTL = None) -> bool:
        """Let a key's value live for `ttl` from now on. Returns whether it had one."""
        return run(self._engine().touch(check_key(key), ttl))

    async def atouch(self, key: str, ttl: TTL = None) -> bool:
        """As `touch`."""
        return await self._aengine().touch(check_key(key), ttl)

    def expire(self, key: str) -> bool:
        """Make a key's value stale: it is no longer returned, except in place of a callback that fails to replace it.
        Returns whether the key had one."""
        return run(self._engine().expire(check_key(key)))

    async def aexpire(self, key: str) -> bool:
        """As `expire`."""
        return await self._aengine().expire(check_key(key))

    # Reading through

    # The options are listed one by one: for `**options`, Python would build a dict at every hit.

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
        """The value of a key; if it has none, call `callback`, store its result and return it.

        Of several callers, one calls the callback and the others wait for it, also among processes. What the callback
        raises reaches all of them unchanged, and nothing is stored. If the key is removed, or one of its tags flushed,
        while the callback runs, the caller still gets the value, but it is not stored. Shortly before a value expires,
        one caller renews it while the others still get it; the longer the callback takes, the earlier.

        For the options (grace, timeouts, negative caching, jitter) see `Options`. `type`: what the value must be, as
        for `get`; a stored value that does not fit is computed again, and the callback's result must fit, too.

        Raises:
            CodecError: the callback's result cannot be stored, or does not fit `type`.
            RuntimeError: the callback asks for the key that it computes.
            CallbackTimeout: there was no value within `hard_timeout`.
        """
        value = self._hit(key) if type is None else self._hit_as(key, type)
        if value is MISSING:
            options = _said(grace, soft_timeout, hard_timeout, none_ttl, jitter, throttle)
            plan = self._plan(callback, ttl, options, type)
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
            plan = self._plan(callback, ttl, options, type)
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
        """As `remember`, for a value that does not expire."""
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
        """As `remember`, but nobody waits for a renewal: with ``ttl=(fresh, stale)``, a value older than `fresh` is
        returned at once and renewed in the background; only one older than `stale` is waited for.

        The callback may run after the caller has gone on, in another thread: it must not use what belongs to the
        caller's request, such as its database session.

        The options are those of `remember`, except `grace`, whose place `stale` takes.

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
        """As `flexible`; the background is a task on this event loop."""
        value = self._hit(key) if type is None else self._hit_as(key, type)
        if value is MISSING:
            options = _said(None, soft_timeout, hard_timeout, none_ttl, jitter, throttle)
            plan = Plan.flexible(callback, ttl, self._tags, options, shape=shape_of(type))
            value = await self._read_through(self._aengine()).remember(check_key(key), plan)
        return value

    def _plan(self, callback: Callable[..., Any], ttl: TTL, options: Mapping[str, Any], type: Any) -> Plan:
        lifetime, shape = self._engine().lifetime(ttl), shape_of(type)
        return Plan.of(callback, lifetime, self._tags, options, shape=shape)

    def _read_through(self, engine: Engine) -> ReadThrough:
        return ReadThrough(engine, self._engine())

    # Several values

    @overload
    def many(self, keys: Iterable[str], *, type: type[T]) -> dict[str, T]: ...
    @overload
    def many(self, keys: Iterable[str], *, type: object = None) -> dict[str, Any]: ...
    def many(self, keys: Iterable[str], *, type: Any = None) -> dict[str, Any]:
        """The values of those keys that have one, in one round trip. `type`: of each value, as for `get`."""
        return run(self._engine().many(check_keys(keys), shape_of(type)))

    @overload
    async def amany(self, keys: Iterable[str], *, type: type[T]) -> dict[str, T]: ...
    @overload
    async def amany(self, keys: Iterable[str], *, type: object = None) -> dict[str, Any]: ...
    async def amany(self, keys: Iterable[str], *, type: Any = None) -> dict[str, Any]:
        """As `many`."""
        return await self._aengine().many(check_keys(keys), shape_of(type))

    def put_many(self, values: Mapping[str, object], ttl: TTL = None) -> bool:
        """Store several values in one round trip. Returns whether all were stored."""
        return run(self._engine().put(check_values(values), ttl, self._tags))

    async def aput_many(self, values: Mapping[str, object], ttl: TTL = None) -> bool:
        """As `put_many`."""
        return await self._aengine().put(check_values(values), ttl, self._tags)

    def forget_many(self, keys: Iterable[str]) -> int:
        """Remove several keys in one round trip. Returns how many had something to remove."""
        return run(self._engine().forget(check_keys(keys)))

    async def aforget_many(self, keys: Iterable[str]) -> int:
        """As `forget_many`."""
        return await self._aengine().forget(check_keys(keys))

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
        """The values of several keys. Missing ones are computed by one call of `callback`, which is given the list of
        these keys and returns a dict. Keys that it leaves out have no value, and nothing is stored for them.

        Each key is computed once, even if several callers or processes ask for overlapping lists at the same time: each
        computes the keys that nobody else is computing, and waits for the others.

        Args:
            type: of each value, as for `remember`.
            options: see `Options`. With `grace`, previous values are returned if the callback fails and every key that
                it was called for has one. Timeouts apply to the list as a whole.

        Raises:
            CallbackTimeout: some key had no value within `hard_timeout`.
        """
        names = check_keys(keys)
        plan = self._plan(callback, ttl, options, type)
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
        names = check_keys(keys)
        plan = self._plan(callback, ttl, options, type)
        return await ReadThroughMany(self._aengine()).remember(names, plan)

    # Counting

    def increment(self, key: str, amount: int = 1, ttl: TTL = None) -> int:
        """Add to a 64-bit integer, atomically, and return the sum. A key without a value begins at 0 and lives for
        `ttl`; an existing number keeps its time of expiry.

        While the server is away the result is ``False``, which counts as 0.

        Raises:
            TypeError: the value or the amount is not an integer.
            OverflowError: the sum needs more than 64 bits; the number stays as it was.
        """
        total = run(self._engine().increment(check_key(key), amount, ttl, self._tags))
        return False if total is None else total

    async def aincrement(self, key: str, amount: int = 1, ttl: TTL = None) -> int:
        """As `increment`."""
        total = await self._aengine().increment(check_key(key), amount, ttl, self._tags)
        return False if total is None else total

    def decrement(self, key: str, amount: int = 1, ttl: TTL = None) -> int:
        """As `increment`, but subtract."""
        return self.increment(key, -amount, ttl)

    async def adecrement(self, key: str, amount: int = 1, ttl: TTL = None) -> int:
        """As `decrement`."""
        return await self.aincrement(key, -amount, ttl)
