"""The cache of a process that code uses which names none, such as a function under a bare `@cached`.

Built when first asked for, as ``CACHE_*`` and ``REDIS_*`` describe it, unless the application says what it is.
"""

from collections.abc import Callable
from threading import RLock

from backburner.cache.cache import Cache
from backburner.errors import ConfigError
from backburner.forking import in_forked_child
from backburner.settings import Settings

CacheSource = Cache | Callable[[], Cache]


def _from_environment() -> Cache:
    return Cache.from_settings(Settings())


class _Default:
    """The cache, or how to build it."""

    def __init__(self) -> None:
        self.build: Callable[[], Cache] = _from_environment
        self.built: Cache | None = None
        self.forget_lock()

    def forget_lock(self) -> None:
        """In a forked child: another thread of the parent may have held it."""
        self.lock = RLock()


_default = _Default()


def default_cache() -> Cache:
    """The process's cache: the same for all threads, until somebody sets another one.

    Raises:
        ConfigError: the environment describes none.
    """
    cache = _default.built
    if cache is not None:
        return cache
    with _default.lock:
        if _default.built is None:
            _default.built = _default.build()
        return _default.built


def set_default_cache(cache: CacheSource | None) -> CacheSource:
    """Say what the process's cache is: a cache, or a function that builds it and is called once, when it is first used.

    ``None``: the one of the environment again. Gives back what it was before, which is not closed.

    Raises:
        ConfigError: it is neither.
    """
    if not (cache is None or isinstance(cache, Cache) or callable(cache)):
        raise ConfigError(f"set_default_cache({cache!r}): give a Cache, or a function that builds one")
    with _default.lock:
        before: CacheSource = _default.built or _default.build
        if isinstance(cache, Cache):
            _default.built = cache
        else:
            _default.built, _default.build = None, cache or _from_environment
        return before


in_forked_child(_default.forget_lock)
