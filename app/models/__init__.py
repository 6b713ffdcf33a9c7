"""The tables."""

from app.models.base import Base
from app.models.book import Book
from app.models.book_import import BookImport
from app.models.user import User

__all__ = ["Base", "Book", "BookImport", "User"]
