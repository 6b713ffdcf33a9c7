"""The database: one engine for the process, one session for each request or job."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends
from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.orm import Session

from app.core.config import settings

BUSY_TIMEOUT = 5.0
"""Seconds that a writer waits for another one (SQLite), or for a connection (PostgreSQL)."""


def database_url() -> URL:
    """The database's URL. For PostgreSQL, psycopg 3 is used unless the URL names another driver."""
    url = make_url(settings.database_url)
    if url.drivername in {"postgres", "postgresql"}:
        return url.set(drivername="postgresql+psycopg")
    return url


@cache
def engine() -> Engine:
    """The process's engine. It connects when first used; forked workers each build their own."""
    url = database_url()
    if url.get_backend_name() == "sqlite":
        return _sqlite(url)
    return create_engine(url, pool_pre_ping=True, pool_timeout=BUSY_TIMEOUT, connect_args={"connect_timeout": 5})


def get_db() -> Iterator[Session]:
    """A session, closed at the end; uncommitted changes are rolled back."""
    with Session(engine(), expire_on_commit=False) as session:
        yield session


DB = Annotated[Session, Depends(get_db)]
"""For routes and tasks: a session of their own."""


def _sqlite(url: URL) -> Engine:
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    sqlite = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT})

    @event.listens_for(sqlite, "connect")
    def _prepare(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA journal_mode = WAL")  # the API reads while the worker writes
        connection.execute("PRAGMA foreign_keys = ON")

    return sqlite
