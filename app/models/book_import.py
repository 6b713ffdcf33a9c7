"""Files of books being imported: their owners, and how far they are."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, UTCDateTime, now


class BookImport(Base):
    """One uploaded file.

    Its counts are committed with the rows they count, so a repeated job continues where the last one ended.
    """

    __tablename__ = "book_imports"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    """Also the id of the job, and the name of the file in the upload directory."""
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)
    last_line: Mapped[int] = mapped_column(default=0)
    """The last line of the file whose book is in the database."""
    created: Mapped[int] = mapped_column(default=0)
    updated: Mapped[int] = mapped_column(default=0)
    unchanged: Mapped[int] = mapped_column(default=0)
    report: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """The job's result, once it is finished."""
    version: Mapped[int] = mapped_column()

    # If two workers run the same import at once, the slower one's batch is rolled back (StaleDataError).
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012  # SQLAlchemy's way of writing it
