"""Imports an uploaded file in batches, each committed together with the position in the file.

So an import can be interrupted anywhere and started again: nothing is done twice, and the report counts the whole file.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from sqlalchemy.orm import Session

from app import uploads
from app.book_cache import books_changed
from app.books_csv import BadRow, BookRow, BooksFile
from app.catalogue import store_books
from app.models import BookImport
from app.models.book import identity_of
from backburner.queue import progress

BATCH = 500
MAX_PROBLEMS = 100
"""How many unusable rows are listed; all are counted."""


@dataclass
class Survey:
    """What was found in a file and does not go into the database."""

    skipped: int = 0
    isbns_left_out: int = 0
    problems: list[dict[str, Any]] = field(default_factory=list)

    def skip(self, line: int, reason: str) -> None:
        """Count a row that cannot be used."""
        self.skipped += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append({"line": line, "reason": reason})


def run(db: Session, import_id: str) -> dict[str, Any]:
    """Import the file and return the report. Running it again is safe, after a failure or a success.

    Raises:
        NoBooksError: the file has no header that names a title and an author.
        LookupError: there is no such import.
    """
    book_import = db.get(BookImport, import_id)
    if book_import is None:
        raise LookupError(f"There is no import {import_id}")
    if book_import.report is None:
        report = _import_file(db, book_import)
        book_import.report = report
        db.commit()
    uploads.discard(import_id)
    return book_import.report or {}


def _import_file(db: Session, book_import: BookImport) -> dict[str, Any]:
    file = BooksFile(uploads.path_of(book_import.id))
    survey = Survey()
    for batch in _batches(_usable(file, survey)):
        last_line = batch[-1].line
        if last_line > book_import.last_line:
            _import_batch(db, book_import, batch)
        progress(last_line, file.lines, f"{_handled(book_import, survey):,} rows read")
    progress(file.lines, file.lines, f"{_handled(book_import, survey):,} rows read")
    return {
        "created": book_import.created,
        "updated": book_import.updated,
        "unchanged": book_import.unchanged,
        "skipped": survey.skipped,
        "isbns_left_out": survey.isbns_left_out,
        "problems": survey.problems,
    }


def _import_batch(db: Session, book_import: BookImport, batch: list[BookRow]) -> None:
    stored = store_books(db, batch)
    book_import.created += stored.created
    book_import.updated += len(stored.updated)
    book_import.unchanged += stored.unchanged
    book_import.last_line = batch[-1].line
    db.commit()
    if stored.created or stored.updated:
        books_changed(stored.updated)
    db.expunge_all()
    db.add(book_import)


def _usable(file: BooksFile, survey: Survey) -> Iterator[BookRow]:
    """The rows that are books, each book once: importing the file again must change nothing."""
    seen: dict[bytes, int] = {}
    for row in file.rows():
        if isinstance(row, BadRow):
            survey.skip(row.line, row.reason)
            continue
        # A file may have a million rows, and eight bytes of a hash are enough to tell them apart.
        identity = blake2b(identity_of(row.title, row.author, row.isbn).encode(), digest_size=8).digest()
        first = seen.setdefault(identity, row.line)
        if first != row.line:
            survey.skip(row.line, f"the same book as line {first}")
            continue
        survey.isbns_left_out += row.isbn_left_out
        yield row


def _batches(rows: Iterator[BookRow]) -> Iterator[list[BookRow]]:
    batch: list[BookRow] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _handled(book_import: BookImport, survey: Survey) -> int:
    return book_import.created + book_import.updated + book_import.unchanged + survey.skipped
