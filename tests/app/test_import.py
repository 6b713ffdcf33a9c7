"""Importing files: over HTTP, through the queue and a real worker."""

import csv
import io
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import httpx2
import pytest

from tests.app.bookstore import Bookstore


def upload(client: httpx2.Client, content: str | bytes, name: str = "books.csv") -> httpx2.Response:
    return client.post("/books/import", files={"file": (name, content, "text/csv")})


def imported(store: Bookstore, client: httpx2.Client, content: str | bytes) -> dict[str, Any]:
    accepted = upload(client, content)
    assert accepted.status_code == 202, accepted.text
    job = store.finished(client, accepted.headers["location"])
    assert job["state"] == "SUCCESS", job
    result: dict[str, Any] = job["result"]
    return result


def counts(result: dict[str, Any]) -> tuple[int, int, int, int]:
    return result["created"], result["updated"], result["unchanged"], result["skipped"]


def found(client: httpx2.Client, q: str) -> int:
    total: int = client.get("/books", params={"q": q}).json()["total"]
    return total


def goodbooks(rows: int, tag: str) -> bytes:
    """A file in the layout of goodbooks-10k: some 20 columns, of which 5 matter; every hundredth row is damaged."""
    text = io.StringIO()
    text.write(
        "book_id,goodreads_book_id,best_book_id,work_id,books_count,isbn,isbn13,authors,original_publication_year,"
        "original_title,title,language_code,average_rating,ratings_count,work_ratings_count,ratings_1,ratings_2,"
        "ratings_3,ratings_4,image_url\n"
    )
    writer = csv.writer(text)
    for number in range(1, rows + 1):
        title = "" if number % 100 == 0 else f"{tag} (Vol. {number}, #1)"
        writer.writerow(
            [number, number, number, number, 7, "", "9.78043902348e+12", f"Author {number % 50}, Illustratör",
             f"{1900 + number % 100}.0", title, title, "eng", 4.1, 10, 11, 1, 2, 3, 4, "https://example.org/x.jpg"]
        )  # fmt: skip
    return text.getvalue().encode()


def test_ten_thousand_books_are_imported_within_seconds_and_a_second_time_change_nothing(
    store: Bookstore, reader: httpx2.Client
) -> None:
    tag = uuid.uuid4().hex
    content = goodbooks(10_000, tag)
    before = time.monotonic()
    first = imported(store, reader, content)
    assert time.monotonic() - before < 15
    assert counts(first) == (9_900, 0, 0, 100)
    assert first["isbns_left_out"] == 9_900
    assert first["problems"][0] == {"line": 101, "reason": "the title is missing"}
    assert found(reader, tag) == 9_900
    assert counts(imported(store, reader, content)) == (0, 0, 9_900, 100)
    assert not list(store.uploads.iterdir())


def test_books_that_are_there_are_brought_up_to_date(store: Bookstore, reader: httpx2.Client) -> None:
    tag = uuid.uuid4().hex
    book = reader.post("/books", json={"title": f"{tag} one", "author": "A", "year": 1999}).json()
    url = f"/books/{book['id']}"
    assert found(reader, tag) == 1
    content = f"title,author,year\n{tag.upper()}  ONE,a,2000\n{tag} two,B,\n{tag} TWO,b,2001\n"
    result = imported(store, reader, content)
    assert counts(result) == (1, 1, 0, 1)
    assert result["problems"] == [{"line": 4, "reason": "the same book as line 3"}]
    assert reader.get(url).json() == {**book, "title": f"{tag.upper()} ONE", "author": "a", "year": 2000}
    assert found(reader, tag) == 2
    assert counts(imported(store, reader, content)) == (0, 0, 2, 1)


def test_an_empty_year_leaves_the_one_that_is_known(store: Bookstore, reader: httpx2.Client) -> None:
    title = uuid.uuid4().hex
    book = reader.post("/books", json={"title": title, "author": "A", "year": 1999}).json()
    assert counts(imported(store, reader, f"title;author;year\n{title};A;\n")) == (0, 0, 1, 0)
    assert reader.get(f"/books/{book['id']}").json() == book


def test_the_list_of_problems_ends_at_a_hundred_and_the_count_does_not(store: Bookstore, reader: httpx2.Client) -> None:
    result = imported(store, reader, "title,author\n" + ",nobody\n" * 250)
    assert counts(result) == (0, 0, 0, 250)
    assert [problem["line"] for problem in result["problems"]] == list(range(2, 102))


def test_a_file_without_the_columns_is_refused_at_once(store: Bookstore, reader: httpx2.Client) -> None:
    answer = upload(reader, b"name of book;price\nx;1\n" * 1000)
    assert answer.status_code == 422
    assert answer.json()["detail"] == (
        "The file needs columns for title and author; its columns are name of book, price."
    )
    assert upload(reader, b"").status_code == 422
    assert not list(store.uploads.iterdir())


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"files": {"other": ("books.csv", b"title,author\n")}}, 422),
        ({"data": {"file": "title,author"}}, 415),
        ({"json": {}}, 415),
        ({"content": b"title,author\n", "headers": {"content-type": "text/csv"}}, 415),
        ({"content": b"--x", "headers": {"content-type": "multipart/form-data"}}, 415),
        ({"content": b"nonsense", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400),
        ({"content": b"--x\r\n", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400),
    ],
    ids=str,
)
def test_requests_without_a_file_are_refused(
    store: Bookstore, reader: httpx2.Client, options: dict[str, Any], status: int
) -> None:
    answer = reader.post("/books/import", **options)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert not list(store.uploads.iterdir())


def test_a_file_that_is_too_large_is_refused_before_it_is_read(store: Bookstore, reader: httpx2.Client) -> None:
    content = b"title,author\n" + b"x" * (50 * 1024 * 1024)
    answer = upload(reader, content)
    assert answer.status_code == 413
    assert not list(store.uploads.iterdir())


def test_of_a_file_of_unknown_length_no_more_than_the_limit_is_stored(store: Bookstore, reader: httpx2.Client) -> None:
    stored = []

    def endless() -> Iterator[bytes]:
        yield b'--x\r\ncontent-disposition: form-data; name="file"; filename="b.csv"\r\n\r\ntitle,author\n'
        for _ in range(60):
            yield b"A,B\n" * 250_000
            stored.append(sum(path.stat().st_size for path in store.uploads.glob("*")))

    headers = {"content-type": "multipart/form-data; boundary=x"}
    assert reader.post("/books/import", content=endless(), headers=headers).status_code == 413
    assert 10**6 < max(stored) <= 50 * 1024 * 1024
    assert not list(store.uploads.iterdir())


def test_an_upload_that_breaks_off_leaves_nothing(store: Bookstore, reader: httpx2.Client) -> None:
    def broken() -> Iterator[bytes]:
        yield b'--x\r\ncontent-disposition: form-data; name="file"; filename="b.csv"\r\n\r\ntitle,author\n'
        store.eventually(lambda: list(store.uploads.glob("*")))
        raise ConnectionError("the client is gone")

    headers = {"content-type": "multipart/form-data; boundary=x"}
    with pytest.raises(ConnectionError):
        reader.post("/books/import", content=broken(), headers=headers)
    store.eventually(lambda: not list(store.uploads.iterdir()))


def test_an_import_is_nobody_elses_business(store: Bookstore, reader: httpx2.Client, client: httpx2.Client) -> None:
    url = upload(reader, "title,author\n").headers["location"]
    store.finished(reader, url)
    assert client.get(url).status_code == 404
    store.log_in(client)
    assert client.get(url).status_code == 404


def test_an_id_that_nobody_enqueued_is_unknown(client: httpx2.Client) -> None:
    answer = client.get(f"/jobs/{uuid.uuid4()}")
    assert answer.status_code == 404
    assert answer.json()["title"] == "Not Found"
    assert client.get("/jobs/42").status_code == 404
    assert client.get("/jobs/%00").status_code == 422


def test_a_job_that_nobody_handed_in_here_is_nobodys_business(store: Bookstore, reader: httpx2.Client) -> None:
    command = "python -c 'from app.workers.tasks import *; print(divide.delay(1, 0).id, end=\"\")'"
    with store.run(command) as program:
        assert program.process.wait(20) == 0, program.output
        assert reader.get(f"/jobs/{program.output}").status_code == 404


def test_nothing_stays_of_a_file_whose_request_is_refused_for_something_else(
    store: Bookstore, reader: httpx2.Client
) -> None:
    reader.headers["Idempotency-Key"] = "x" * 256
    assert upload(reader, "title,author\nT,A\n").status_code == 422
    assert not list(store.uploads.iterdir())


def test_a_file_sent_twice_with_the_same_key_is_imported_once(store: Bookstore, reader: httpx2.Client) -> None:
    reader.headers["Idempotency-Key"] = uuid.uuid4().hex
    first, second = (upload(reader, f"title,author\n{uuid.uuid4().hex},A\n") for _ in range(2))
    assert first.json() == second.json()
    assert counts(store.finished(reader, first.headers["location"])["result"]) == (1, 0, 0, 0)
    store.eventually(lambda: not list(store.uploads.iterdir()))


def test_a_file_sent_twice_at_once_with_the_same_key_is_imported_once(store: Bookstore, reader: httpx2.Client) -> None:
    jobs = []
    with ThreadPoolExecutor(2) as threads:
        for _ in range(12):
            both_are_here = Barrier(2)
            key, title = uuid.uuid4().hex, uuid.uuid4().hex

            def body(title: str = title, both_are_here: Barrier = both_are_here) -> Iterator[bytes]:
                yield b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
                yield f"title,author\n{title},A\r\n".encode()
                both_are_here.wait(10)
                yield b"--x--\r\n"

            headers = {"Content-Type": "multipart/form-data; boundary=x", "Idempotency-Key": key}
            sent = [threads.submit(reader.post, "/books/import", content=body(), headers=headers) for _ in range(2)]
            answers = [request.result() for request in sent]
            assert {answer.status_code for answer in answers} <= {202, 409}
            jobs.append(next(answer.headers["location"] for answer in answers if answer.status_code == 202))
    for job in jobs:
        assert counts(store.finished(reader, job)["result"]) == (1, 0, 0, 0)
    store.eventually(lambda: not list(store.uploads.iterdir()))
