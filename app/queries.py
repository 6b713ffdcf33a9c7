"""Queries for books, as SQL."""

from typing import Any

from sqlalchemy import ColumnElement, Select, func, select

from app.isbn import isbn13
from app.models import Book
from app.text import searchable

_COLUMNS: dict[str, ColumnElement[Any]] = {
    "title": func.lower(Book.title),
    "author": func.lower(Book.author),
    "year": Book.year.expression,
    "id": Book.id.expression,
}


def list_books(search: str, sort: str) -> Select[Book]:
    """The matching books, sorted; those without a year come last in either direction."""
    column = _COLUMNS[sort.removeprefix("-")]
    order = column.desc() if sort.startswith("-") else column.asc()
    return select(Book).where(*_matches(search)).order_by(order.nulls_last(), Book.id)


def count_books(search: str) -> Select[int]:
    """How many books match."""
    return select(func.count(Book.id)).where(*_matches(search))


def _matches(search: str) -> list[ColumnElement[bool]]:
    if not search.strip():
        return []
    try:
        return [Book.isbn == isbn13(search)]
    except ValueError:
        words = searchable(search).split()
    # The query has only punctuation, which is not searched for.
    return [Book.search_text.contains(word, autoescape=True) for word in words] or [Book.id.is_(None)]
