"""The caches: `cache()` for what can be computed again, `sessions()` for who is logged in."""

from functools import lru_cache

from app.core.config import settings
from app.models.book import Book
from app.models.user import User
from backburner import Cache, default_cache, set_default_cache


def cache() -> Cache:
    """The process's cache, which functions under `@cached` use too."""
    return default_cache()


def _build() -> Cache:
    """It knows our models: ``cache().put("user:1", user)`` works."""
    built = Cache.from_settings(settings)
    built.codec.register_model(Book, tag="book")
    built.codec.register_model(User, tag="user", exclude={"password_hash"})
    return built


@lru_cache(maxsize=1)
def sessions() -> Cache:
    """Where login sessions are kept. They are not computed again, so they have a prefix of their own, which
    ``cache().flush()`` leaves alone, and a server that does not answer is an error, never "not logged in". No copies in
    this process: who logs out is out everywhere.
    """
    return Cache(
        settings.cache_url,
        prefix="session:",
        default_ttl=settings.session_ttl,
        timeout=settings.cache_timeout,
        l1=False,
        strict=True,
    )


async def close_caches() -> None:
    """Let go of the connections."""
    await cache().aclose()
    sessions().close()


set_default_cache(_build)
