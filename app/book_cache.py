"""What is cached of the books, under which keys and tags, and what a write makes outdated.

A book is tagged ``book:{id}``. A page of a list may change with any book, so all pages are tagged ``books``;
nothing finer would be right. Whoever writes commits first and calls `books_changed` then.
"""

from collections.abc import Callable, Iterable
from hashlib import sha256

from app.core.cache import cache
from app.schemas import BookPage, BookRead

BOOK_TTL = 300
PAGE_TTL = 60
"""Seconds. They bound how long a read is outdated if the server was away when it should have been flushed."""


def remember_book(book_id: int, load: Callable[[], BookRead]) -> BookRead:
    """The book, cached. What `load` raises is passed on and not cached."""
    key = f"book:{book_id}"
    book: BookRead = cache().tags(key).remember(key, ttl=BOOK_TTL, callback=load)
    return book


def remember_page(query: str, load: Callable[[], BookPage]) -> BookPage:
    """The page that answers a query, cached."""
    key = f"books:{sha256(query.encode()).hexdigest()}"
    page: BookPage = cache().tags("books").remember(key, ttl=PAGE_TTL, callback=load)
    return page


def books_changed(book_ids: Iterable[int] = ()) -> None:
    """Forget these books, and all lists. A new book needs no id: nobody has read it yet."""
    cache().tags("books", *(f"book:{book_id}" for book_id in book_ids)).flush()
