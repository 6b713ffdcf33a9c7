"""People who can log in."""

from datetime import datetime
from typing import Any, Self

from sqlalchemy import String, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.models.base import Base, Record, UTCDateTime, now
from app.passwords import hash_password, password_matches


class User(Record, Base):
    """One account. Its e-mail is kept in lower case, its password as a hash only."""

    __tablename__ = "users"

    email: Mapped[str] = mapped_column(String(320), unique=True)
    name: Mapped[str] = mapped_column(String(100))
    password_hash: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)
    welcomed_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    """When the welcome e-mail was handed to the mail server."""

    @classmethod
    def authenticate(cls, db: Session, *, email: str, password: str) -> Self | None:
        """The user with this e-mail and password, or None; it takes the same time whichever is wrong."""
        user = db.scalar(select(cls).where(cls.email == email.lower()))
        matches = password_matches(password, user.password_hash if user else None)
        return user if matches else None

    @classmethod
    def columns(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The columns to store: the e-mail in lower case, and the password's hash in place of the password."""
        columns = dict(values)
        if "email" in columns:
            columns["email"] = columns["email"].lower()
        if "password" in columns:
            columns["password_hash"] = hash_password(columns.pop("password"))
        return columns
