"""What stands before one endpoint: the policy of its responses, their tags, and whom they are for.

A door knows no framework. The module that places it (`endpoint` in plain Starlette, `route` in FastAPI) supplies the
application behind it, and what only a framework can find out: who is asking, and the arguments of the function.
"""

import inspect
import re
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from inspect import Parameter, Signature
from string import Formatter
from typing import Any, Final
from uuid import UUID

from backburner.cache import Cache
from backburner.cache.compiled import compiled
from backburner.cache.default import default_cache
from backburner.cache.templates import Templates
from backburner.errors import ConfigError
from backburner.http.call import CALL, Call
from backburner.http.engine import ResponseCache
from backburner.http.exchange import ASGIApp, Receive, Send
from backburner.http.policy import COOKIE, Policy, Scope

Source = Cache | Callable[[], Cache]

_IDENTITIES: Final = "backburner.identities"
_TAGS: Final = "backburner.tags"
_behind: Final[ContextVar[tuple["Door", Scope] | None]] = ContextVar("backburner_behind_door", default=None)
"""The door that the endpoint runs behind, and the call it runs for; plain functions see it in their threads, too."""
_NAME: Final = re.compile(r"[^\W\d]\w*")
_BRACE: Final = re.compile(r"[{}]")


class Door:
    """The cache in front of a function that answers requests.

    Args:
        function: the endpoint; its parameters may stand in `tags` and `namespace`.
        policy: of its responses, without tags, namespace and `vary_on`.
        vary_on: as for `cached_response`.

    Raises:
        ConfigError: a template cannot be parsed, or a member of `vary_on` is invalid.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        policy: Policy,
        *,
        tags: Sequence[str],
        namespace: str,
        vary_on: Sequence[str | Callable[..., Any]],
        cache: Source = default_cache,
        after_dependencies: bool = False,
    ) -> None:
        self.name = getattr(function, "__name__", repr(function))
        self.after_dependencies = after_dependencies
        self.identities = tuple(part for part in vary_on if callable(part))
        """The functions in `vary_on`, which return who is asking; the framework calls them."""
        self.told = frozenset(
            part if part.startswith(COOKIE) else part.lower() for part in vary_on if isinstance(part, str)
        )
        """The headers and cookies of `vary_on`."""
        if not (isinstance(cache, Cache) or callable(cache)):
            raise ConfigError(f"cache={cache!r}: give a Cache, or a function that gives one")
        if isinstance(tags, str):
            raise ConfigError(f"tags={tags!r} must be several, as in tags=[{tags!r}]")
        templates = (*tags, *((f"http:{namespace}",) if namespace else ()))
        fixed = tuple(template for template in templates if not _BRACE.search(template))
        self._templates = tuple(template for template in templates if _BRACE.search(template))
        self._read_templates(function)
        varies: tuple[Any, ...] = (*sorted(self.told), *((_identified,) if self.identities else ()))
        self.policy = replace(policy, tags=self._tags_beforehand if self._templates else fixed, vary_on=varies)
        self._fixed = fixed
        self._cache = cache
        self._responses: ResponseCache | None = None

    def _read_templates(self, function: Callable[..., Any]) -> None:
        own = inspect.signature(function).parameters
        roots = [_NAME.match(field) for template in self._templates for field in _fields(template)]
        self._wanted = tuple(dict.fromkeys(root[0] for root in roots if root))
        self.path_parameters = tuple(name for name in self._wanted if name not in own)
        """Names in templates that are not parameters of the function, and so must be in the path of its route."""
        self._render = _rendered(self.name, self._wanted, self._templates)
        # The text in the path may differ from what the function gets (`042`, 42), but is known before anything is read.
        plain = [template for template in self._templates if all(map(_NAME.fullmatch, _fields(template)))]
        self._plain = [
            (names, _rendered(self.name, names, [template]))
            for template in plain
            for names in [tuple(dict.fromkeys(_fields(template)))]
        ]

    def check_path(self, parameters: Mapping[str, Any], path: str) -> None:
        """Refuse a route whose path lacks a parameter that templates name.

        Raises:
            ConfigError: it lacks one.
        """
        for name in self.path_parameters:
            if name not in parameters:
                raise ConfigError(
                    f"{self.name}(): tags or namespace ask for {{{name}}}, which is neither an argument of the "
                    f"function nor a parameter of the path {path!r}"
                )

    def also_vary_on(self, headers: Iterable[str]) -> None:
        """Vary responses on these request headers, too; that alone does not make them private to one client."""
        varies = dict.fromkeys((*self.policy.varies, *(name.lower() for name in headers)))
        self.policy = replace(self.policy, vary_on=tuple(varies))

    async def respond(
        self, scope: Any, receive: Receive, send: Send, app: ASGIApp, identities: Sequence[object] = ()
    ) -> None:
        """Answer one request, from the cache or by calling `app`.

        Raises:
            TypeError: an identity cannot tell one client from another.
        """
        outer = scope.get(CALL)
        if outer is not None:
            outer.give_way()
        if self.identities:
            scope[_IDENTITIES] = repr([_identity(self.name, identity) for identity in identities])

        async def behind(scope: Any, receive: Receive, send: Send) -> None:
            token = _behind.set((self, scope))
            try:
                await app(scope, receive, send)
            finally:
                _behind.reset(token)

        await self._cached().respond(scope, receive, send, behind, self.policy)

    def _cached(self) -> ResponseCache:
        cache = self._cache() if callable(self._cache) else self._cache
        if self._responses is None or self._responses.cache is not cache:
            self._responses = ResponseCache(cache, inner=True)
        return self._responses

    # Tags

    def tag_with(self, scope: Any, arguments: Mapping[str, Any]) -> None:
        """Supply the values for the tags, where they are known before the cache is read."""
        if self._templates:
            scope[_TAGS] = self._tags(scope, arguments)

    def tagging(self, arguments: Mapping[str, Any]) -> Coroutine[Any, Any, None] | None:
        """What to await before the function reads the data of its response, if anything."""
        door, scope = _behind.get() or (None, {})
        call: Call | None = scope.get(CALL) if door is self and self._templates else None
        return call.tag(self._tags(scope, arguments)) if call is not None else None

    def _tags(self, scope: Scope, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        known = {**scope.get("path_params", {}), **arguments}
        return tuple(filter(None, self._render(**{name: known[name] for name in self._wanted})))

    def _tags_beforehand(self, scope: Scope) -> tuple[str, ...]:
        if _TAGS in scope:
            return (*self._fixed, *scope[_TAGS])
        path = scope.get("path_params", {})
        of_path = [
            tag
            for names, render in self._plain
            if all(name in path for name in names)
            for tag in render(**{name: path[name] for name in names})
        ]
        return (*self._fixed, *filter(None, of_path))


def _fields(template: str) -> list[str]:
    """The fields of a template; none if it cannot be parsed, which `Templates` reports."""
    try:
        return [field for _, field, _, _ in Formatter().parse(template) if field is not None]
    except ValueError:
        return []


def _rendered(name: str, wanted: Sequence[str], templates: Sequence[str]) -> Callable[..., tuple[str, ...]]:
    signature = Signature([Parameter(each, Parameter.KEYWORD_ONLY) for each in wanted])
    return compiled(name, signature, *Templates(name, signature).tags(templates))


def _identified(scope: Scope) -> str:
    return str(scope[_IDENTITIES])


_TELLING: Final[tuple[Any, ...]] = (str, bool, int, bytes, UUID, type(None))


def _identity(name: str, identity: object) -> object:
    if isinstance(identity, tuple):
        return tuple(_identity(name, part) for part in identity)
    for kind in _TELLING:
        if isinstance(identity, kind):
            return kind.__repr__(identity)  # a subclass may mask itself in its own, for logs
    raise TypeError(
        f"{name}(): vary_on gave a {type(identity).__name__}, which cannot tell one client from another for certain; "
        "give its id: text, a number, a UUID, or a tuple of these"
    )
