"""Books in CSV files: which column is which, and what makes a row a book. No database.

An unusable row is reported with its line number and a reason; reading goes on with the next one.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.csv_rows import RowReader, first_row, quotation_is_open, split, survey
from app.isbn import isbn13
from app.text import tidy

DELIMITERS: Final = ",;\t|"

COLUMNS: Final[Mapping[str, str]] = {
    "title": "title | book title | name | book name | book | original title",
    "author": "author | authors | author(s) | author name | author names | book author | writer",
    "year": """year | publication year | year of publication | original publication year | year published
        | published year | published | publication date | publish date | date published | first published""",
    "isbn": "isbn13 | isbn 13 | isbn | isbn10 | isbn 10",
}
"""The names under which columns are found, best first. Case, spaces, hyphens, underscores do not matter."""

YEARS: Final = range(-4000, 2101)
MAX_TITLE: Final = 500
MAX_AUTHOR: Final = 1000

_MAX_HEADER = 100_000
_NOTHING = frozenset({"", "-", "?", "n/a", "na", "nan", "null", "none", "unknown", "n.d.", "s.a."})
_YEAR = re.compile(
    r"""(?:c\.?|ca\.?|circa|about|©)?\s*             # an estimate is good enough
        (?P<year>-?[0-9]{1,4})(?:\.0+)?\??           # spreadsheets write 2003.0
        (?:[-/]\d{1,2}|[-/.]\d{1,2}[-/.]\d{1,2}(?:[T\s].*)?)?   # a date that begins with the year
        \s*(?P<before>bce?|b\.c\.(?:e\.)?)?""",
    re.VERBOSE | re.IGNORECASE,
)
_DATE_ENDING_IN_A_YEAR = re.compile(r"\d{1,2}[-/.]\d{1,2}[-/.](?P<year>[0-9]{4})")


class NoBooksError(ValueError):
    """The file has no header that names a title and an author."""

    def __init__(self, found: Sequence[str]) -> None:
        self.found = list(found)
        """The columns that the file has."""
        columns = f"its columns are {', '.join(found)}" if found else "it is empty"
        super().__init__(f"The file needs columns for title and author; {columns}")


@dataclass(frozen=True, slots=True)
class BookRow:
    """A row that is a book."""

    line: int
    title: str
    author: str
    year: int | None
    isbn: str | None
    isbn_left_out: bool = False
    """Whether the row had an ISBN that is wrong."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is not a book, and why."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Header:
    """The first row, which says how to read the others."""

    delimiter: str
    width: int
    columns: Mapping[str, Sequence[int]]
    """For each of title, author, year and isbn, the indexes of cells that may contain it, best first."""

    @classmethod
    def parse(cls, lines: Sequence[str]) -> "Header":
        """Find the delimiter and the columns.

        Raises:
            NoBooksError: no delimiter yields columns for both title and author.
        """
        names: list[str] = []
        for delimiter in DELIMITERS:
            cells = split(lines, delimiter) or []
            columns = _find_columns(cells)
            if columns["title"] and columns["author"]:
                return cls(delimiter, len(cells), columns)
            names = max(names, cells, key=len)
        raise NoBooksError([_printable(name.strip()) for name in names[:50] if name.strip()])


def read_header(start: bytes, *, complete: bool) -> Header | None:
    """Read the header from the beginning of a file; None if that is too short. `complete` says that nothing follows.

    Raises:
        NoBooksError: the file has no header that names a title and an author.
    """
    # The names we know are ASCII, so the encoding does not matter, nor whether the last character is whole.
    text = start.decode(errors="replace").removeprefix("\ufeff")
    lines = first_row(io.StringIO(text, newline=""))
    ended = bool(lines) and lines[-1].endswith(("\n", "\r")) and not quotation_is_open(lines)
    if ended or complete or len(start) >= _MAX_HEADER:
        return Header.parse(lines)
    return None


class BooksFile:
    """A file of books."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._encoding, self.lines = survey(path)
        """The number of lines; a row may take more than one."""

    def rows(self) -> Iterator[BookRow | BadRow]:
        """Every row but the header and empty ones, in order.

        Raises:
            NoBooksError: the file has no header that names a title and an author.
        """
        with self._path.open(encoding=self._encoding, newline="") as file:
            reader = RowReader(file)
            header = Header.parse(reader.header())
            for line, cells in reader.rows(header.delimiter):
                if cells is None:
                    yield BadRow(line, "a quotation mark is opened here and not closed, or a cell is far too long")
                elif any(cell.strip() for cell in cells):
                    yield _book(line, cells, header)


def parse_year(text: str) -> int | None:
    """A year as catalogues write it (``2003.0``, ``c. 1999``, ``720 BC``, ``2003-11-30``); None for no year.

    Raises:
        ValueError: the text is not empty, and not a year.
    """
    text = text.strip().strip("[]()")
    if not _says_something(text):
        return None
    match = _YEAR.fullmatch(text) or _DATE_ENDING_IN_A_YEAR.fullmatch(text)
    if match is None:
        raise ValueError(f"the year {_printable(text)!r} is not a year")
    year = int(match["year"])
    if year == 0:
        return None  # the year 0 does not exist; catalogues write it for "unknown"
    if match.groupdict().get("before"):
        year = -year
    if year not in YEARS:
        raise ValueError(f"the year {year} is not between {YEARS[0]} and {YEARS[-1]}")
    return year


def _find_columns(names: Sequence[str]) -> dict[str, list[int]]:
    places = {_column_name(name): place for place, name in reversed(list(enumerate(names)))}
    synonyms = {field: map(_column_name, text.split("|")) for field, text in COLUMNS.items()}
    return {field: [places[name] for name in names if name in places] for field, names in synonyms.items()}


def _column_name(name: str) -> str:
    return " ".join(re.sub(r"[_\-\s]+", " ", name).casefold().split())


def _book(line: int, cells: list[str], header: Header) -> BookRow | BadRow:
    if any(cell.strip() for cell in cells[header.width :]):
        reason = f"it has {len(cells)} cells and the header {header.width}; are quotation marks missing?"
        return BadRow(line, reason)
    try:
        title = _text("title", _first(cells, header.columns["title"]), MAX_TITLE)
        author = _text("author", _first(cells, header.columns["author"]), MAX_AUTHOR)
        year = parse_year(_first(cells, header.columns["year"]))
    except ValueError as problem:
        return BadRow(line, str(problem))
    isbn, left_out = _isbn([cells[place] for place in header.columns["isbn"] if place < len(cells)])
    return BookRow(line, title, author, year, isbn, left_out)


def _first(cells: Sequence[str], places: Sequence[int]) -> str:
    """The first of these cells that is not empty."""
    return next((cells[place] for place in places if place < len(cells) and cells[place].strip()), "")


def _text(what: str, text: str, limit: int) -> str:
    try:
        tidied = tidy(text)
    except ValueError as problem:
        raise ValueError(f"the {what} cannot be used: {problem}") from None
    if not tidied:
        raise ValueError(f"the {what} is missing")
    if len(tidied) > limit:
        raise ValueError(f"the {what} has {len(tidied)} characters; {limit} is the limit")
    return tidied


def _isbn(cells: Sequence[str]) -> tuple[str | None, bool]:
    """The first usable ISBN of several cells, and whether there were only unusable ones."""
    left_out = False
    for cell in cells:
        text = cell.strip().removeprefix("=").strip('"').removesuffix(".0")
        if not _says_something(text):
            continue
        if re.fullmatch(r"[0-9]{6,8}[0-9Xx]", text):
            text = text.zfill(10)  # spreadsheets drop leading zeros
        try:
            return isbn13(text), False
        except ValueError:
            left_out = True
    return None, left_out


def _says_something(text: str) -> bool:
    return text.strip().casefold() not in _NOTHING


def _printable(text: str) -> str:
    shown = "".join(letter if letter.isprintable() else "�" for letter in text)
    return shown if len(shown) <= 60 else f"{shown[:60]}…"
