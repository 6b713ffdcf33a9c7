"""Header fields as values. Pure; whatever arrives, nothing here raises.

Headers are pairs of bytes as in ASGI, names in lower case. A value that cannot be parsed counts as the one that makes a
cache keep less: a number as 0, a time as long past, a broken list of directives as ``no-store``.
"""

import re
from calendar import timegm
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Final

Headers = Sequence[tuple[bytes, bytes]]
Directives = Mapping[str, Sequence[str | None]]
"""Directives by their names in lower case, each with its arguments; ``None`` for one without an argument."""

LONGEST: Final = 2**31
"""Seconds; more than this means for ever (RFC 9111 section 1.2.2)."""

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_BREAKS: Final = re.compile(rb"[\0\r\n]")
_MEMBER: Final = re.compile(r'(?:[^",]|"(?:[^"\\]|\\.)*")+')
_BALANCED: Final = re.compile(r'(?:[^"]|"(?:[^"\\]|\\.)*")*')
_SPACES: Final = re.compile(r"\s+")
_ENTITY_TAG: Final = re.compile(rb'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_BYTE_RANGE: Final = re.compile(r"(\d{0,19})-(\d{0,19})")

_MONTHS: Final = {
    name: number
    for number, name in enumerate("jan feb mar apr may jun jul aug sep oct nov dec".split(), 1)  # noqa: SIM905
}
_CLOCK: Final = r"(?P<hour>\d{2}):(?P<minute>\d{2}):(?P<second>\d{2})"
_DATES: Final = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"[a-z]{{3}}, (?P<day>\d{{2}}) (?P<month>[a-z]{{3}}) (?P<year>\d{{4}}) {_CLOCK} GMT",
        rf"[a-z]{{6,9}}, (?P<day>\d{{2}})-(?P<month>[a-z]{{3}})-(?P<year>\d{{2}}) {_CLOCK} GMT",
        rf"[a-z]{{3}} (?P<month>[a-z]{{3}}) (?P<day>[ \d]\d) {_CLOCK} (?P<year>\d{{4}})",
    )
)


def is_token(text: str) -> bool:
    """Whether a text may be the name of a header or a directive (RFC 9110 section 5.6.2)."""
    return _TOKEN.fullmatch(text) is not None


def are_clean(headers: Headers) -> bool:
    """Whether these can be sent without injecting other headers (RFC 9110 sections 5.1 and 5.5)."""
    return all(_NAME.fullmatch(name) and not _BREAKS.search(value) for name, value in headers)


def lines(headers: Headers, name: bytes) -> list[str]:
    """The lines of a field."""
    return [value.decode("latin-1") for key, value in headers if key == name]


def field(headers: Headers, name: bytes) -> str | None:
    """The value of a field, its lines joined by commas; ``None`` if it is not there."""
    found = lines(headers, name)
    return ", ".join(found) if found else None


def members(text: str | None) -> list[str]:
    """The members of a comma-separated list, without empty ones; commas in quotes do not separate."""
    text = text or ""
    # An unclosed quote hides nothing, and its end is not searched for again from each character.
    found = _MEMBER.findall(text) if _BALANCED.fullmatch(text) else text.split(",")
    return [stripped for member in found if (stripped := member.strip(" \t"))]


def names(text: str | None) -> list[str]:
    """The members of a list of names, in lower case."""
    return [member.lower() for member in members(text)]


def directives(*lines: str) -> Directives:
    """The directives of the lines of ``Cache-Control`` (RFC 9111 section 5.2).

    A directive followed by garbage counts, without a usable argument: ``no-store;x`` forbids storing. Each line is
    parsed by itself, so that a quote in one line cannot hide another.
    """
    found: dict[str, list[str | None]] = {}
    for line in lines:
        for member in members(line):
            token = _TOKEN.match(member)
            if token is None:
                continue
            rest = member[token.end() :]
            argument = None
            if rest:
                argument = rest[1:] if rest[0] == "=" else ""
                if len(argument) > 1 and argument[0] == argument[-1] == '"':
                    argument = argument[1:-1]
            found.setdefault(token[0].lower(), []).append(argument)
        if not _BALANCED.fullmatch(line):
            found.setdefault("no-store", []).append(None)
    return found


def seconds(arguments: Sequence[str | None] | None) -> int | None:
    """The seconds that a directive gives; of several the least. ``None`` if it is absent."""
    if arguments is None:
        return None
    return min(delta_seconds(text or "") or 0 for text in arguments)


def delta_seconds(text: str) -> int | None:
    """Parse delta-seconds (RFC 9111 section 1.2.2); ``None`` if it is anything else."""
    if not (text.isascii() and text.isdigit()):
        return None
    digits = text.lstrip("0")
    return min(int(digits or 0), LONGEST) if len(digits) <= len(str(LONGEST)) else LONGEST


def date(text: str | None) -> float | None:
    """Parse an HTTP date (RFC 9110 section 5.6.7) to Unix seconds; ``None`` if it is anything else."""
    for pattern in _DATES:
        if match := pattern.fullmatch(text or ""):
            break
    else:
        return None
    month = _MONTHS.get(match["month"].lower(), 0)
    day, hour, minute, second = (int(match[part]) for part in ("day", "hour", "minute", "second"))
    year = int(match["year"])
    if len(match["year"]) == 2:
        year += 2000 if year < 70 else 1900
    if not (month and 1 <= day <= 31 and hour < 24 and minute < 60 and second <= 60 and year >= 1):
        return None
    return float(timegm((year, month, day, hour, minute, second)))


def entity_tag_of(body: bytes) -> bytes:
    """An entity-tag derived from the content: the same in every process."""
    return b'"%s"' % blake2b(body, digest_size=12).hexdigest().encode()


def strong(tag: bytes) -> bool:
    """Whether an entity-tag is strong: it promises that the bytes are the same."""
    return tag.startswith(b'"') and tag.endswith(b'"') and len(tag) > 1


def names_tag(condition: bytes, tag: bytes) -> bool:
    """Whether a list of entity-tags names one, by weak comparison (RFC 9110 section 8.8.3.2)."""
    if condition in (tag, b"*"):
        return True
    opaque = tag[2:] if tag.startswith(b"W/") else tag
    return opaque in _ENTITY_TAG.findall(condition)


def byte_ranges(text: str, size: int) -> list[tuple[int, int]] | None:
    """The parts of a body of so many bytes that ``Range`` asks for, each as (start, end) (RFC 9110 section 14).

    Returns:
        ``None`` if the field is to be ignored: not a valid range, or one that asks for too much; an empty list if no
        part of it can be satisfied.
    """
    unit, _, specs = text.partition("=")
    if unit.strip().lower() != "bytes":
        return None
    ranges = []
    total = 0
    for spec in specs.split(","):
        match = _BYTE_RANGE.fullmatch(spec.strip(" \t"))
        if match is None or not (match[1] or match[2]):
            return None
        if match[1]:
            first = int(match[1])
            if match[2] and int(match[2]) < first:
                return None
            behind = min(int(match[2]) + 1, size) if match[2] else size
        else:
            first, behind = max(0, size - int(match[2])), size
        if first < behind:
            ranges.append((first, behind))
            total += behind - first
    # Many small or overlapping ranges are a denial-of-service attack (RFC 9110 section 17.15).
    return None if total > size or len(ranges) > _MOST_RANGES else ranges


_MOST_RANGES: Final = 16


def without(headers: Headers, dropped: Iterable[bytes]) -> list[tuple[bytes, bytes]]:
    """The headers except those with these names."""
    gone = frozenset(dropped)
    return [pair for pair in headers if pair[0] not in gone]


def normalised(name: bytes, text: str) -> str:
    """The value of a request header in a canonical form, the same for equivalent values (RFC 9111 section 4.1)."""
    if name in _CREDENTIALS or not _BALANCED.fullmatch(text):
        return text
    parts = members(text)
    if name in _PREFERENCES:
        parts = sorted(_SPACES.sub("", part.lower()) for part in parts)
    return ",".join(parts)


_CREDENTIALS: Final = frozenset({b"authorization", b"cookie"})
"""Fields that are not lists: values that differ at all are different."""


_PREFERENCES: Final = frozenset({b"accept", b"accept-charset", b"accept-encoding", b"accept-language"})
"""Lists whose order means nothing: the weights say what is preferred (RFC 9110 section 12.4.2)."""
