"""Caching and background jobs for FastAPI, Django and any other Python program, on Redis or Valkey and on Celery.

The public names are imported on first use, so that a program which only caches does not need Celery installed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backburner.cache import Cache
    from backburner.cache.decorators import cached
    from backburner.cache.default import default_cache, set_default_cache
    from backburner.http.decorator import cached_response
    from backburner.queue import Celery
    from backburner.settings import Settings

__all__ = ["Cache", "Celery", "Settings", "cached", "cached_response", "default_cache", "set_default_cache"]

_HOMES = {
    "Cache": "backburner.cache",
    "Celery": "backburner.queue",
    "Settings": "backburner.settings",
    "cached": "backburner.cache.decorators",
    "cached_response": "backburner.http.decorator",
    "default_cache": "backburner.cache.default",
    "set_default_cache": "backburner.cache.default",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
