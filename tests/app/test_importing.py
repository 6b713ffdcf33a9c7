"""An import that ends half-way, runs twice, or runs twice at once. In this process, without a worker."""

import uuid
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, func, select
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from app import importing, uploads
from app.books_csv import BookRow
from app.catalogue import store_books
from app.core.config import settings
from app.models import Base, Book, BookImport, User
from app.models.book import search_text_of
from app.schemas import BookCreate, BookUpdate


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    engine = create_engine(f"sqlite:///{tmp_path}/app.db")
    Base.metadata.create_all(engine)
    monkeypatch.setattr(importing, "books_changed", lambda _ids: None)
    monkeypatch.setitem(settings.__dict__, "upload_dir", tmp_path / "uploads")
    yield engine
    engine.dispose()


@pytest.fixture
def import_id(engine: Engine) -> str:
    """An import of 1,200 books, three batches."""
    import_id = str(uuid.uuid4())
    with Session(engine) as db:
        user = User(email="a@example.org", name="A", password_hash="-")
        db.add(user)
        db.flush()
        db.add(BookImport(id=import_id, user_id=user.id))
        db.commit()
    rows = "".join(f"Title {number},Author\n" for number in range(1200))
    uploads.path_of(import_id).write_text(f"title,author\n{rows},nobody\n")
    return import_id


def count(engine: Engine) -> int:
    with Session(engine) as db:
        return db.scalar(select(func.count(Book.id))) or 0


def run(engine: Engine, import_id: str) -> dict[str, Any]:
    """As the task does, with a session of its own."""
    with Session(engine, expire_on_commit=False) as db:
        return importing.run(db, import_id)


COMPLETE = {"created": 1200, "updated": 0, "unchanged": 0, "skipped": 1, "isbns_left_out": 0}


def test_a_job_that_died_half_way_goes_on_and_counts_the_whole_file(
    engine: Engine, import_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = []

    def dying(_ids: object) -> None:
        batches.append(1)
        if len(batches) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(importing, "books_changed", dying)
    with pytest.raises(KeyboardInterrupt):
        run(engine, import_id)
    assert count(engine) == 1000
    report = run(engine, import_id)
    assert count(engine) == 1200
    assert {name: report[name] for name in COMPLETE} == COMPLETE
    assert report["problems"] == [{"line": 1202, "reason": "the title is missing"}]


def test_a_job_that_runs_again_after_its_end_gives_the_same_report(engine: Engine, import_id: str) -> None:
    report = run(engine, import_id)
    assert not uploads.path_of(import_id).exists()
    assert run(engine, import_id) == report
    assert count(engine) == 1200


def test_the_file_stays_when_the_import_fails(engine: Engine, import_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "store_books", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(engine, import_id)
    assert uploads.path_of(import_id).exists()


def test_of_two_workers_with_the_same_import_the_slower_one_rolls_back(
    engine: Engine, import_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_books = importing.store_books
    calls = []

    def overtaken(db: Session, rows: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            run(engine, import_id)  # the other worker, faster
        return store_books(db, rows)

    monkeypatch.setattr(importing, "store_books", overtaken)
    with pytest.raises(StaleDataError):
        run(engine, import_id)
    assert {name: run(engine, import_id)[name] for name in COMPLETE} == COMPLETE
    assert count(engine) == 1200


def test_who_changes_a_book_during_its_import_waits_and_its_words_are_those_of_both(engine: Engine) -> None:
    isbn = "9780141439587"
    with Session(engine) as db:
        book_id = Book.create(db, obj_in=BookCreate(title="Emma", author="Austen", isbn=isbn)).id

    def change() -> None:
        with Session(engine) as db:
            Book.update(db, id=book_id, obj_in=BookUpdate(author="Jane Austen"))

    changing = Thread(target=change)
    with Session(engine) as db:
        store_books(db, [BookRow(2, "Emma: A Novel", "Austen", None, isbn)])
        changing.start()
        changing.join(0.3)
        db.commit()
    changing.join()
    with Session(engine) as db:
        book = db.get_one(Book, book_id)
        assert book.search_text == search_text_of(book.title, book.author, isbn) == f"emma a novel jane austen {isbn}"


def test_an_import_that_nobody_asked_for_is_an_error(engine: Engine) -> None:
    with pytest.raises(LookupError, match="no import"):
        run(engine, "nonsense")


def test_files_are_removed_after_a_week(engine: Engine, import_id: str) -> None:
    import os
    import time

    path = uploads.path_of(import_id)
    assert uploads.clear() == 0
    old = time.time() - uploads.RETENTION - 60
    os.utime(path, (old, old))
    assert uploads.clear() == 1
    assert not path.exists()
