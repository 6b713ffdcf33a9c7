"""What all tables share: names for constraints, times in UTC, and the operations of a model."""

from datetime import UTC, datetime
from typing import Any, Self

from pydantic import BaseModel
from sqlalchemy import ColumnElement, DateTime, Dialect, MetaData, TypeDecorator, delete, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.sql.dml import ReturningUpdate

MAX_ID = 2**31 - 1


class Base(DeclarativeBase):
    """The parent of all tables."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Record:
    """The operations on a table whose rows have a numeric id. Those that write also commit."""

    # SQLite would reuse the id of a removed row, and old links and bookmarks would lead to the new one.
    __table_args__ = {"sqlite_autoincrement": True}  # noqa: RUF012  # SQLAlchemy's way of writing it

    id: Mapped[int] = mapped_column(primary_key=True)

    @classmethod
    def get(cls, db: Session, id: int) -> Self | None:  # noqa: A002  # reads as User.get(db, id=1)
        """The row with this id, or None."""
        return db.get(cls, id)

    @classmethod
    def get_multi(cls, db: Session, *, skip: int = 0, limit: int = 100) -> list[Self]:
        """Rows in the order of their ids."""
        return list(db.scalars(select(cls).order_by(cls.id).offset(skip).limit(limit)))

    @classmethod
    def create(cls, db: Session, *, obj_in: BaseModel) -> Self:
        """Store a new row.

        Raises:
            IntegrityError: another row has what must be unique; the session is rolled back.
        """
        row = cls(**cls.columns(obj_in.model_dump()))
        db.add(row)
        cls._commit(db)
        return row

    @classmethod
    def update(cls, db: Session, *, id: int, obj_in: BaseModel) -> Self | None:  # noqa: A002  # as above
        """Change the fields that are set in `obj_in`, and nothing else; None if there is no such row.

        Raises:
            IntegrityError: another row has what must be unique; the session is rolled back.
        """
        columns = cls.columns(obj_in.model_dump(exclude_unset=True))
        row = db.scalar(cls.locking(cls.id == id))
        if row is None:
            return None
        for name, value in columns.items():
            setattr(row, name, value)
        cls._commit(db)
        return row

    @classmethod
    def locking(cls, *conditions: ColumnElement[bool]) -> ReturningUpdate[Self]:
        """A statement that returns rows and keeps others from writing them until the commit, so that a value derived
        from several columns is derived from their current values. It is a write that changes nothing, because not every
        database has another way to lock rows.
        """
        locked = update(cls).where(*conditions).values(id=cls.id).returning(cls)
        return locked.execution_options(populate_existing=True, synchronize_session=False)

    @classmethod
    def delete(cls, db: Session, *, id: int) -> bool:  # noqa: A002  # as above
        """Remove a row; False if there was none."""
        removed = db.scalar(delete(cls).where(cls.id == id).returning(cls.id))
        cls._commit(db)
        return removed is not None

    @classmethod
    def columns(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The columns to store for incoming values; a model may translate some of them."""
        return values

    @staticmethod
    def _commit(db: Session) -> None:
        try:
            db.commit()
        except Exception:
            db.rollback()
            raise


class UTCDateTime(TypeDecorator[datetime]):
    """A moment in time. SQLite keeps no time zones, so UTC is stored, and values that come back are marked as UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002  # SQLAlchemy's signature
        """Convert a moment in any time zone to UTC."""
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002  # SQLAlchemy's signature
        """Mark the moment as UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def now() -> datetime:
    """This moment, in UTC."""
    return datetime.now(UTC)
