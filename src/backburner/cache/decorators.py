"""`@cached`: a function whose results are remembered, for blocking and asyncio code, methods included.

The key is compiled once from the signature (see `templates`); all else is `Cache.remember` and `Cache.flexible`, with
their promises: one computation at a time, tags, grace. Nothing is cached here.
"""

import inspect
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache, update_wrapper
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar, cast, overload

from backburner.cache.cache import Cache, TaggedCache
from backburner.cache.engine import MISSING
from backburner.cache.entry import TTL, Duration, seconds
from backburner.cache.keys import check_key, check_tags
from backburner.cache.templates import Templates
from backburner.errors import ConfigError
from backburner.settings import Settings

P = ParamSpec("P")
Q = ParamSpec("Q")
T = TypeVar("T")
S = TypeVar("S")

Lifetime = TTL | tuple[Duration, Duration]


@lru_cache(maxsize=1)
def default_cache() -> Cache:
    """The cache of functions that name none: one for the process, as ``CACHE_*`` and ``REDIS_*`` describe it."""
    return Cache.from_settings(Settings())


class _Binds(Enum):
    """What a class that holds the function puts before its arguments."""

    OBJECT = auto()
    CLASS = auto()
    NOTHING = auto()


@dataclass(frozen=True, slots=True)
class _Recipe:
    """What all calls of one cached function have in common."""

    function: Callable[..., Any]
    key: Callable[..., str]
    tags: Callable[..., tuple[str, ...]] | None
    cache: Callable[[], Cache]
    hit: Callable[[str], object]
    """The value of a key if it is in this process and fresh, else `MISSING`."""
    ttl: Lifetime
    grace: Duration
    binds: _Binds

    def tagged(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Cache | TaggedCache:
        cache = self.cache()
        return cache if self.tags is None else cache.tags(*self.tags(*arguments, **keywords))


class _Cached(Generic[P, T]):
    """A function, or a method bound to its object, with the recipe for caching it."""

    def __init__(self, recipe: _Recipe, bound: tuple[Any, ...] = ()) -> None:
        self._recipe = recipe
        self._bound = bound

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """The key under which the result for these arguments is cached."""
        return self._recipe.key(*self._bound, *args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        function = self._recipe.function
        return inspect.signature(MethodType(function, *self._bound) if self._bound else function)

    def __reduce__(self) -> str | tuple[Any, ...]:
        # By its name, as functions are.
        name = self._recipe.function.__name__
        return (getattr, (*self._bound, name)) if self._bound else self._recipe.function.__qualname__

    def __repr__(self) -> str:
        return f"<cached {self._recipe.function!r}>"

    def _get(self, instance: object, owner: type | None) -> Self:
        binds = self._recipe.binds
        if binds is _Binds.OBJECT:
            return self if instance is None else type(self)(self._recipe, (instance,))
        return self if binds is _Binds.NOTHING else type(self)(self._recipe, (owner,))


class CachedFunction(_Cached[P, T]):
    """A cached `def`: called as before, with verbs that take the same arguments."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        recipe = self._recipe
        arguments = self._bound + args  # costs nothing for a function, which has nothing bound
        key = recipe.key(*arguments, **kwargs)
        value = recipe.hit(key)
        if value is not MISSING:
            return value  # type: ignore[return-value]
        return self._read(key, arguments, kwargs)

    def forget(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Remove the result for these arguments. Whether there was one."""
        return self._recipe.cache().forget(self.key(*args, **kwargs))

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Forget the result for these arguments, and compute it anew. Who asks meanwhile waits for it."""
        key = self.key(*args, **kwargs)
        self._recipe.cache().forget(key)
        return self._read(key, (*self._bound, *args), kwargs)

    def _read(self, key: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> T:
        recipe = self._recipe
        cache = recipe.tagged(arguments, keywords)

        def compute() -> T:
            return cast("T", recipe.function(*arguments, **keywords))

        if isinstance(recipe.ttl, tuple):
            return cache.flexible(key, recipe.ttl, compute)
        return cache.remember(key, recipe.ttl, compute, grace=recipe.grace)

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(
        self: "CachedFunction[Concatenate[S, Q], T]", instance: S, owner: type | None = None
    ) -> "CachedFunction[Q, T]": ...
    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self._get(instance, owner)


class AsyncCachedFunction(_Cached[P, T]):
    """A cached `async def`: awaited as before, and so are its verbs, which take the same arguments."""

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        recipe = self._recipe
        arguments = self._bound + args
        key = recipe.key(*arguments, **kwargs)
        value = recipe.hit(key)
        if value is not MISSING:
            return value  # type: ignore[return-value]
        return await self._read(key, arguments, kwargs)

    async def forget(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Remove the result for these arguments. Whether there was one."""
        return await self._recipe.cache().aforget(self.key(*args, **kwargs))

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Forget the result for these arguments, and compute it anew. Who asks meanwhile waits for it."""
        key = self.key(*args, **kwargs)
        await self._recipe.cache().aforget(key)
        return await self._read(key, (*self._bound, *args), kwargs)

    async def _read(self, key: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> T:
        recipe = self._recipe
        cache = recipe.tagged(arguments, keywords)

        def compute() -> Awaitable[T]:
            return cast("Awaitable[T]", recipe.function(*arguments, **keywords))

        if isinstance(recipe.ttl, tuple):
            return await cache.aflexible(key, recipe.ttl, compute)
        return await cache.aremember(key, recipe.ttl, compute, grace=recipe.grace)

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(
        self: "AsyncCachedFunction[Concatenate[S, Q], T]", instance: S, owner: type | None = None
    ) -> "AsyncCachedFunction[Q, T]": ...
    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self._get(instance, owner)


class _Decorator(Protocol):
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, T]], /) -> AsyncCachedFunction[P, T]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, function: Callable[P, T], /) -> CachedFunction[P, T]: ...
    def __call__(self, function: Callable[..., Any], /) -> Any: ...


@overload
def cached(function: Callable[P, Coroutine[Any, Any, T]], /) -> AsyncCachedFunction[P, T]: ...  # type: ignore[overload-overlap]
@overload
def cached(function: Callable[P, T], /) -> CachedFunction[P, T]: ...
@overload
def cached(
    *,
    ttl: Lifetime = None,
    key: str | None = None,
    tags: Sequence[str] = (),
    namespace: str = "",
    grace: Duration = 0,
    cache: Cache | Callable[[], Cache] = default_cache,
) -> _Decorator: ...
def cached(
    function: Callable[..., Any] | None = None,
    /,
    *,
    ttl: Lifetime = None,
    key: str | None = None,
    tags: Sequence[str] = (),
    namespace: str = "",
    grace: Duration = 0,
    cache: Cache | Callable[[], Cache] = default_cache,
) -> Any:
    """Remember what a function gives for its arguments.

    Args:
        ttl: how long results are fresh; ``(fresh, stale)`` as for `Cache.flexible`; ``None``: the cache's default.
        key: a template of the arguments, such as ``"user:{user_id}"``. Without one the key is made of the function's
            name and all arguments; of a method, the class of its object counts, and the object itself does not.
        tags: templates too; flushing any of them kills the result.
        namespace: put before the key, with a colon.
        grace: how much longer a result is kept for when the function fails; as for `Cache.remember`.
        cache: where results are kept: a cache, or a function that gives one and is asked with each call. Without it,
            one cache for the process as the settings describe it.

    Raises:
        ConfigError: the template names what is no argument, or the function cannot be cached.
        TypeError: (when called) an argument cannot be part of a key; the message says what to do.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        return _cached(function, ttl, key, tags, namespace, grace, cache)

    return decorate if function is None else decorate(function)


def _cached(
    decorated: Any,
    ttl: Lifetime,
    key: str | None,
    tags: Sequence[str],
    namespace: str,
    grace: Duration,
    cache: Cache | Callable[[], Cache],
) -> Any:
    function = decorated.__func__ if isinstance(decorated, (classmethod, staticmethod)) else decorated
    _refuse_what_cannot_be_cached(function)
    if not (isinstance(cache, Cache) or callable(cache)):
        raise ConfigError(f"cache={cache!r}: give a Cache, or a function that gives one")
    for duration in ttl if isinstance(ttl, tuple) else (ttl,):
        if duration is not None:
            seconds(duration)
    signature = inspect.signature(function)
    prefix = f"{check_key(namespace)}:" if namespace else ""
    templates = Templates(function.__name__, signature)
    recipe = _Recipe(
        function,
        templates.key(key, prefix) if key is not None else _default_key(templates, function, signature, prefix),
        templates.tags(check_tags(tags)) if tags else None,
        *_doors(cache),
        ttl,
        grace,
        {classmethod: _Binds.CLASS, staticmethod: _Binds.NOTHING}.get(type(decorated), _Binds.OBJECT),
    )
    kind = AsyncCachedFunction if inspect.iscoroutinefunction(function) else CachedFunction
    return update_wrapper(kind(recipe), function)


def _doors(cache: Cache | Callable[[], Cache]) -> tuple[Callable[[], Cache], Callable[[str], object]]:
    if isinstance(cache, Cache):
        return lambda: cache, cache._hit  # noqa: SLF001 - the short cut that `Cache.remember` begins with
    return cache, lambda key: cache()._hit(key)  # noqa: SLF001


def _refuse_what_cannot_be_cached(function: Any) -> None:
    if isinstance(function, _Cached):
        raise ConfigError(f"{function!r} is cached already; one @cached is enough")
    if not inspect.isroutine(function):
        raise ConfigError(f"@cached is for functions and methods, not for {function!r}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError(
            f"{function.__qualname__}() yields its results one by one, and a cache keeps a value: return a list instead"
        )


def _default_key(templates: Templates, function: Any, signature: inspect.Signature, prefix: str) -> Callable[..., str]:
    if function.__name__ == "<lambda>":
        raise ConfigError("a lambda has no name of its own that a key could begin with: give @cached a key=…")
    first = next(iter(signature.parameters), None)
    parent, _, name = function.__qualname__.rpartition(".")
    if first in ("self", "cls") and parent and not parent.endswith("<locals>"):
        return templates.default_key(name, prefix, owner=first)
    return templates.default_key(f"{function.__module__}.{function.__qualname__}", prefix, owner=None)
