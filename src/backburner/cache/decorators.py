"""`@cached`: functions and methods whose results are remembered, blocking and asyncio.

The decorated function has the signature of the original. It answers hits in this process itself; everything else is
done by `Cache.remember` and `Cache.flexible`, with all that they promise: one computation at a time, tags, grace.
"""

import ast
import inspect
from collections.abc import Callable, Coroutine, Sequence
from functools import partial, update_wrapper
from types import MethodType
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar, Unpack, overload

from backburner.cache.cache import Cache, TaggedCache
from backburner.cache.compiled import call, compiled, forward, load
from backburner.cache.default import default_cache
from backburner.cache.engine import MISSING
from backburner.cache.entry import TTL, Duration, seconds
from backburner.cache.keys import check_key, check_tags
from backburner.cache.memo import MemoizedCache
from backburner.cache.plan import Options, Plan
from backburner.cache.shape import Shape, shape_of_result
from backburner.cache.templates import KeyExpression, Templates
from backburner.cache.verbs import Verbs
from backburner.errors import ConfigError

P = ParamSpec("P")
Q = ParamSpec("Q")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
S = TypeVar("S")

Lifetime = TTL | tuple[Duration, Duration]
AnyCache = Cache | TaggedCache | MemoizedCache
Source = AnyCache | Callable[[], AnyCache]


class CachedFunction(Protocol[P, T_co]):
    """A cached `def`. It is called as before; its own methods take the same arguments."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T_co: ...

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """The key under which the result for these arguments is cached."""
        ...

    def forget(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Remove the result for these arguments. Whether there was one."""
        ...

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> T_co:
        """Forget the result for these arguments, and compute it anew. Who asks meanwhile waits for it."""
        ...

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(
        self: "CachedFunction[Concatenate[S, Q], T]", instance: S, owner: type | None = None
    ) -> "CachedFunction[Q, T]": ...


class AsyncCachedFunction(Protocol[P, T_co]):
    """A cached `async def`. It is awaited as before; its own methods, all but `key` awaited too, take the same
    arguments."""

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T_co: ...

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """The key under which the result for these arguments is cached."""
        ...

    async def forget(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Remove the result for these arguments. Whether there was one."""
        ...

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> T_co:
        """Forget the result for these arguments, and compute it anew. Who asks meanwhile waits for it."""
        ...

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(
        self: "AsyncCachedFunction[Concatenate[S, Q], T]", instance: S, owner: type | None = None
    ) -> "AsyncCachedFunction[Q, T]": ...


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
    cache: Source = default_cache,
    typed: bool = False,
    **options: Unpack[Options],
) -> _Decorator: ...
def cached(
    function: Callable[..., Any] | None = None,
    /,
    *,
    ttl: Lifetime = None,
    key: str | None = None,
    tags: Sequence[str] = (),
    namespace: str = "",
    cache: Source = default_cache,
    typed: bool = False,
    **options: Unpack[Options],
) -> Any:
    """Remember a function's results by its arguments.

    Args:
        ttl: how long results are fresh; ``(fresh, stale)`` as for `Cache.flexible`; ``None``: the cache's default.
        key: a template over the arguments, such as ``"user:{user_id}"``. By default, the key is made of the function's
            name and all arguments; for a method, of the class of its object instead of the object itself.
        tags: templates, too; flushing any of these tags invalidates the result.
        namespace: put before the key, with a colon.
        cache: where results are kept: a cache, or a function that returns one and is called each time. By default, the
            process's `default_cache`.
        typed: whether results must be what the function's return annotation says, such as ``-> list[Book]``. pydantic
            checks cached values, and converts where it usually does; one that does not fit is computed again. If the
            function's own result does not fit, that is a `CodecError`.
        options: as for `Cache.remember`: grace, timeouts, negative caching, jitter.

    Raises:
        ConfigError: a template names something that is not an argument, or cannot tell different arguments apart; or,
            with `typed`, the annotation is missing or unusable.
        ValueError: a ttl or an option is invalid.
        TypeError: the function cannot be cached; or, when it is called, an argument cannot be part of a key. The
            message says what to do.
    """

    def decorate(decorated: Any) -> Any:
        binding = type(decorated) if isinstance(decorated, (classmethod, staticmethod)) else None
        plain = decorated if binding is None else decorated.__func__
        _refuse_what_cannot_be_cached(plain)
        shape = shape_of_result(plain) if typed else None
        made = _Calls(plain, ttl, key, tags, namespace, cache, shape, options).function()
        if binding is staticmethod:
            return staticmethod(made)
        if binding is classmethod or _in_class(plain):
            return _CachedMethod(made, of_class=binding is classmethod)
        return made

    return decorate if function is None else decorate(function)


class _Calls:
    """What the calls of one cached function have in common."""

    def __init__(
        self,
        function: Callable[..., Any],
        ttl: Lifetime,
        key: str | None,
        tags: Sequence[str],
        namespace: str,
        cache: Source,
        shape: Shape | None,
        options: Options,
    ) -> None:
        if not (isinstance(cache, Verbs) or callable(cache)):
            raise ConfigError(f"cache={cache!r}: give a Cache, or a function that gives one")
        # Invalid options are refused here, not at each call.
        if isinstance(ttl, tuple):
            Plan.flexible(function, ttl, (), options)
        else:
            Plan.of(function, 0 if ttl is None else seconds(ttl), (), options)
        self._function = function
        self._asynchronous = inspect.iscoroutinefunction(function)
        self._ttl = ttl
        self._shape = shape
        self._options = options
        self._verb = f"{'a' * self._asynchronous}{'flexible' if isinstance(ttl, tuple) else 'remember'}"
        self._cache: Source = cache
        self._name = _qualified_name(function).rpartition(".")[2]
        self._signature = inspect.signature(function)
        prefix = f"{check_key(namespace)}:" if namespace else ""
        templates = Templates(self._name, self._signature)
        self._key = templates.key(key, prefix) if key is not None else self._default_key(templates, prefix)
        self.key = compiled(self._name, self._signature, self._key.key, self._key.names)
        self._tags = compiled(self._name, self._signature, *templates.tags(check_tags(tags))) if tags else None

    def function(self) -> Callable[..., Any]:
        """The function that users call, with its methods. It answers a hit without a further Python call."""
        source, names = self._cache, {**self._key.names, "<missing>": MISSING, "<read>": self.read}
        # The shortcut that `Cache.remember` begins with, too.
        short_cut, asked = "_hit", [self._key.probe]
        if self._shape is not None:
            short_cut, asked, names["<shape>"] = "_hit_as", [self._key.probe, load("<shape>")], self._shape
        if isinstance(source, Verbs):
            hit = call("<hit>", *asked)
            names["<hit>"] = getattr(source, short_cut)
        else:
            hit = ast.Call(ast.Attribute(call("<cache>"), short_cut, ast.Load()), asked, [])
            names["<cache>"] = source
        found = ast.NamedExpr(ast.Name("<value>", ast.Store()), hit)
        read: ast.expr = forward("<read>", self._signature)
        value = ast.IfExp(
            ast.Compare(found, [ast.Is()], [load("<missing>")]),
            ast.Await(read) if self._asynchronous else read,
            load("<value>"),
        )
        made: Any = compiled(self._name, self._signature, value, names, asynchronous=self._asynchronous)
        update_wrapper(made, self._function)
        made.key = self.key
        made.forget, made.refresh = (self.aforget, self.arefresh) if self._asynchronous else (self.forget, self.refresh)
        return made  # type: ignore[no-any-return]

    def read(self, /, *arguments: Any, **keywords: Any) -> Any:
        """The cached result for these arguments, or else the function's; an awaitable if the function is async."""
        cache = self._source()
        if self._tags is not None:
            cache = cache.tags(*self._tags(*arguments, **keywords))
        read = getattr(cache, self._verb)
        key = self.key(*arguments, **keywords)
        compute = lambda: self._function(*arguments, **keywords)  # noqa: E731  # takes no `Context`
        return read(key, self._ttl, compute, type=self._shape, **self._options)

    def forget(self, /, *arguments: Any, **keywords: Any) -> bool:
        return self._source().forget(self.key(*arguments, **keywords))

    async def aforget(self, /, *arguments: Any, **keywords: Any) -> bool:
        return await self._source().aforget(self.key(*arguments, **keywords))

    def refresh(self, /, *arguments: Any, **keywords: Any) -> Any:
        self.forget(*arguments, **keywords)
        return self.read(*arguments, **keywords)

    async def arefresh(self, /, *arguments: Any, **keywords: Any) -> Any:
        await self.aforget(*arguments, **keywords)
        return await self.read(*arguments, **keywords)

    def _source(self) -> AnyCache:
        return self._cache() if callable(self._cache) else self._cache

    def _default_key(self, templates: Templates, prefix: str) -> KeyExpression:
        function = self._function
        if self._name == "<lambda>" or isinstance(function, (partial, MethodType)):
            raise ConfigError(
                f"{function!r} has no name that is its own and that a key could begin with: give @cached a key=…"
            )
        first = next(iter(self._signature.parameters), None)
        if first in ("self", "cls") and _in_class(function):
            return templates.default_key(self._name, prefix, owner=first)
        return templates.default_key(f"{function.__module__}.{function.__qualname__}", prefix, owner=None)


_VERBS = frozenset({"key", "forget", "refresh"})
_NAMES = frozenset({"__name__", "__qualname__"})


class _CachedMethod:
    """A cached function in the body of a class."""

    def __init__(self, function: Callable[..., Any], *, of_class: bool) -> None:
        update_wrapper(self, function)
        self._function = function
        self._of_class = of_class

    def __call__(self, /, *arguments: Any, **keywords: Any) -> Any:  # with a @staticmethod above
        return self._function(*arguments, **keywords)

    def __get__(self, instance: object, owner: type | None = None) -> Callable[..., Any]:
        target = owner if self._of_class else instance
        return self._function if target is None else _BoundMethod(self._function, target)


class _BoundMethod(partial[Any]):
    """A cached method bound to its object or class; so are the methods of the cached function."""

    def __getattr__(self, name: str) -> Any:
        if name in _VERBS:
            return partial(getattr(self.func, name), *self.args)
        if name in _NAMES:
            return getattr(self.func, name)
        raise AttributeError(f"{self!r} has no attribute {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.args[0], self.func.__name__)  # as bound methods are

    def __repr__(self) -> str:
        return f"<bound method {self.func.__qualname__} of {self.args[0]!r}>"


def _refuse_what_cannot_be_cached(function: Any) -> None:
    if hasattr(function, "refresh") and hasattr(function, "forget"):
        raise TypeError(f"{function!r} is cached already; one @cached is enough")
    if not (inspect.isroutine(function) or isinstance(function, partial)):
        raise TypeError(f"@cached is for functions and methods, not for {function!r}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(
            f"{_qualified_name(function)}() yields its results one by one, and a cache keeps a value: return a list "
            "instead"
        )


def _qualified_name(function: Any) -> str:
    while isinstance(function, partial):
        function = function.func
    return str(function.__qualname__)


def _in_class(function: Any) -> bool:
    """Whether a function was defined in the body of a class."""
    parent = "" if isinstance(function, (partial, MethodType)) else function.__qualname__.rpartition(".")[0]
    return bool(parent) and not parent.endswith("<locals>")
