"""Books, users and imports."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "books",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("title", sa.String(500), nullable=False),
        sa.Column("author", sa.String(1000), nullable=False),
        sa.Column("year", sa.Integer),
        sa.Column("isbn", sa.String(13)),
        sa.Column("identity", sa.String(64), nullable=False),
        sa.Column("search_text", sa.String, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_books"),
        sa.UniqueConstraint("identity", name="uq_books_identity"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_books_year", "books", ["year"])
    op.create_table(
        "users",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("email", sa.String(320), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("password_hash", sa.String(200), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("welcomed_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("email", name="uq_users_email"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "book_imports",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_line", sa.Integer, nullable=False),
        sa.Column("created", sa.Integer, nullable=False),
        sa.Column("updated", sa.Integer, nullable=False),
        sa.Column("unchanged", sa.Integer, nullable=False),
        sa.Column("report", sa.JSON),
        sa.Column("version", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_book_imports"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_book_imports_user_id", ondelete="CASCADE"),
    )
    op.create_index("ix_book_imports_user_id", "book_imports", ["user_id"])


def downgrade() -> None:
    """Drop the tables."""
    op.drop_table("book_imports")
    op.drop_table("users")
    op.drop_table("books")
