"""Which whole responses are cached for everybody, by the response cache in front of the routes.

They carry the tags of the data in them, so `book_cache.books_changed` removes both.
"""

import re
from collections.abc import Mapping
from typing import Any

from fastapi import Response

from app.book_cache import PAGE_TTL
from backburner.http import Policy

CACHE_CONTROL = "Bookstore-Cache-Control"


def keep_for_all(response: Response) -> None:
    """For routes whose response is the same for everybody.

    Only we cache it: no flush would reach a browser, so browsers ask each time, and are told that nothing changed.
    """
    response.headers["Cache-Control"] = "no-cache"
    response.headers[CACHE_CONTROL] = f"public, max-age={PAGE_TTL}"


def _tags(scope: Mapping[str, Any]) -> list[str]:
    book = re.fullmatch("/books/([1-9][0-9]*)", scope["path"])
    # The path may spell the number in another way. Every write flushes `books`, too, so that spelling is covered.
    return [f"book:{book[1]}" if book else "books"]


POLICY = Policy(targets=[CACHE_CONTROL], tags=_tags, ignore_cookies=True, cache_status="bookstore")
"""For everything under ``/books``. Only responses marked by `keep_for_all` are cached."""
