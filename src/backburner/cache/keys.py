"""Which keys and tags are allowed, and where they lie on the server.

Everything a cache owns is under its prefix. What it keeps for itself there (the versions of tags) begins with a control
character, which keys of users may not contain: the two can never meet.
"""

import re
from collections.abc import Iterable
from typing import Final

MAX_LENGTH: Final = 1024
"""Characters in a key or tag. Long keys cost memory in the server and bandwidth with every command."""

_TAG_MARK: Final = "\x01tag:"
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def check_key(key: str) -> str:
    """Give the key back.

    Raises:
        ValueError: it is no text, empty, too long, or holds control characters.
    """
    return _check("key", key)


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Give the tags back, each once, in their order.

    Raises:
        ValueError: there are none, or one is no text, empty, too long, or holds control characters.
    """
    if isinstance(tags, str):
        raise ValueError(f"tags must be several texts, not the text {tags!r}")  # noqa: TRY004
    checked = tuple(dict.fromkeys(_check("tag", tag) for tag in tags))
    if not checked:
        raise ValueError("at least one tag is needed")
    return checked


def _check(kind: str, name: str) -> str:
    if not isinstance(name, str):
        # One kind of error for every kind of bad key.
        raise ValueError(f"a {kind} must be text, not {type(name).__name__}: {name!r}")  # noqa: TRY004
    if not name:
        raise ValueError(f"a {kind} must not be empty")
    if len(name) > MAX_LENGTH:
        raise ValueError(f"a {kind} has at most {MAX_LENGTH} characters, this one has {len(name)}: {name[:40]!r}…")
    if _CONTROL.search(name):
        raise ValueError(f"a {kind} must not contain control characters: {name!r}")
    if not name.isascii():
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(f"a {kind} must be valid Unicode text: {name!r}") from None
    return name


class Keyspace:
    """The names that one cache uses on a server."""

    __slots__ = ("prefix",)

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def entry(self, key: str) -> str:
        """Where the entry of a key lies."""
        return self.prefix + key

    def tag(self, tag: str) -> str:
        """Where the version of a tag lies."""
        return f"{self.prefix}{_TAG_MARK}{tag}"

    @property
    def pattern(self) -> str:
        """A glob for SCAN that matches everything under the prefix, and nothing else."""
        return re.sub(r"([*?\[\]\\])", r"\\\1", self.prefix) + "*"
