"""Books over HTTP."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest


def a_book(**fields: Any) -> dict[str, Any]:
    return {"title": f"A Book {uuid.uuid4()}", "author": "Somebody", **fields}


def test_an_empty_store_is_filled_with_hundreds_of_books(client: httpx2.Client) -> None:
    page = client.get("/books").json()
    assert page["total"] > 300
    assert len(page["items"]) == page["limit"] == 20


@pytest.mark.parametrize("q", ["bronte jane eyre", "JANE EYRE", "9780141441146", "978-0-14-144114-6", "0141441143"])
def test_a_book_is_found_by_words_without_accents_and_by_any_form_of_its_isbn(client: httpx2.Client, q: str) -> None:
    found = client.get("/books", params={"q": q}).json()
    assert [book["title"] for book in found["items"]] == ["Jane Eyre"]
    assert found["total"] == 1


@pytest.mark.parametrize("q", ["%", "_", "***", "no such book anywhere"])
def test_a_search_takes_no_character_for_a_pattern(client: httpx2.Client, q: str) -> None:
    assert client.get("/books", params={"q": q}).json()["total"] == 0


@pytest.mark.parametrize("key", ["title", "author", "year"])
def test_a_list_can_be_sorted_both_ways(client: httpx2.Client, key: str) -> None:
    def values(sort: str) -> list[Any]:
        items = client.get("/books", params={"q": "a", "sort": sort, "limit": 100}).json()["items"]
        return [book[key].lower() if key != "year" else book[key] for book in items if book[key] is not None]

    assert values(key) == sorted(values(key))
    assert values(f"-{key}") == sorted(values(f"-{key}"), reverse=True)


def test_pages_follow_each_other_without_gap_or_overlap(client: httpx2.Client) -> None:
    def ids(limit: int, offset: int) -> list[int]:
        page = client.get("/books", params={"sort": "year", "q": "the", "limit": limit, "offset": offset}).json()
        return [book["id"] for book in page["items"]]

    assert ids(10, 0) + ids(10, 10) + ids(10, 20) == ids(30, 0)


def test_a_book_is_added_changed_and_removed(reader: httpx2.Client) -> None:
    new = a_book(year=-44, isbn=None)
    answer = reader.post("/books", json=new)
    assert answer.status_code == 201
    url = answer.headers["location"]
    assert reader.get(url).json() == answer.json() == {"id": answer.json()["id"], **new}

    changed = reader.patch(url, json={"year": None, "title": f" {new['title']}   again "})
    assert changed.json() == {**answer.json(), "year": None, "title": f"{new['title']} again"}
    assert reader.get(url).json() == changed.json()

    assert reader.delete(url).status_code == 204
    assert (
        reader.get(url).status_code
        == reader.delete(url).status_code
        == reader.patch(url, json={"year": 1}).status_code
        == 404
    )


def test_a_changed_book_is_found_by_its_new_words_only(reader: httpx2.Client) -> None:
    old, new = uuid.uuid4().hex, uuid.uuid4().hex
    url = reader.post("/books", json=a_book(title=old)).headers["location"]
    reader.patch(url, json={"title": new})
    assert reader.get("/books", params={"q": old}).json()["total"] == 0
    assert reader.get("/books", params={"q": new}).json()["total"] == 1


def test_an_isbn_is_kept_as_13_digits_and_belongs_to_one_book(reader: httpx2.Client) -> None:
    first = reader.post("/books", json=a_book(isbn="0-19-852663-6"))
    assert first.json()["isbn"] == "9780198526636"
    assert reader.post("/books", json=a_book(isbn="978-0-19-852663-6")).status_code == 409
    other = reader.post("/books", json=a_book())
    assert reader.patch(other.headers["location"], json={"isbn": "9780198526636"}).status_code == 409
    assert reader.patch(other.headers["location"], json={"year": 1999}).json()["isbn"] is None
    reader.delete(first.headers["location"])


def test_two_books_without_isbn_may_not_share_title_and_author(reader: httpx2.Client) -> None:
    new = a_book()
    assert reader.post("/books", json=new).status_code == 201
    assert reader.post("/books", json={**new, "title": f"  {new['title'].upper()}"}).status_code == 409


@pytest.mark.parametrize(
    "wrong",
    [
        {"title": ""}, {"title": "  "}, {"title": "a\x00b"}, {"title": "x" * 501},
        {"title": "\u0958" * 300}, {"title": None}, {"author": "\u200b\x07"},
        {"year": 0}, {"year": 12345}, {"year": "soon"}, {"isbn": "9780141441147"}, {"isbn": "123"}, {"pages": 3},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_book_is_refused_with_the_reason(reader: httpx2.Client, wrong: dict[str, Any]) -> None:
    answer = reader.post("/books", json=a_book(**wrong))
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["where"] == f"body.{next(iter(wrong))}"
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("changes", [{}, {"title": None}, {"pages": 3}, [], None])
def test_changes_that_make_no_sense_are_refused(reader: httpx2.Client, changes: Any) -> None:
    url = reader.post("/books", json=a_book()).headers["location"]
    assert reader.patch(url, json=changes).status_code == 422


@pytest.mark.parametrize("book_id", ["0", "-1", "x", str(2**31), str(10**30)])
def test_an_impossible_id_is_refused(client: httpx2.Client, book_id: str) -> None:
    assert client.get(f"/books/{book_id}").status_code == 422


@pytest.mark.parametrize(
    "params", [{"limit": 101}, {"limit": 0}, {"offset": -1}, {"sort": "price"}, {"q": "x" * 201}], ids=str
)
def test_an_impossible_page_is_refused(client: httpx2.Client, params: dict[str, Any]) -> None:
    assert client.get("/books", params=params).status_code == 422


@pytest.mark.parametrize("q", ["\x00", "\x1b[0m", "'; DROP TABLE books; --", "\\", "👻" * 200, "%00"])
def test_any_text_may_be_searched_for(client: httpx2.Client, q: str) -> None:
    assert client.get("/books", params={"q": q}).status_code == 200


def test_a_book_that_two_change_at_once_is_found_by_the_words_of_both(reader: httpx2.Client) -> None:
    urls = [reader.post("/books", json=a_book()).headers["location"] for _ in range(20)]
    words = [uuid.uuid4().hex for _ in urls]

    def change(url: str, **changes: str) -> int:
        return reader.patch(url, json=changes).status_code

    with ThreadPoolExecutor() as threads:
        changes = [
            threads.submit(change, url, **{part: f"{part} {word}"})
            for url, word in zip(urls, words, strict=True)
            for part in ("title", "author")
        ]
        assert {answer.result() for answer in changes} == {200}
    found = [reader.get("/books", params={"q": f"title author {word}"}).json()["total"] for word in words]
    assert found == [1] * len(urls)


def test_who_changes_what_somebody_removes_gets_an_answer(reader: httpx2.Client) -> None:
    urls = [reader.post("/books", json=a_book()).headers["location"] for _ in range(20)]

    def change(url: str) -> int:
        return reader.patch(url, json={"year": 1}).status_code

    def remove(url: str) -> int:
        return reader.delete(url).status_code

    with ThreadPoolExecutor() as threads:
        answers = [threads.submit(act, url) for url in urls for act in (change, remove, remove)]
        codes = [answer.result() for answer in answers]
    assert codes.count(204) == len(urls)
    assert set(codes) <= {200, 204, 404}


def test_writing_needs_a_session(client: httpx2.Client) -> None:
    for method, url in [("POST", "/books"), ("PATCH", "/books/1"), ("DELETE", "/books/1"), ("POST", "/books/import")]:
        answer = client.request(method, url, json=a_book())
        assert answer.status_code == 401, url
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["title"] == "Unauthorized"
    assert client.get("/books/1").status_code == 200
