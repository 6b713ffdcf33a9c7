"""Structured fields (RFC 9651): dictionaries and lists, parsed strictly: one mistake invalidates the whole field.

Parameters are skipped: they have no meaning in the fields that a cache reads. Pure; whatever arrives, nothing here
raises.
"""

import re
from typing import Final

from backburner.http.headers import Directives

# Quantifiers are possessive, so that matching takes linear time on any text.
_KEY: Final = r"[a-z*][a-z0-9_.*-]*+"
_STRING: Final = r'"(?:[ !#-\[\]-~]|\\["\\])*+"'
_WORD: Final = r"[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*+"
_BARE: Final = (
    rf"(?:-?[0-9]{{1,15}}+(?:\.[0-9]{{1,3}}+)?|{_STRING}|{_WORD}|:[A-Za-z0-9+/=]*+:|\?[01]|@-?[0-9]{{1,15}}+)"
)
_PARAMETERS: Final = rf"(?:; *+{_KEY}(?:={_BARE})?)*+"
_ITEM: Final = rf"{_BARE}{_PARAMETERS}"
_INNER: Final = rf"\( *+(?:{_ITEM}(?: ++{_ITEM})*+ *+)?\)"
_ENTRY: Final = re.compile(rf"(?P<key>{_KEY})(?:=(?P<value>{_BARE}|{_INNER}))?{_PARAMETERS}")
_MEMBER: Final = re.compile(rf"(?P<value>{_BARE}|{_INNER}){_PARAMETERS}")
_COMMA: Final = re.compile(r"[ \t]*+,[ \t]*+")
_INTEGER: Final = re.compile(r"[0-9]{1,15}")


def dictionary(text: str | None) -> Directives:
    """A dictionary of directives, as ``CDN-Cache-Control`` is (RFC 9213 section 2.1); empty if it cannot be parsed.

    An argument of the wrong type is dropped, which allows less: ``max-age="60"`` gives no age, and ``private="x"``
    counts as ``private``.
    """
    found: dict[str, list[str | None]] = {}
    for match in _members(_ENTRY, text):
        found.pop(match["key"], None)  # the last of a key counts
        if match["value"] != "?0":
            found[match["key"]] = [match["value"] if _INTEGER.fullmatch(match["value"] or "") else None]
    return found


def strings(text: str | None) -> list[str]:
    """A list of strings, as ``Cache-Groups`` is (RFC 9875); empty if it cannot be parsed, or contains anything else."""
    values = [match["value"] for match in _members(_MEMBER, text)]
    if not all(value.startswith('"') for value in values):
        return []
    return [re.sub(r'\\(["\\])', r"\1", value[1:-1]) for value in values]


def _members(pattern: re.Pattern[str], text: str | None) -> list[re.Match[str]]:
    found: list[re.Match[str]] = []
    text, position = (text or "").strip(" "), 0
    while match := pattern.match(text, position):
        found.append(match)
        if match.end() == len(text):
            return found
        comma = _COMMA.match(text, match.end())
        if comma is None:
            break
        position = comma.end()
    return []
