"""What is cached about books, under which keys and tags, and what a write invalidates.

A book is tagged ``book:{id}``. A page of a list may change with any book, so all pages are tagged ``books``;
anything finer would miss changes. Writers commit first, and then call `books_changed`.
"""

from collections.abc import Callable, Iterable
from hashlib import sha256

from app.core.cache import cache
from app.schemas import BookPage, BookRead

BOOK_TTL = 300
PAGE_TTL = 60
"""Seconds. They bound how long outdated data is read if the server was away when it should have been flushed."""


def remember_book(book_id: int, load: Callable[[], BookRead]) -> BookRead:
    """The book, cached. Exceptions of `load` are raised, and not cached."""
    key = f"book:{book_id}"
    book: BookRead = cache().tags(key).remember(key, ttl=BOOK_TTL, callback=load)
    return book


def remember_page(query: str, load: Callable[[], BookPage]) -> BookPage:
    """The page that answers a query, cached."""
    key = f"books:{sha256(query.encode()).hexdigest()}"
    page: BookPage = cache().tags("books").remember(key, ttl=PAGE_TTL, callback=load)
    return page


def books_changed(book_ids: Iterable[int] = ()) -> None:
    """Remove these books and all lists from the cache. A new book needs no id: nobody has read it yet."""
    cache().tags("books", *(f"book:{book_id}" for book_id in book_ids)).flush()
