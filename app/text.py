"""Text as people type it: tidied for storing, folded for comparing and searching. Pure."""

import re
import unicodedata

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def tidy(text: str) -> str:
    """The text in composed form with single spaces between words and none around them.

    Raises:
        ValueError: it contains control characters other than white space.
    """
    tidied = " ".join(unicodedata.normalize("NFC", text).split())
    if found := _CONTROL.search(tidied):
        raise ValueError(f"it contains the control character {found.group()!r}")
    return tidied


def same(text: str) -> str:
    """The text without differences of case, width and spacing: equal for texts that people call the same."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def searchable(text: str) -> str:
    """The text as a search sees it: letters and digits, without case and accents."""
    bare = (letter for letter in unicodedata.normalize("NFKD", same(text)) if not unicodedata.combining(letter))
    return " ".join("".join(letter if letter.isalnum() else " " for letter in bare).split())
