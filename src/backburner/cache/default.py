"""The process's default cache, used by code that names none, such as a function under a bare `@cached`.

It is built when it is first needed, from ``CACHE_*`` and ``REDIS_*``, unless the application sets another one.
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
    """The process's default cache: the same for all threads, until another one is set.

    Raises:
        ConfigError: the settings in the environment are invalid.
    """
    cache = _default.built
    if cache is not None:
        return cache
    with _default.lock:
        if _default.built is None:
            _default.built = _default.build()
        return _default.built


def set_default_cache(cache: CacheSource | None) -> CacheSource:
    """Set the process's default cache: a cache, or a function that builds it, called once, when it is first needed.

    ``None`` goes back to the one described by the environment. Returns the previous one, which is not closed.

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
