"""What the owner of an application decides about the caching of its responses, where HTTP leaves a choice.

The defaults are those of a cache in front of one's own application: responses themselves say whether they may be
stored, clients cannot force the application to run, and a request with a cookie or a password never gets anybody else's
response.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

from backburner.cache.entry import Duration, seconds
from backburner.cache.keys import check_tags
from backburner.errors import ConfigError
from backburner.http.headers import is_token

Scope = Mapping[str, Any]
Identity = Callable[[Scope], str]
"""Returns who is asking, from an ASGI scope; requests for which it returns the same share responses."""

COOKIE: Final = "cookie:"
"""Marks the name of a cookie in `Policy.vary_on`."""
_SAFE_METHODS: Final = frozenset({"GET", "HEAD"})
_WITH_BODY: Final = frozenset({"QUERY", "POST"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How responses are cached. Durations are seconds, a `timedelta` or text such as ``"10m"``.

    Raises:
        ConfigError: a value is invalid; the message says which, and what would be valid.
    """

    ttl: Duration | None = None
    """How long a response stays fresh that does not say so itself; ``None``: such responses are not stored."""
    stale_while_revalidate: Duration = 0
    """How long beyond that they are served while they are renewed, unless they say themselves."""
    stale_if_error: Duration = 0
    """How long beyond that they are served if the application fails, unless they say themselves."""
    tags: Sequence[str] | Callable[[Scope], Sequence[str]] = ()
    """Tags of every response, or a function of the ASGI scope that returns them, in addition to those of its
    ``Cache-Groups``; `Cache.tags(…).flush()` removes the responses."""
    namespace: str = ""
    """Responses with a namespace can be purged together."""
    vary_on: Sequence[str | Identity] | Identity = ()
    """What a response depends on besides its URL: names of request headers, of cookies (``"cookie:session"``), and
    functions of the ASGI scope that return who is asking. Responses to requests with credentials may be cached,
    separately for each, if this names the credentials: ``"authorization"``, a cookie, or such a function."""
    ignore_cookies: bool = False
    """Whether responses do not depend on cookies. Otherwise a request with a cookie is answered from the cache, and its
    response stored, only where responses are ``public`` or have an ``s-maxage``."""
    methods: frozenset[str] = _SAFE_METHODS
    """``QUERY`` and ``POST`` may be added: their bodies are then part of the key."""
    max_body_bytes: int = 1 << 20
    """Bytes. Larger responses, and requests with a larger body, pass through uncached."""
    heuristic: float = 0.0
    """Responses with only a ``Last-Modified`` are fresh for this fraction of their age; 0: not at all."""
    request_directives: bool = False
    """Whether clients may ask for fresher responses than the stored ones (``Cache-Control: no-cache`` and others)."""
    targets: Sequence[str] = ("cdn-cache-control",)
    """Response headers that override ``Cache-Control`` for this cache; the first present counts (RFC 9213)."""
    cache_status: str = ""
    """The cache's name in ``Cache-Status`` (RFC 9211), which says what it did; empty: no such header."""
    foreign: bool = False
    """Whether the origins belong to others: their cache groups are then kept apart from each other, and from the
    application's tags."""
    _seconds: tuple[float | None, float, float] = field(init=False, repr=False, compare=False, default=(None, 0, 0))
    _of_all: tuple[str, ...] = field(init=False, repr=False, compare=False, default=())
    varies: tuple[str | Identity, ...] = field(init=False, repr=False, compare=False, default=())
    """`vary_on` as a tuple."""
    tells: frozenset[str] = field(init=False, repr=False, compare=False, default=frozenset())
    """The request headers with credentials that `vary_on` names."""

    def __post_init__(self) -> None:
        try:
            ttl = None if self.ttl is None else seconds(self.ttl)
            times = (ttl, seconds(self.stale_while_revalidate), seconds(self.stale_if_error))
            tags = () if callable(self.tags) or not self.tags else check_tags(self.tags)
            if self.namespace:
                tags = (*tags, *check_tags((f"http:{self.namespace}",)))
        except ValueError as error:
            raise ConfigError(f"Policy: {error}") from error
        if any(time is not None and (time < 0 or math.isinf(time)) for time in times):
            raise ConfigError("Policy: durations must not be negative, nor for ever")
        if unknown := set(self.methods) - _SAFE_METHODS - _WITH_BODY:
            raise ConfigError(f"Policy: methods={sorted(unknown)}: only GET, HEAD, QUERY and POST can be cached")
        if isinstance(self.vary_on, str):
            raise ConfigError(f"Policy: vary_on={self.vary_on!r} must be several, as in vary_on=[{self.vary_on!r}]")
        varies = (self.vary_on,) if callable(self.vary_on) else tuple(self.vary_on)
        names = [part.removeprefix(COOKIE) for part in varies if not callable(part)]
        if not all(map(is_token, (*self.targets, *names))):
            raise ConfigError(f"Policy: {[*self.targets, *names]!r} must be names of headers or cookies")
        if self.cache_status and not is_token(self.cache_status):
            raise ConfigError(f"Policy: cache_status={self.cache_status!r} must be one word, such as 'backburner'")
        if self.max_body_bytes < 0 or not 0 <= self.heuristic <= 1:
            raise ConfigError("Policy: max_body_bytes must not be negative, and heuristic is from 0 to 1")
        object.__setattr__(self, "_seconds", times)
        object.__setattr__(self, "_of_all", tags)
        object.__setattr__(self, "varies", varies)
        object.__setattr__(self, "tells", frozenset(_told_by(varies)))

    @classmethod
    def gateway(cls, **changes: Any) -> Self:
        """A policy for a cache in front of others' origins: it does what RFC 9111 allows and clients ask for."""
        defaults: dict[str, Any] = {
            "heuristic": 0.1,
            "request_directives": True,
            "ignore_cookies": True,
            "foreign": True,
            "stale_if_error": 60,
            "targets": ("cdn-cache-control", "surrogate-control"),
            "max_body_bytes": 16 << 20,
        }
        return cls(**{**defaults, **changes})

    def tags_of(self, scope: Scope) -> tuple[str, ...] | None:
        """The tags of the response to a request, with that of the namespace; ``None`` if what a function returned
        cannot be tags, so that the response cannot be stored."""
        if not callable(self.tags):
            return self._of_all
        given = self.tags(scope)
        try:
            return (*(check_tags(given) if given else ()), *self._of_all)
        except ValueError:
            # Clients send what they like: a path may contain a line break. A wrong type is a mistake of the function.
            if isinstance(given, str) or not all(isinstance(tag, str) for tag in given):
                raise
            return None

    def groups(self, names: Sequence[str], target: str) -> tuple[str, ...]:
        """The tags that stand for the cache groups of a target's origin."""
        if not self.foreign:
            return tuple(names)
        scheme, _, rest = target.partition("://")
        return tuple(f"{scheme}://{rest.partition('/')[0]} {name}" for name in names)

    @property
    def default_freshness(self) -> float | None:
        """`ttl` in seconds."""
        return self._seconds[0]

    @property
    def default_while_revalidate(self) -> float:
        """`stale_while_revalidate` in seconds."""
        return self._seconds[1]

    @property
    def default_if_error(self) -> float:
        """`stale_if_error` in seconds."""
        return self._seconds[2]


def _told_by(varies: Sequence[str | Identity]) -> Iterator[str]:
    for part in varies:
        if callable(part):
            yield from ("authorization", "cookie")
        else:
            yield "cookie" if part.startswith(COOKIE) else part.lower()
