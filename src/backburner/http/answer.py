"""A stored response as the answer to one request: whole, one range of it, headers only, or a 304.

RFC 9110 sections 13 (conditional requests) and 14 (ranges), as RFC 9111 sections 4.3.2 and 3.4 require of a cache.
"""

from collections.abc import Mapping

from backburner.http.exchange import Message
from backburner.http.headers import Headers, byte_ranges, names_tag, strong, without
from backburner.http.request import CONDITIONAL
from backburner.http.stored import Stored


def answer(
    stored: Stored, method: str, seen: Mapping[bytes, bytes], now: float | None, status: str
) -> tuple[Message, Message]:
    """The ASGI messages that answer a request with these fields: new ones each time, because outer layers change them.

    Args:
        now: Unix seconds, if the response comes from the cache and so has an age.
        status: the value of ``Cache-Status`` (RFC 9211); empty for none.
    """
    code, body = stored.status, stored.body
    headers: Headers = stored.headers
    if len(seen) > 1 and code == 200 and method in CONDITIONAL:
        code, headers, body = _by_conditions(stored, method, seen)
    own = [*headers]
    if now is not None:
        own.append((b"age", b"%d" % max(0, int(now - stored.terms.born))))
    if status:
        own.append((b"cache-status", status.encode()))
    return (
        {"type": "http.response.start", "status": code, "headers": own},
        {"type": "http.response.body", "body": b"" if method == "HEAD" else body},
    )


def _by_conditions(stored: Stored, method: str, seen: Mapping[bytes, bytes]) -> tuple[int, Headers, bytes]:
    condition = seen.get(b"if-none-match")
    if condition is not None:
        if stored.etag is not None and names_tag(condition, stored.etag):
            return 304, stored.not_modified, b""
    elif (condition := seen.get(b"if-modified-since")) is not None and not stored.modified_since(condition):
        return 304, stored.not_modified, b""
    if b"range" in seen and method == "GET" and _range_counts(stored, seen.get(b"if-range")):
        ranges = byte_ranges(seen[b"range"].decode("latin-1"), len(stored.body))
        if ranges is not None:
            return _partial(stored, ranges)
    return 200, stored.headers, stored.body


def _range_counts(stored: Stored, condition: bytes | None) -> bool:
    """RFC 9110 section 13.1.5 (``If-Range``): whether the parts the client already has are of this very content."""
    if condition is None:
        return True
    if condition.startswith((b'"', b"W/")):
        return stored.etag is not None and strong(stored.etag) and condition == stored.etag
    return condition == stored.modified and stored.modified_is_strong


def _partial(stored: Stored, ranges: list[tuple[int, int]]) -> tuple[int, Headers, bytes]:
    size = len(stored.body)
    headers = without(stored.headers, (b"content-length", b"content-range"))
    if not ranges:
        headers = without(headers, (b"content-type", b"content-encoding"))
        return 416, [*headers, (b"content-range", b"bytes */%d" % size), (b"content-length", b"0")], b""
    if len(ranges) == 1:
        first, behind = ranges[0]
        part = stored.body[first:behind]
        span = b"bytes %d-%d/%d" % (first, behind - 1, size)
        return 206, [*headers, (b"content-range", span), (b"content-length", b"%d" % len(part))], part
    # Made from the entity-tag of this very content, which for practical purposes cannot contain it.
    boundary = b"part-%s" % (stored.etag or b"of-a-response").strip(b'W/"').hex().encode()
    kind = next((value for name, value in stored.headers if name == b"content-type"), b"application/octet-stream")
    body = b"".join(
        b"--%s\r\ncontent-type: %s\r\ncontent-range: bytes %d-%d/%d\r\n\r\n%s\r\n"
        % (boundary, kind, first, behind - 1, size, stored.body[first:behind])
        for first, behind in ranges
    )
    body += b"--%s--\r\n" % boundary
    headers = [
        *without(headers, (b"content-type",)),
        (b"content-type", b"multipart/byteranges; boundary=" + boundary),
        (b"content-length", b"%d" % len(body)),
    ]
    return 206, headers, body
