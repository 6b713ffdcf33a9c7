"""Which keys and tags are allowed, and where they lie on the server.

Everything that a cache owns is under its prefix. Its internal keys there (versions of tags, leases) begin with a
control character, which users' keys may not contain, so the two cannot collide. Nor can a long key, of which the server
sees only the beginning and a digest, collide with a short one: a control character separates the two parts.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Final

from backburner.cache.entry import MAX_TAGS, tag_bytes

MAX_LENGTH: Final = 1024
"""Maximal number of characters in a tag, or in the name of a lock or limiter."""
MAX_KEY: Final = 65_536
"""Maximal number of characters in a key; anything longer is a document mistaken for its name."""
MAX_SHOWN: Final = 200
"""Keys up to this length go to the server unchanged. Longer ones are shortened: the server stores the key with each
entry, and each command carries it."""

_TAG_MARK: Final = "\x01tag:"
_FLUSHED_MARK: Final = "\x01flushed:"
_FLUSH: Final = "\x01flush"
_LEASE_MARK: Final = "\x01lease:"
_WAKE_MARK: Final = "\x01wake:"
_LOCK_MARK: Final = "\x01lock:"
_BELL_MARK: Final = "\x01bell:"
_LIMIT_MARK: Final = "\x01limit:"
_CHANNEL: Final = "\x01changes"
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_UNFIT: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_HASH_MARK: Final = "#"
_LONG_MARK: Final = "\x01"
_DIGITS: Final = 32
_HASHED: Final = len("#") + _DIGITS


def check_key(key: str) -> str:
    """Check a key and return it.

    Raises:
        ValueError: it is not text, empty, too long, or contains control characters.
    """
    return _check("key", key, MAX_KEY)


def check_keys(keys: Iterable[str]) -> list[str]:
    """Check several keys and return them.

    Raises:
        ValueError: one of them is not a valid key, or a single text was given, whose characters would be taken for
            keys.
    """
    return [check_key(key) for key in _several("keys", keys)]


def check_values(values: Mapping[str, object]) -> dict[str, object]:
    """Check a mapping from keys to values and return it.

    Raises:
        ValueError: it is not a mapping, or one of its keys is not valid.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"values must be a dict from keys to values, not {type(values).__name__}")  # noqa: TRY004
    return {check_key(key): value for key, value in values.items()}


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Check tags and return them, each once, in their order.

    Raises:
        ValueError: there are none, or more than fit into an entry, or one is not text, empty, too long, or contains
            control characters.
    """
    checked = tuple(dict.fromkeys(_check("tag", tag) for tag in _several("tags", tags)))
    if not checked:
        raise ValueError("at least one tag is needed")
    if (size := sum(map(tag_bytes, checked))) > MAX_TAGS:
        raise ValueError(f"{len(checked)} tags of one entry take {size:,} bytes; {MAX_TAGS:,} are the limit")
    return checked


def fit(text: str, longest: int = MAX_LENGTH) -> str:
    """Make a valid key from any text: the text itself if it is valid, else its beginning and a hash of all of it.

    Different texts give different keys, even if an attacker chooses them.
    """
    if len(text) <= longest and text.isprintable() and text[-_HASHED:-_DIGITS] != _HASH_MARK:
        return text
    return _fitted(text, longest)


def _fitted(text: str, longest: int) -> str:
    well_formed = not _UNFIT.search(text)
    if well_formed and len(text) <= longest and text[-_HASHED:-_DIGITS] != _HASH_MARK:
        return text  # not printable, but allowed, such as a no-break space
    return f"{_UNFIT.sub('?', text[: longest - _HASHED])}{_HASH_MARK}{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGITS // 2).hexdigest()


def check_name(kind: str, name: str) -> str:
    """Check a name by the rules of keys and return it; `kind` is what messages call it, such as ``lock's name``.

    Raises:
        ValueError: as `check_key`.
    """
    return _check(kind, name)


def _several(kind: str, names: Iterable[str]) -> Iterable[str]:
    if isinstance(names, str | bytes):
        raise ValueError(f"{kind} must be several texts, not the text {names!r}")  # noqa: TRY004
    return names


def _check(kind: str, name: str, longest: int = MAX_LENGTH) -> str:
    if type(name) is str and name.isascii() and name.isprintable() and 0 < len(name) <= longest:
        return name  # nearly always
    if not isinstance(name, str):
        # One kind of error for every kind of bad key.
        raise ValueError(f"a {kind} must be text, not {type(name).__name__}: {name!r}")  # noqa: TRY004
    if not name:
        raise ValueError(f"a {kind} must not be empty")
    if len(name) > longest:
        raise ValueError(f"a {kind} has at most {longest} characters, this one has {len(name)}: {name[:40]!r}…")
    if _CONTROL.search(name):
        raise ValueError(f"a {kind} must not contain control characters: {name!r}")
    if not name.isascii():
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(f"a {kind} must be valid Unicode text: {name!r}") from None
    return name


class Keyspace:
    """The key names that one cache uses on a server."""

    __slots__ = ("prefix",)

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def entry(self, key: str) -> str:
        """The name of a key's entry."""
        return self.prefix + self.local(key)

    def local(self, key: str) -> str:
        """A key without the prefix, as the server sees it: the key itself or, if it is long, its beginning and a
        digest."""
        if len(key) <= MAX_SHOWN:
            return key
        return f"{key[: MAX_SHOWN - _HASHED]}{_LONG_MARK}{_digest(key)}"

    def tag(self, tag: str) -> str:
        """The name of a tag's version."""
        return f"{self.prefix}{_TAG_MARK}{tag}"

    def key_of(self, name: str) -> str:
        """The key of an entry's name; for a long key, what `local` makes of it."""
        return name[len(self.prefix) :]

    def tag_of(self, name: str) -> str | None:
        """The tag whose version has this name; ``None`` if it is not the name of one."""
        rest = name[len(self.prefix) :]
        return rest[len(_TAG_MARK) :] if rest.startswith(_TAG_MARK) else None

    def flushed(self, tag: str) -> str:
        """The name of the note that says when a tag was flushed."""
        return f"{self.prefix}{_FLUSHED_MARK}{tag}"

    @property
    def flush(self) -> str:
        """The name of the notes of flushes of everything, and since when they are under way."""
        return f"{self.prefix}{_FLUSH}"

    def lease(self, key: str) -> str:
        """The name of the lease on computing a key."""
        return f"{self.prefix}{_LEASE_MARK}{self.local(key)}"

    def wake(self, token: str) -> str:
        """The name of the list through which the holder of a lease wakes its waiters."""
        return f"{self.prefix}{_WAKE_MARK}{token}"

    def lock(self, name: str) -> str:
        """The name of a lock. The braces put it on the same node of a cluster as its bell."""
        return f"{self.prefix}{_LOCK_MARK}{{{name}}}"

    def bell(self, name: str) -> str:
        """The name of the list on which the waiters of a lock block."""
        return f"{self.prefix}{_BELL_MARK}{{{name}}}"

    def limit(self, name: str) -> str:
        """The name of a rate limiter's state."""
        return f"{self.prefix}{_LIMIT_MARK}{name}"

    @property
    def channel(self) -> str:
        """The channel on which processes without client tracking hear of changes. While one listens, a key of this name
        exists."""
        return f"{self.prefix}{_CHANNEL}"

    def outlives_flush(self, stored: bytes) -> bool:
        """Whether a name under the prefix is not to be flushed: locks, rate limits, listeners, the note of the
        flush."""
        marks = (_LOCK_MARK, _LIMIT_MARK, _CHANNEL)
        return stored == self.flush.encode() or stored.startswith(tuple(f"{self.prefix}{m}".encode() for m in marks))

    @property
    def pattern(self) -> str:
        """A glob for SCAN that matches everything under the prefix, and nothing else."""
        return re.sub(r"([*?\[\]\\])", r"\\\1", self.prefix) + "*"
