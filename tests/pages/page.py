"""A page of the documentation, read as a test reads it: its fenced blocks of code, and its links.

A block is left out when the line before it says why: ``<!-- not run: reason -->``.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^(?P<indent> *)(?P<marks>`{3,}|~{3,})\s*(?P<language>[\w+-]*)\s*$")
_NOT_RUN = re.compile(r"<!-- not run: .+ -->")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A block of code; `line` is that of its first line, counted from one."""

    language: str
    line: int
    code: str
    skipped: bool


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    return list(_blocks(page.read_text().splitlines()))


def _blocks(lines: list[str]) -> Iterator[Block]:
    before = ""
    numbered = iter(enumerate(lines, 1))
    for number, line in numbered:
        fence = _FENCE.match(line)
        if fence is None:
            before = line if line.strip() else before
            continue
        indent, marks = len(fence["indent"]), fence["marks"]
        code = []
        for _, inner in numbered:
            if inner.strip().startswith(marks) and not inner.strip().strip(marks[0]):
                break
            code.append(inner[indent:])
        else:
            raise AssertionError(f"line {number}: this block is never closed")
        skipped = bool(_NOT_RUN.search(before))
        yield Block(fence["language"], number + 1, "\n".join(code) + "\n", skipped)
        before = ""


def links(page: Path) -> list[str]:
    """Where the links and pictures of a page lead, outside its blocks of code."""
    text = page.read_text()
    for block in blocks(page):
        text = text.replace(block.code, "")
    return [link or picture for link, picture in _LINK.findall(text)]


def anchors(page: Path) -> set[str]:
    """The names that a link can end with: those of the headings, as they are made from their words."""
    headings = re.findall(r"^#+ +(.+?) *$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
