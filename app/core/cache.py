"""The caches: `cache()` for what can be computed again, `sessions()` for login sessions."""

from functools import lru_cache

from app.core.config import settings
from app.models.book import Book
from app.models.user import User
from backburner import Cache, default_cache, set_default_cache


def cache() -> Cache:
    """The process's cache, which functions under `@cached` use, too."""
    return default_cache()


def _build() -> Cache:
    """It knows our models: ``cache().put("user:1", user)`` works."""
    built = Cache.from_settings(settings)
    built.codec.register_model(Book, tag="book")
    built.codec.register_model(User, tag="user", exclude={"password_hash"})
    return built


@lru_cache(maxsize=1)
def sessions() -> Cache:
    """Where login sessions are kept. They cannot be computed again, so they have a prefix of their own, which
    ``cache().flush()`` does not touch, and a server that does not answer is an error, never "not logged in". There are
    no copies in this process: a user who logs out is logged out everywhere.
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
    """Close the connections."""
    await cache().aclose()
    sessions().close()


set_default_cache(_build)
