"""Migrations, the first books, and both kinds of database."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import Session

from app.models import Book
from tests.app.bookstore import Bookstore
from tests.app.test_import import counts, imported
from tests.processes import ROOT


def alembic(store: Bookstore, *commands: str) -> None:
    """Run several commands in one process, which saves most of the time."""
    calls = "; ".join(f"main(['-c', '{ROOT}/alembic.ini', *'{command}'.split()])" for command in commands)
    python(store, f"from alembic.config import main; {calls}")


def python(store: Bookstore, code: str) -> None:
    with store.run(f'python -W error -c "{code}"') as program:
        assert program.process.wait(30) == 0, program.output


def test_migrations_make_the_file_its_directory_and_what_the_models_say(own_store: Bookstore) -> None:
    assert (own_store.directory / "data" / "app.db").exists()
    alembic(own_store, "check", "downgrade base", "upgrade head", "check")


@pytest.mark.slow
def test_processes_that_start_at_once_migrate_once_and_fill_the_store_once(own_store: Bookstore) -> None:
    alembic(own_store, "downgrade base")

    def start(_: int) -> None:
        python(
            own_store,
            f"from alembic.config import main; main(['-c', '{ROOT}/alembic.ini', 'upgrade', 'head']);"
            "from app.seed import fill_empty_store; fill_empty_store()",
        )

    with ThreadPoolExecutor() as threads:
        list(threads.map(start, range(3)))
    rows = len((ROOT / "app" / "data" / "books.csv").read_text().splitlines()) - 1
    assert _count(own_store.environment["DATABASE_URL"]) == rows


@pytest.mark.slow
def test_without_tables_the_start_says_what_to_do(own_store: Bookstore) -> None:
    alembic(own_store, "downgrade base")
    with own_store.run("uvicorn app.main:app --port 0") as program:
        assert program.process.wait(30) != 0
        assert "run `alembic upgrade head`" in program.output


@pytest.mark.slow
def test_the_bookstore_runs_on_postgresql(own_store: Bookstore, postgres_url: str) -> None:
    own_store.database_url = postgres_url
    own_store.migrate()
    alembic(own_store, "check")
    with own_store.worker(), own_store.api(), own_store.api(), own_store.client() as client:
        own_store.log_in(client)
        assert client.get("/books", params={"q": "brontë jane", "sort": "-year"}).json()["total"] == 1
        assert client.get("/books", params={"q": "\x00'%_\\"}).json()["total"] == 0
        url = client.post("/books", json={"title": "T", "author": "A", "year": None}).headers["location"]
        assert client.post("/books", json={"title": "t", "author": "a"}).status_code == 409
        assert client.patch(url, json={"isbn": "9780198526636"}).status_code == 200
        assert client.get("/books", params={"sort": "-year", "limit": 1}).json()["items"][0]["year"] is not None
        content = "title,author,year,isbn\nT,A,2001,0198526636\nU,B\x00,1\nV,C,-44,\n"
        assert counts(imported(own_store, client, content)) == (1, 1, 0, 1)
        assert counts(imported(own_store, client, content)) == (0, 0, 2, 1)
        assert client.get(url).json()["year"] == 2001
        assert client.get("/health").json()["status"] == "ok"


def _count(url: str) -> int:
    engine = create_engine(url)
    with Session(engine) as db:
        count = db.scalar(select(func.count(Book.id))) or 0
    engine.dispose()
    return count


def test_a_user_that_comes_out_of_the_cache_is_usable_and_has_no_password(own_store: Bookstore, tmp_path: Path) -> None:
    program = tmp_path / "guide.py"
    program.write_text(
        """
from app.core.cache import cache
from app.core.database import get_db
from app.models.user import User
from app.schemas import UserCreate, UserUpdate

db = next(get_db())
new = UserCreate(email="Ada@Example.org", name="Ada", password="correct horse battery staple")
user = User.create(db, obj_in=new)
assert cache().put("user:1", user, ttl=300)
again = cache().get("user:1")
assert type(again) is User and again is not user
assert (again.id, again.email, again.name, again.created_at) == (user.id, "ada@example.org", "Ada", user.created_at)
assert b"argon2" not in cache().codec.encode(user)
assert db.merge(again).password_hash.startswith("$argon2")

assert cache().remember("users:active", ttl=600, callback=lambda: User.get_multi(db, skip=0, limit=100)) == [user]
(listed,) = cache().get("users:active")
assert listed.name == "Ada"
assert User.update(db, id=user.id, obj_in=UserUpdate(name="Lady Ada")).name == "Lady Ada"
assert User.get(db, id=user.id).name == "Lady Ada" and User.get(db, id=99) is None
"""
    )
    with own_store.run(f"python -W error {program}") as running:
        assert running.process.wait(30) == 0, running.output
