"""The first books: an empty store is filled with a few hundred."""

import logging
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.orm import Session

from app.book_cache import books_changed
from app.books_csv import BookRow, BooksFile
from app.catalogue import store_books
from app.core.database import engine
from app.models import Book

BOOKS = Path(__file__).parent / "data" / "books.csv"

log = logging.getLogger("app.seed")


def fill_empty_store() -> None:
    """Add the first books if there are none. Several processes may do so at once: each book is added once.

    Raises:
        RuntimeError: the tables are not there, or the database does not answer.
    """
    try:
        with Session(engine()) as db:
            if db.scalar(select(Book.id).limit(1)) is not None:
                return
            rows = [row for row in BooksFile(BOOKS).rows() if isinstance(row, BookRow)]
            stored = store_books(db, rows)
            db.commit()
    except (OperationalError, ProgrammingError) as error:
        raise RuntimeError(
            f"The bookstore's tables cannot be read; run `alembic upgrade head`: {error.orig}"
        ) from error
    books_changed()
    log.info("The store was empty: added %d books", stored.created)
