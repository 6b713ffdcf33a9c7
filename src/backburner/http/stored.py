"""One stored response: the messages to send, prepared as far as possible, and its bytes on the server.

    0      1       2       4      6     14        22                38      42
    magic  format  status  flags  born  lifetime  four durations    length  headers, NUL-separated; content

Numbers are big-endian; times are Unix seconds and durations seconds, as doubles. The objects here are immutable, so
that all requests of a process can share them.
"""

import struct
from typing import Final

from backburner.errors import CodecError
from backburner.http.headers import Headers, date, field, normalised
from backburner.http.rules import Terms, not_modified_fields

_MAGIC: Final = ord("H")
_FORMAT: Final = 1
_VARIANTS: Final = ord("V")
_HEADER: Final = struct.Struct(">BBHHddfffI")
_PUBLIC, _VALIDATE, _STALE_ALLOWED, _OWN_TAG = 1, 2, 4, 8
_ALL_FLAGS: Final = 15


class Stored:
    """A response with its terms."""

    __slots__ = ("_not_modified", "body", "headers", "own_tag", "status", "terms")

    def __init__(
        self, status: int, headers: tuple[tuple[bytes, bytes], ...], body: bytes, terms: Terms, *, own_tag: bool
    ) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.terms = terms
        self.own_tag = own_tag
        """Whether the entity-tag was made here, so that the application does not know it."""
        self._not_modified: Headers | None = None

    @property
    def etag(self) -> bytes | None:
        """The entity-tag."""
        return next((value for name, value in self.headers if name == b"etag"), None)

    @property
    def modified(self) -> bytes | None:
        """``Last-Modified`` as the application wrote it."""
        return next((value for name, value in self.headers if name == b"last-modified"), None)

    @property
    def not_modified(self) -> Headers:
        """The headers of a 304."""
        if self._not_modified is None:
            self._not_modified = tuple(not_modified_fields(self.headers))
        return self._not_modified

    def pack(self) -> bytes:
        """The response as bytes."""
        terms = self.terms
        flags = (
            _PUBLIC * terms.public
            | _VALIDATE * terms.validate
            | _STALE_ALLOWED * terms.stale_allowed
            | _OWN_TAG * self.own_tag
        )
        head = b"\0".join(part for pair in self.headers for part in pair)
        return b"".join(
            (
                _HEADER.pack(
                    _MAGIC,
                    _FORMAT,
                    self.status,
                    flags,
                    terms.born,
                    terms.lifetime,
                    terms.while_revalidate,
                    terms.if_error,
                    terms.kept,
                    len(head),
                ),
                head,
                self.body,
            )
        )

    def modified_since(self, condition: bytes) -> bool:
        """Whether it was modified since, as far as can be known (RFC 9110 section 13.1.3)."""
        if condition == self.modified:
            return False
        since = date(condition.decode("latin-1"))
        if since is None:
            return True
        changed = date(field(self.headers, b"last-modified")) or date(field(self.headers, b"date"))
        return (self.terms.born if changed is None else changed) > since

    @property
    def modified_is_strong(self) -> bool:
        """Whether the content cannot have changed once more within that second (RFC 9110 section 8.8.2.2)."""
        changed, made = date(field(self.headers, b"last-modified")), date(field(self.headers, b"date"))
        return changed is not None and changed + 1 <= (self.terms.born if made is None else made)


class Variants:
    """Stored in place of a response: the request fields that select one of several responses.

    These are stored under keys of their own, which contain `token`; without this entry, nobody finds them.
    """

    __slots__ = ("fields", "token")

    def __init__(self, fields: tuple[bytes, ...], token: str) -> None:
        self.fields = fields
        self.token = token

    def pack(self) -> bytes:
        """As bytes."""
        return b"%c%c%s" % (_VARIANTS, _FORMAT, b"\0".join((self.token.encode(), *self.fields)))

    def values(self, headers: Headers) -> tuple[str, ...]:
        """A request's values of these fields, normalised; an absent field differs from an empty one (RFC 9111 section
        4.1)."""
        said = []
        for name in self.fields:
            text = field(headers, name)
            said.append("-" if text is None else "=" + normalised(name, text))
        return tuple(said)


def unpack(data: bytes) -> Stored | Variants:
    """Read what `pack` wrote.

    Raises:
        CodecError: these bytes are neither a response nor variants.
    """
    if data[:2] == b"%c%c" % (_VARIANTS, _FORMAT):
        token, *fields = data[2:].split(b"\0")
        if not token.isalnum() or not all(fields):
            raise CodecError("damaged variants of a response")
        return Variants(tuple(fields), token.decode("ascii", "replace"))
    if len(data) < _HEADER.size or data[0] != _MAGIC or data[1] != _FORMAT:
        raise CodecError("not a response of this version")
    _, _, status, flags, born, lifetime, while_revalidate, if_error, kept, length = _HEADER.unpack_from(data)
    end = _HEADER.size + length
    parts = data[_HEADER.size : end].split(b"\0") if length else []
    if end > len(data) or len(parts) % 2 or flags > _ALL_FLAGS or not 200 <= status <= 599 or born != born:
        raise CodecError("a damaged response")
    headers = tuple(zip(parts[::2], parts[1::2], strict=True))
    terms = Terms(
        lifetime,
        born,
        bool(flags & _PUBLIC),
        bool(flags & _VALIDATE),
        while_revalidate,
        if_error,
        kept,
        bool(flags & _STALE_ALLOWED),
    )
    return Stored(status, headers, data[end:], terms, own_tag=bool(flags & _OWN_TAG))
