"""The cache as ASGI middleware: the outermost layer, in front of routing."""

import re
from collections.abc import Mapping
from typing import Any

from backburner.cache import Cache
from backburner.errors import ConfigError
from backburner.http.engine import ResponseCache
from backburner.http.exchange import ASGIApp, Receive, Send
from backburner.http.policy import Policy


class CacheMiddleware:
    """Answers requests from stored responses where HTTP allows it, and stores those that may be.

    Wrap the application itself to have the cache outermost: ``app = CacheMiddleware(FastAPI(), cache=cache)``. With
    ``app.add_middleware(CacheMiddleware, cache=cache)`` it stands behind the framework's error handler.

    Args:
        cache: where responses are kept; flushing it or its tags removes responses, too.
        policy: for all paths that no rule matches.
        rules: policies by path, of which the first that matches counts; ``*`` stands for any text. ``None``: never
            cached. For example ``{"/admin/*": None, "/books*": Policy(ttl="1m", tags=["books"])}``.

    Raises:
        ConfigError: a path does not begin with a slash or ``*``; a cache or a policy is something else.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        cache: Cache,
        policy: Policy | None = None,
        rules: Mapping[str, Policy | None] | None = None,
    ) -> None:
        if not isinstance(cache, Cache):  # not shown: it may be a URL with a password
            raise ConfigError(f"cache is a {type(cache).__name__}: write cache=Cache.from_settings(settings)")
        if not isinstance(policy, Policy | None):
            raise ConfigError(f"policy={policy!r}: write a Policy, such as Policy(ttl='1m')")
        self._app = app
        self._policy: Policy | None = policy or Policy()
        for path, rule in (rules or {}).items():
            if not path.startswith(("/", "*")):
                raise ConfigError(f"rules: {path!r} must begin with a slash, as the paths of requests do")
            if not isinstance(rule, Policy | None):
                raise ConfigError(f"rules: {path!r} has {rule!r}; write a Policy, such as Policy(ttl='1m'), or None")
        self._rules = [
            (re.compile(".*".join(map(re.escape, path.split("*"))), re.DOTALL), found)
            for path, found in (rules or {}).items()
        ]
        self.responses = ResponseCache(cache)
        """The response cache, for purging."""

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one connection; those that are not HTTP go to the application unchanged."""
        policy = self._policy
        if scope["type"] == "http":
            for path, found in self._rules:
                if path.fullmatch(scope["path"]):
                    policy = found
                    break
            if policy is not None:
                await self.responses.respond(scope, receive, send, self._app, policy)
                return
        await self._app(scope, receive, send)
