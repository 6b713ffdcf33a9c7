"""Books. Editions are identified by their ISBN; a book without one, by its title and author."""

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
    """The year of first publication; negative before the common era."""
    isbn: Mapped[str | None] = mapped_column(String(13))
    """13 digits."""
    identity: Mapped[str] = mapped_column(String(64), unique=True)
    """Equal for what we take for the same book; see `identity_of`."""
    search_text: Mapped[str] = mapped_column(String)
    """Title, author and ISBN as people may type them; see `search_text_of`."""


def identity_of(title: str, author: str, isbn: str | None) -> str:
    """A digest that is equal for the same book: of its ISBN if it has one, otherwise of title and author."""
    identity = isbn or f"{same(title)}\n{same(author)}"
    return hashlib.sha256(identity.encode()).hexdigest()


def search_text_of(title: str, author: str, isbn: str | None) -> str:
    """The text that a search looks at."""
    return searchable(f"{title} {author} {isbn or ''}")


@event.listens_for(Book, "before_insert")
@event.listens_for(Book, "before_update")
def _derive(_mapper: Mapper[Any], _connection: Connection, book: Book) -> None:
    book.identity = identity_of(book.title, book.author, book.isbn)
    book.search_text = search_text_of(book.title, book.author, book.isbn)
