"""How Alembic reaches the database and the tables. Processes that migrate at the same time wait for each other."""

from alembic import context

from app.core.database import database_url, engine
from app.models import Base

LOCK = {"sqlite": "BEGIN IMMEDIATE", "postgresql": "SELECT pg_advisory_xact_lock(4027218)"}
"""Held until the transaction ends. The number is arbitrary, and ours."""

if context.is_offline_mode():
    url = database_url().render_as_string(hide_password=False)
    context.configure(url=url, target_metadata=Base.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    with engine().begin() as connection:
        connection.exec_driver_sql(LOCK[connection.dialect.name])
        # SQLite changes a table by making a new one, which is what batches do.
        context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
        context.run_migrations()
