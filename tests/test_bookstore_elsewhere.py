"""The bookstore on the other servers it is made for: PostgreSQL as its database, Redis 7 for cache and queue."""

from pathlib import Path

import pytest

from tests.app.bookstore import Bookstore
from tests.conftest import Eventually

pytestmark = pytest.mark.slow

BOOKS = """title,author,year,isbn
The Wind in the Willows,Kenneth Grahame,1908,
Ein Buch über Bücher,Jürgen Groß,2001,
,Nobody,1999,
"""


@pytest.fixture
def on_postgres(redis_url: str, postgres_url: str, tmp_path: Path, eventually: Eventually) -> Bookstore:
    return Bookstore(tmp_path, redis_url, eventually, database_url=postgres_url)


@pytest.fixture
def on_redis7(redis7_url: str, tmp_path: Path, eventually: Eventually) -> Bookstore:
    return Bookstore(tmp_path, redis7_url, eventually)


@pytest.mark.parametrize("where", ["on_postgres", "on_redis7"])
def test_books_are_read_changed_and_imported(where: str, request: pytest.FixtureRequest) -> None:
    store: Bookstore = request.getfixturevalue(where)
    store.migrate()
    store.migrate()  # as every start does
    with store.worker(), store.api(), store.client() as client:
        store.log_in(client)
        first = client.get("/books", params={"q": "le guin", "sort": "-year"}).json()
        assert first["total"] >= 1
        assert client.get("/health").json()["status"] == "ok"

        book = {"title": "A Test of Books", "author": "Án Author", "year": 2020, "isbn": None}
        created = client.post("/books", json=book)
        assert created.status_code == 201
        url = created.headers["Location"]
        assert client.post("/books", json=book).status_code == 409
        assert client.get("/books", params={"q": "an AUTHOR"}).json()["total"] == 1
        assert client.patch(url, json={"year": 2021}).json()["year"] == 2021
        assert client.get(url).json()["year"] == 2021
        assert client.delete(url).status_code == 204
        assert client.get(url).status_code == 404

        reports = []
        for _ in range(2):
            sent = client.post("/books/import", files={"file": ("books.csv", BOOKS.encode(), "text/csv")})
            assert sent.status_code == 202
            job = store.finished(client, sent.json()["url"])
            assert job["state"] == "SUCCESS"
            reports.append(job["result"])
        assert reports[0]["created"] + reports[0]["unchanged"] + reports[0]["updated"] == 2
        assert reports[0]["skipped"] == 1
        assert reports[1]["unchanged"] == 2
        assert client.get("/books", params={"q": "jurgen gross"}).json()["total"] <= 1
        assert client.get("/books", params={"q": "bucher groß"}).json()["total"] == 1
