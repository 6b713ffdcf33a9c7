"""Books. Editions are told apart by their ISBN; a book without one, by its title and author."""

import hashlib
from typing import Any

from sqlalchemy import Connection, String, event
from sqlalchemy.orm import Mapped, Mapper, mapped_column

from app.models.base import Base, Record
from app.text import same, searchable


class Book(Record, Base):
    """One edition of a book."""

    __tablename__ = "books"

    title: Mapped[str] = mapped_column(String(500))
    author: Mapped[str] = mapped_column(String(1000))
    year: Mapped[int | None] = mapped_column(index=True)
    """Of its first publication; before the common era, negative."""
    isbn: Mapped[str | None] = mapped_column(String(13))
    """Its 13 digits."""
    identity: Mapped[str] = mapped_column(String(64), unique=True)
    """Equal for what we take for the same book; see `identity_of`."""
    search_text: Mapped[str] = mapped_column(String)
    """Title, author and ISBN as people may type them; see `search_text_of`."""


def identity_of(title: str, author: str, isbn: str | None) -> str:
    """Digits that are equal for the same book: made of its ISBN if it has one, else of title and author."""
    identity = isbn or f"{same(title)}\n{same(author)}"
    return hashlib.sha256(identity.encode()).hexdigest()


def search_text_of(title: str, author: str, isbn: str | None) -> str:
    """What a search looks at."""
    return searchable(f"{title} {author} {isbn or ''}")


@event.listens_for(Book, "before_insert")
@event.listens_for(Book, "before_update")
def _derive(_mapper: Mapper[Any], _connection: Connection, book: Book) -> None:
    book.identity = identity_of(book.title, book.author, book.isbn)
    book.search_text = search_text_of(book.title, book.author, book.isbn)
