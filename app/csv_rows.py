"""Reads rows of cells from CSV files that may be damaged. What the cells mean is not known here.

A file is read line by line and never held whole, and damage costs only the line where it begins.
"""

import csv
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, TextIO

MAX_LINES_OF_A_ROW: Final = 100
_MAX_LINE: Final = 1_000_000
_ENCODINGS: Final = ("utf-8-sig", "cp1252", "latin-1")
"""Tried in this order. Windows-1252 is what most files called Latin-1 are; every file is valid Latin-1."""


def survey(path: Path) -> tuple[str, int]:
    """The file's encoding and its number of lines."""
    for encoding in _ENCODINGS:
        try:
            with path.open(encoding=encoding, newline="") as file:
                return encoding, sum(1 for _ in _lines(file))
        except UnicodeDecodeError:
            continue
    raise AssertionError("every file is valid Latin-1")


def split(lines: Iterable[str], delimiter: str) -> list[str] | None:
    """The cells of the first row; None if the lines end within a quotation or a cell is beyond csv's limit."""
    unfinished = False

    def feed() -> Iterator[str]:
        nonlocal unfinished
        yield from lines
        unfinished = True  # csv asks for more lines only within a row

    try:
        cells = next(csv.reader(feed(), delimiter=delimiter), None)
    except csv.Error:
        return None
    return None if unfinished else cells


def first_row(lines: Iterable[str]) -> list[str]:
    """The lines of the first row that is not empty, whatever its delimiter."""
    row: list[str] = []
    for line in lines:
        if row or line.strip():
            row.append(line)
        if len(row) == MAX_LINES_OF_A_ROW or (row and not quotation_is_open(row)):
            break
    return row


def quotation_is_open(lines: Sequence[str]) -> bool:
    """Whether the row goes on in the next line."""
    return sum(line.count('"') for line in lines) % 2 == 1


class RowReader:
    """The rows of an open file (``newline=""``), with the numbers of their lines.

    A quotation mark that is never closed would swallow the rest of the file. So a row that takes too many lines
    is given up: its first line is bad, and reading goes on with the second.
    """

    def __init__(self, file: TextIO) -> None:
        self._lines = _lines(file)
        self._waiting: deque[str] = deque()
        self._number = 0

    def header(self) -> list[str]:
        """The lines of the first row, to be called before `rows`."""
        return first_row(self._counted())

    def rows(self, delimiter: str) -> Iterator[tuple[int, list[str] | None]]:
        """For each row, the number of its first line and its cells; no cells if it cannot be read."""
        while True:
            taken: list[str] = []
            cells = split(self._take(taken), delimiter)
            if not taken:
                return
            yield self._number + 1, cells
            if cells is None:
                self._waiting.extendleft(reversed(taken[1:]))
            self._number += len(taken) if cells is not None else 1

    def _counted(self) -> Iterator[str]:
        for line in self._lines:
            self._number += 1
            yield line

    def _take(self, taken: list[str]) -> Iterator[str]:
        while len(taken) < MAX_LINES_OF_A_ROW:
            line = self._waiting.popleft() if self._waiting else next(self._lines, None)
            if line is None:
                return
            taken.append(line)
            yield line


def _lines(file: TextIO) -> Iterator[str]:
    """The lines of a file; of overlong ones only the beginning."""
    while line := file.readline(_MAX_LINE):
        if len(line) == _MAX_LINE and not _is_ended(line):
            while (rest := file.readline(_MAX_LINE)) and not _is_ended(rest):
                pass
        yield line


def _is_ended(line: str) -> bool:
    return line.endswith(("\n", "\r"))
