"""What a cache has to know about a request: which stored responses may answer it, and what it asks for.

The headers are read once, and only those that matter here are kept. A request whose target cannot be told from another
one's has no key, and is not cached.
"""

import re
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final
from urllib.parse import quote, urlsplit

from backburner.cache.keys import MAX_LENGTH, fit
from backburner.http.headers import Directives, directives
from backburner.http.policy import COOKIE, Policy
from backburner.http.rules import Credentials

MARK: Final = "http:\x01"
"""Begins the keys of responses: a namespace to be counted under, and a control character, which users' keys never
contain."""
INNER: Final = "\x02"
"""Ends the keys of responses that are stored further inside, at a route: another response cache may stand in front,
whose response for the same URL may differ, and which waits for the one inside."""
_SEEN: Final = frozenset(
    {
        *(b"host", b"authorization", b"cookie", b"cache-control", b"pragma", b"if-none-match", b"if-modified-since"),
        *(b"if-match", b"if-unmodified-since", b"range", b"if-range", b"content-length", b"transfer-encoding"),
        b"upgrade",
    }
)
_PARTIAL: Final = frozenset({b"if-none-match", b"if-modified-since", b"range", b"if-range"})
_UNCOMMON: Final = frozenset({b"if-match", b"if-unmodified-since", b"upgrade"})
"""Request headers with which a request goes to the application unchanged."""
_HOST: Final = re.compile(rb"(?:[a-z0-9._~-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?", re.IGNORECASE)
_UNSENT: Final = re.compile(r"[^!-~]+")
"""What stands in the URLs that frameworks show, but in none that is sent."""
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}
CONDITIONAL: Final = frozenset({"GET", "HEAD"})
"""The methods for which a condition asks whether the client's copy is still good (RFC 9110 sections 13.1.2, 13.1.3)."""
_LONGEST: Final = MAX_LENGTH // 2
"""Characters of a target in a key at most, so that there is room for what responses vary by. Longer ones are not
remembered either: strangers would fill the memory with them."""


class Request:
    """One request, from its ASGI scope."""

    __slots__ = ("headers", "key", "method", "scope", "seen", "target")

    def __init__(self, scope: Any, layer: str = "") -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.headers: list[tuple[bytes, bytes]] = scope["headers"]
        seen: dict[bytes, bytes] = {}
        for name, value in self.headers:
            if name in _SEEN:
                between = b"; " if name == b"cookie" else b", "
                seen[name] = value if name not in seen else seen[name] + between + value
        self.seen = seen
        """The fields that matter, lines of the same name joined."""
        path = scope.get("raw_path")
        if path is None:
            path = quote(scope["path"]).encode()
        root = scope.get("root_path")
        if root and not scope["path"].startswith(root):
            path = quote(root).encode() + path  # stripped by a layer outside, which may have stripped other paths, too
        host, query = seen.get(b"host", b""), scope["query_string"]
        target = _target if len(host) + len(path) + len(query) <= _LONGEST else _target.__wrapped__
        self.target, key = target(scope.get("scheme", "http"), host, path, query)
        """The URL in canonical form, empty if it is invalid."""
        self.key = key + layer
        """The key that responses to a GET have."""

    @property
    def url(self) -> str:
        """The target as an ordinary URL."""
        return self.target.removesuffix("?")

    def distinction(self, policy: Policy, body: bytes | None = None) -> str:
        """What a response depends on besides target and `Vary`, as a digest; empty if nothing.

        Args:
            body: the request's, where it is part of the key.
        """
        if body is None and not policy.varies:
            return ""
        parts = [] if body is None else [self._of_the_content(), body]
        for wanted in policy.varies:
            if callable(wanted):
                identity = wanted(self.scope)
                if not isinstance(identity, str):
                    raise TypeError(f"vary_on must say who asks as text, not {type(identity).__name__}")
                parts.append(identity.encode("utf-8", "surrogatepass"))
            elif wanted.startswith(COOKIE):
                parts.append(repr(self._cookies(wanted.removeprefix(COOKIE).encode())).encode())
            else:
                name = wanted.lower().encode()
                parts.append(repr([value for key, value in self.headers if key == name]).encode())
        return digest(*parts)

    def _cookies(self, name: bytes) -> list[bytes]:
        pairs = [cookie.partition(b"=") for cookie in self.seen.get(b"cookie", b"").split(b";")]
        return [value.strip() for key, _, value in pairs if key.strip() == name]

    def _of_the_content(self) -> bytes:
        return repr(sorted(pair for pair in self.headers if pair[0].startswith(b"content-"))).encode()

    def credentials(self, policy: Policy) -> Credentials:
        """The credentials it carries that are not part of the key."""
        if b"cookie" in self.seen and not policy.ignore_cookies and "cookie" not in policy.tells:
            return "cookie"
        return "authorization" if b"authorization" in self.seen and "authorization" not in policy.tells else ""

    def directives(self, policy: Policy) -> Directives | None:
        """The request's directives (RFC 9111 section 5.2.1), if the owner honours them; `Pragma` as in section 5.4."""
        if not policy.request_directives:
            return None
        value = self.seen.get(b"cache-control")
        if value is not None:
            return directives(value.decode("latin-1"))
        if b"no-cache" in self.seen.get(b"pragma", b"").lower():
            return {"no-cache": [None]}
        return None

    def is_uncommon(self) -> bool:
        """Whether it asks for something no stored response can answer, or has an unexpected body, on which the response
        might depend."""
        seen = self.seen
        if len(seen) == 1:
            return False
        if not _UNCOMMON.isdisjoint(seen):
            return True
        if self.method not in CONDITIONAL:
            return b"if-none-match" in seen  # which then forbids the call, and is answered with 412
        return b"transfer-encoding" in seen or seen.get(b"content-length", b"0").strip(b"0") != b""

    def unconditional(self, extra: list[tuple[bytes, bytes]] | None = None) -> Any:
        """A scope with these headers in place of conditions and ranges, so that the whole response can be stored."""
        headers = [pair for pair in self.headers if pair[0] not in _PARTIAL]
        return {**self.scope, "headers": headers + (extra or [])}


def key_of(target: str, method: str = "GET", layer: str = "") -> str:
    """The key under which a response is stored, or the entry that tells several apart."""
    return MARK + fit(target if method in CONDITIONAL else f"{method} {target}", _LONGEST) + layer


@lru_cache(maxsize=1024)
def _target(scheme: str, host: bytes, path: bytes, query: bytes) -> tuple[str, str]:
    authority = _authority(scheme, host)
    if authority is None or not path.startswith(b"/") or b"?" in path:
        return "", ""  # the three parts could not be told apart
    target = f"{authority}{path.decode('latin-1')}?{query.decode('latin-1')}"
    return target, key_of(target)


def keys_of(target: str) -> list[str]:
    """All keys of a target."""
    return [key_of(target, method, layer) for layer in ("", INNER) for method in ("GET", "QUERY", "POST")]


def target_of(url: str) -> str:
    """The target of an absolute URL, as `Request.target` has it; characters that clients have to escape may be plain.

    Raises:
        ValueError: it is not an absolute URL.
    """
    parts = urlsplit(url)
    authority = _authority(parts.scheme, parts.netloc.encode())
    if authority is None or not parts.scheme:
        raise ValueError(f"{url!r} must be a whole URL, such as https://example.com/books?page=1")
    path, query = (_UNSENT.sub(lambda match: quote(match[0]), part) for part in (parts.path or "/", parts.query))
    return f"{authority}{path}?{query}"


def digest(*parts: bytes) -> str:
    """A short digest, different for different parts."""
    summary = blake2b(digest_size=16)
    for part in parts:
        summary.update(b"%d:" % len(part))
        summary.update(part)
    return summary.hexdigest()


def _authority(scheme: str, host: bytes) -> str | None:
    # One spelling for one host: in lower case, and without the default port.
    if _HOST.fullmatch(host) is None:
        return None
    return f"{scheme}://{host.decode('ascii').lower().removesuffix(_DEFAULT_PORTS.get(scheme, ' '))}"
