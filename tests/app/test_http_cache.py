"""Which responses the bookstore keeps, for whom, and what clients are told about it."""

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.app.bookstore import Bookstore

BOOK_PAGES = ["/books/1", "/books", "/books?q=austen&sort=-year", "/books/001"]


@pytest.fixture
def bearer(store: Bookstore, token: str) -> Iterator[httpx2.Client]:
    """A program that is logged in."""
    with store.client(headers={"authorization": f"Bearer {token}"}) as client:
        yield client


def is_hit(answer: httpx2.Response) -> bool:
    return answer.headers.get("cache-status", "").startswith("bookstore; hit")


@pytest.mark.parametrize("url", BOOK_PAGES)
def test_a_book_page_is_shared_by_all_who_ask(
    url: str, client: httpx2.Client, reader: httpx2.Client, bearer: httpx2.Client
) -> None:
    first = client.get(url)
    for visitor in (client, reader, bearer):
        again = visitor.get(url)
        assert is_hit(again)
        assert (again.status_code, again.content) == (200, first.content)


@pytest.mark.parametrize("asks", ["reader", "bearer"])
def test_who_is_logged_in_leaves_a_page_for_all(
    asks: str, client: httpx2.Client, request: pytest.FixtureRequest
) -> None:
    visitor: httpx2.Client = request.getfixturevalue(asks)
    url = f"/books?q=asked-first-by-{asks}"
    assert not is_hit(visitor.get(url))
    assert is_hit(client.get(url))


def test_browsers_ask_each_time_and_hear_that_nothing_changed(client: httpx2.Client) -> None:
    for _ in range(2):
        page = client.get("/books/1")
        assert page.headers["cache-control"] == "no-cache"
        again = client.get("/books/1", headers={"if-none-match": page.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("url", [*BOOK_PAGES, "/books?q=head-first"])
def test_head_says_what_get_would_whether_or_not_the_page_is_kept(client: httpx2.Client, url: str) -> None:
    cold, get, warm = client.head(url), client.get(url), client.head(url)
    for head in (cold, warm):
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
        assert head.headers["content-length"] == get.headers["content-length"]


@pytest.mark.parametrize("url", ["/", "/users/me", "/users/1", "/jobs/none", "/health", "/openapi.json", "/nowhere"])
def test_nothing_else_is_kept_whoever_asks(
    url: str, client: httpx2.Client, reader: httpx2.Client, bearer: httpx2.Client
) -> None:
    for visitor in (reader, client, bearer, client):
        answer = visitor.get(url)
        assert not {"age", "cache-status"} & set(answer.headers)


@pytest.mark.parametrize(
    "url", ["/books/2147483647", "/books/x", "/books/import", "/books?limit=0", "/books/1/x", "/books/"]
)
def test_what_is_no_page_is_asked_for_each_time(client: httpx2.Client, url: str) -> None:
    answers = [client.get(url) for _ in range(2)]
    assert answers[0].status_code in {307, 404, 405, 422}
    assert not any(map(is_hit, answers))


@pytest.mark.parametrize(
    "url",
    [
        *("/users/me/style.css", "/users/me;style.css", "/users/me%2Fstyle.css", "/users/me%00.css"),
        *("/books/../users/me", "/books/%2e%2e/users/me", "/books%2f..%2fusers/me", "/books//users/me"),
        *("/users/me?/books", "/users/me%3F/books", "//books/../users/me", "/books;/../users/me"),
    ],
)
def test_nobody_is_led_to_leave_what_is_theirs_for_others(
    store: Bookstore, reader: httpx2.Client, token: str, url: str
) -> None:
    """Web cache deception: an address that the cache takes for a page of all, and the routes for one's own."""
    email = reader.get("/users/me").json()["email"]
    for shown in (f"Cookie: session={token}", f"Authorization: Bearer {token}"):
        assert email in raw(store, "/users/me", shown)
        raw(store, url, shown)
        assert email not in raw(store, url)


def raw(store: Bookstore, target: str, *headers: str) -> str:
    """The answer to a request whose target no client has tidied up."""
    place = urlsplit(store.url)
    lines = [f"GET {target} HTTP/1.1", f"Host: {place.netloc}", "Connection: close", *headers, "", ""]
    with socket.create_connection((place.hostname or "", place.port or 0), timeout=10) as connection:
        connection.sendall("\r\n".join(lines).encode())
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode("utf-8", "replace")


@pytest.mark.parametrize("written", ["{}", "0{}", "+{}", "%20{}", "{}.0", "{}%20", "%3{}", "{}?x", "{}?", "%2B{}"])
def test_a_change_reaches_a_book_however_its_number_is_written(
    store: Bookstore, client: httpx2.Client, reader: httpx2.Client, written: str
) -> None:
    number = 5
    url = f"/books/{written.format(number)}"
    for year in (1901, 1902):
        assert reader.patch(f"/books/{number}", json={"year": year}).status_code == 200
        answer = client.get(url)
        client.get(url)
        if answer.status_code == 200:
            assert answer.json()["year"] == year


def test_what_the_request_says_about_freshness_makes_nobody_work(client: httpx2.Client) -> None:
    client.get("/books/2")
    for directive in ("no-cache", "no-store", "max-age=0"):
        assert is_hit(client.get("/books/2", headers={"cache-control": directive, "pragma": "no-cache"}))


def test_a_host_that_somebody_made_up_has_pages_of_its_own(client: httpx2.Client) -> None:
    client.get("/books/3")
    poisoned = client.get("/books/3", headers={"host": "evil.example", "x-forwarded-host": "evil.example"})
    assert not is_hit(poisoned)
    assert "evil" not in str(client.get("/books/3").headers) + client.get("/books/3").text
