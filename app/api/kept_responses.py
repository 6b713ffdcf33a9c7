"""Which responses are kept whole, to be given to anybody who asks; the cache in front of the routes does it.

They carry the tags of the data in them, so `book_cache.books_changed` empties both.
"""

import re
from collections.abc import Mapping
from typing import Any

from fastapi import Response

from app.book_cache import PAGE_TTL
from backburner.http import Policy

CACHE_CONTROL = "Bookstore-Cache-Control"


def keep_for_all(response: Response) -> None:
    """For routes that answer the same whoever asks.

    Kept by us alone: no flush would reach a browser, so it asks each time, and hears that nothing changed.
    """
    response.headers["Cache-Control"] = "no-cache"
    response.headers[CACHE_CONTROL] = f"public, max-age={PAGE_TTL}"


def _tags(scope: Mapping[str, Any]) -> list[str]:
    book = re.fullmatch("/books/([1-9][0-9]*)", scope["path"])
    # A number can be written in other ways too. Every write flushes `books`, so that is right for whatever there is.
    return [f"book:{book[1]}" if book else "books"]


POLICY = Policy(targets=[CACHE_CONTROL], tags=_tags, ignore_cookies=True, cache_status="bookstore")
"""For everything under ``/books``. What is not marked by `keep_for_all` is not kept."""
