"""The rules of HTTP caching, each a small function named by its section. Pure: no clock, no I/O, no state.

RFC 9111 for a shared cache, with the extensions of RFC 5861 (stale), RFC 9213 (targeted fields) and RFC 9875 (groups).
Where they leave a choice, the owner decides (`Policy`); a field that cannot be parsed means that less is kept.
"""

from enum import Enum, auto
from typing import Final, Literal, NamedTuple
from urllib.parse import urljoin, urlsplit

from backburner.http.headers import (
    Directives,
    Headers,
    are_clean,
    date,
    delta_seconds,
    directives,
    field,
    is_token,
    lines,
    members,
    names,
    seconds,
    without,
)
from backburner.http.policy import Policy
from backburner.http.structured import dictionary, strings

HEURISTIC: Final = frozenset({200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501})
"""Statuses that may be stored without explicit freshness (RFC 9110 section 15.1), except partial responses."""
UNDERSTOOD: Final = HEURISTIC | {201, 202, 302, 303, 307, 400, 401, 403, 406, 409, 422, 429, 500, 502, 503, 504}
SERVER_ERRORS: Final = frozenset({500, 502, 503, 504})
"""The statuses that `stale-if-error` covers (RFC 5861 section 4)."""
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "QUERY"})
_LONGEST_HEURISTIC: Final = 86_400.0
_KEPT_FOR_VALIDATION: Final = 3600.0
"""Seconds that a stale response is kept because the application may say that it has not changed."""
_MOST_VARY: Final = 16

_HOP_BY_HOP: Final = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authentication-info", b"proxy-authorization"),
        *(b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"),
    }
)
_NEVER_STORED: Final = _HOP_BY_HOP | {b"age", b"set-cookie", b"cache-status"}
_NOT_UPDATED: Final = _NEVER_STORED | {
    *(b"content-encoding", b"content-length", b"content-md5", b"content-range", b"etag"),
}
_OF_THE_CONTENT: Final = frozenset(
    {b"content-encoding", b"content-language", b"content-length", b"content-md5", b"content-range", b"content-type"}
)


def cache_control(headers: Headers, policy: Policy) -> tuple[Directives, bool]:
    """RFC 9213 section 2.2: the directives of a response that apply, and whether they target this cache."""
    for target in policy.targets:
        if found := dictionary(field(headers, target.lower().encode())):
            return found, True
    return directives(*lines(headers, b"cache-control")), False


Credentials = Literal["", "authorization", "cookie"]
"""The strongest credentials that a request carries; empty for none."""


class Terms(NamedTuple):
    """What a response says about being stored. Durations are seconds."""

    lifetime: float
    """How long it is fresh after it was generated."""
    born: float
    """When it was generated, in Unix seconds of our clock: `Age` counts from then."""
    public: bool = False
    """Whether anybody may get it, whatever credentials this or another request carries."""
    validate: bool = False
    """Whether the application must be asked before each use."""
    while_revalidate: float = 0.0
    if_error: float = 0.0
    kept: float = 0.0
    """How long it is useful beyond its freshness."""
    stale_allowed: bool = True
    """Whether it may be served stale because the request or the owner allows it."""


def may_store(
    status: int, headers: Headers, policy: Policy, *, credentials: Credentials, now: float, delay: float
) -> tuple[Terms | None, str]:
    """Section 3: whether a complete response to a request that may be answered from the cache may be stored.

    Args:
        credentials: what the request carried that is not part of the key.
        now: when the response arrived, in Unix seconds.
        delay: seconds since the request was sent.

    Returns:
        Its terms, or the reason why not.
    """
    directives, targeted = cache_control(headers, policy)
    if status == 206 or not 200 <= status <= 599 or status == 304:
        return None, "status"
    if not are_clean(headers):
        return None, "malformed"
    if "must-understand" in directives:
        if status not in UNDERSTOOD:
            return None, "must-understand"
    elif "no-store" in directives:
        return None, "no-store"
    if any(argument is None or not argument.strip() for argument in directives.get("private", ())):
        return None, "private"
    if vary(headers) is None:
        return None, "vary"
    public = not {"public", "s-maxage"}.isdisjoint(directives)
    if credentials and not (public or (credentials == "authorization" and "must-revalidate" in directives)):
        return None, "credentials"  # section 3.5; cookies are not the standard's concern but the owner's
    if field(headers, b"set-cookie") is not None and not public and not policy.ignore_cookies:
        return None, "set-cookie"

    born = now - initial_age(headers, now, delay)
    lifetime = freshness_lifetime(status, headers, directives, policy, now, targeted=targeted)
    validate = any(argument is None or not argument.strip() for argument in directives.get("no-cache", ()))
    strict = not {"must-revalidate", "proxy-revalidate", "s-maxage"}.isdisjoint(directives) or validate
    while_revalidate, if_error = stale_windows(directives, policy, strict=strict)
    validator = field(headers, b"etag") is not None or field(headers, b"last-modified") is not None
    if lifetime is None:
        if not (validate and validator):
            return None, "freshness"
        lifetime = 0.0
    kept = max(while_revalidate, if_error, _KEPT_FOR_VALIDATION if validator or policy.request_directives else 0.0)
    if validate:
        lifetime = 0.0
    if born + lifetime + kept <= now:
        return None, "stale"
    return Terms(lifetime, born, public, validate, while_revalidate, if_error, kept, not strict), ""


def freshness_lifetime(
    status: int, headers: Headers, directives: Directives, policy: Policy, now: float, *, targeted: bool
) -> float | None:
    """Section 4.2.1: seconds for which it is fresh; ``None`` if it does not say, and must not be stored for that."""
    for directive in ("s-maxage", "max-age"):
        given = seconds(directives.get(directive))
        if given is not None:
            return float(given)
    if not targeted and (expires := field(headers, b"expires")) is not None:
        ends = date(expires)
        made = date(field(headers, b"date"))
        return 0.0 if ends is None else max(0.0, ends - (now if made is None else made))
    if status not in HEURISTIC and "public" not in directives:
        return None
    if (field(headers, b"content-type") or "").lower().startswith("text/event-stream"):
        return None  # it need not have an end, which others would wait for
    if policy.default_freshness is not None:
        return policy.default_freshness
    return heuristic(headers, policy, now)


def heuristic(headers: Headers, policy: Policy, now: float) -> float | None:
    """Section 4.2.2."""
    modified = date(field(headers, b"last-modified"))
    if not policy.heuristic or modified is None:
        return None
    made = date(field(headers, b"date"))
    age = (now if made is None else made) - modified
    return min(policy.heuristic * age, _LONGEST_HEURISTIC) if age > 0 else None


def initial_age(headers: Headers, now: float, delay: float) -> float:
    """Section 4.2.3: the age of a response when it arrived, in seconds.

    Of several `Age` fields the first counts; an invalid one is ignored (section 5.1).
    """
    made = date(field(headers, b"date"))
    apparent = max(0.0, now - made) if made is not None else 0.0
    if apparent < _SECOND:
        apparent = 0.0  # dates are in whole seconds
    told = members(field(headers, b"age"))
    age = delta_seconds(told[0]) if told else None
    return max(apparent, (age or 0) + delay)


_SECOND: Final = 1.0


def stale_windows(directives: Directives, policy: Policy, *, strict: bool) -> tuple[float, float]:
    """RFC 5861: seconds for which a stale response may be served while it is renewed, and if that fails."""
    if strict:
        return 0.0, 0.0
    while_revalidate = seconds(directives.get("stale-while-revalidate"))
    if_error = seconds(directives.get("stale-if-error"))
    return (
        policy.default_while_revalidate if while_revalidate is None else float(while_revalidate),
        policy.default_if_error if if_error is None else float(if_error),
    )


def stored_fields(headers: Headers, directives: Directives) -> list[tuple[bytes, bytes]]:
    """Section 3.1: the fields that are stored: not those of the connection, not those named by private or no-cache, and
    no cookies, which are for one client."""
    listed = names(field(headers, b"connection"))
    for directive in ("no-cache", "private"):
        for argument in directives.get(directive, ()):
            listed += names(argument)
    return without(headers, _NEVER_STORED | {name.encode("latin-1") for name in listed})


def updated_fields(stored: Headers, received: Headers, directives: Directives) -> list[tuple[bytes, bytes]]:
    """Sections 3.2 and 4.3.4: the stored fields, replaced by those of a 304."""
    new = without(stored_fields(received, directives), _NOT_UPDATED)
    return without(stored, {name for name, _ in new}) + new


def not_modified_fields(headers: Headers) -> list[tuple[bytes, bytes]]:
    """RFC 9110 section 15.4.5: the fields of a 200 that a 304 has, too: all but those that describe the content."""
    return without(headers, _OF_THE_CONTENT)


def vary(headers: Headers) -> list[bytes] | None:
    """Section 4.1: the request fields that a response depends on; ``None`` if no other request matches."""
    fields = names(field(headers, b"vary"))
    if "*" in fields or len(fields) > _MOST_VARY or not all(map(is_token, fields)):
        return None
    return sorted({name.encode("latin-1") for name in fields})


def groups(headers: Headers, name: bytes) -> list[str]:
    """RFC 9875: the groups that a response belongs to, or invalidates."""
    return strings(field(headers, name))


def invalidated(url: str, headers: Headers) -> list[str]:
    """Section 4.4: the URLs that a successful unsafe request to a URL invalidates, all of the same origin."""
    urls = [url]
    for name in (b"location", b"content-location"):
        value = field(headers, name)
        if value is None:
            continue
        try:
            other = urljoin(url, value)
            if origin(other) == origin(url):
                urls.append(other)
        except ValueError:
            continue  # not a URL, so nothing is stored under it
    return urls


def origin(url: str) -> tuple[str, str | None, int | None]:
    """RFC 9110 section 4.3.1: scheme, host and port.

    Raises:
        ValueError: it is not a URL.
    """
    parts = urlsplit(url)
    port = parts.port
    if port is None:
        port = {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, port


class Use(Enum):
    """How a stored response may be used for a request."""

    NOW = auto()
    """Serve it."""
    RENEW = auto()
    """Serve it, and renew it afterwards."""
    VALIDATE = auto()
    """Ask the application first; it may answer that nothing changed."""


def use(terms: Terms, fresh_until: float, refresh_at: float, now: float, asked: Directives | None) -> Use:
    """Section 4: whether a stored response answers a request at a given time.

    Args:
        fresh_until: not always the end of its lifetime: it may have been made stale before.
        refresh_at: when it should be renewed early; once stale, the time before which renewing is not tried again.
        asked: the request's directives, if they are honoured.
    """
    if terms.validate:
        return Use.VALIDATE
    stale_for = now - fresh_until
    if asked:
        if "no-cache" in asked or "no-store" in asked:
            return Use.VALIDATE
        most = seconds(asked.get("max-age"))
        if most is not None and now - terms.born >= most:
            return Use.VALIDATE
        least = seconds(asked.get("min-fresh"))
        if least is not None and -stale_for < least:
            return Use.VALIDATE
        if stale_for >= 0 and terms.stale_allowed and "max-stale" in asked:
            unlimited = None in asked["max-stale"]
            return Use.NOW if unlimited or stale_for <= (seconds(asked["max-stale"]) or 0) else Use.VALIDATE
    if stale_for >= 0 and stale_for >= terms.while_revalidate:
        return Use.NOW if now < refresh_at and stale_for < terms.if_error else Use.VALIDATE
    return Use.NOW if now < refresh_at else Use.RENEW


def may_stand_in(terms: Terms, fresh_until: float, now: float) -> bool:
    """RFC 5861 section 4: whether a stored response may be served because the application fails."""
    return not terms.validate and now - fresh_until < terms.if_error
