"""No read is ever older than the last write: after any mutation, in every order, in every process, also in a crowd.

All readers ask for the same host, so that the processes share their cached responses; the writer asks for another one,
whose responses are not theirs: what empties them are tags.
"""

import random
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise, permutations, product
from typing import Any

import httpx2
import pytest

from tests.app.bookstore import Bookstore


@pytest.fixture(scope="module")
def stores(store: Bookstore) -> Iterator[list[Bookstore]]:
    """The same bookstore behind two API processes."""
    second = replace(store)
    with second.api():
        yield [store, second]


READ_FROM = {"host": "bookstore.example"}


@dataclass
class Shelf:
    """Some books and what they must look like: the model that every read is compared with."""

    store: Bookstore
    writer: httpx2.Client
    readers: list[httpx2.Client]
    tag: str = field(default_factory=lambda: uuid.uuid4().hex)
    books: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By title."""
    gone: list[int] = field(default_factory=list)
    made: int = 0
    hits: int = 0

    def read(self, reader: httpx2.Client, url: str, **params: Any) -> httpx2.Response:
        answer = reader.get(url, params=params)
        self.hits += "hit" in answer.headers["cache-status"]
        return answer

    def title(self) -> str:
        self.made += 1
        return f"{self.tag} {self.made:04}"

    def create(self) -> None:
        book = self.writer.post("/books", json={"title": self.title(), "author": "A", "year": 1}).json()
        self.books[book["title"]] = book

    def update(self) -> None:
        title = random.choice(sorted(self.books))
        book = self.books.pop(title)
        changes = random.choice([{"year": (book["year"] or 0) % 2000 + 1}, {"title": self.title()}, {"year": None}])
        answer = self.writer.patch(f"/books/{book['id']}", json=changes)
        assert answer.json() == {**book, **changes}
        self.books[answer.json()["title"]] = answer.json()

    def delete(self) -> None:
        book = self.books.pop(random.choice(sorted(self.books)))
        assert self.writer.delete(f"/books/{book['id']}").status_code == 204
        self.gone.append(book["id"])

    def import_file(self) -> None:
        known, new = random.choice(sorted(self.books)), self.title()
        content = f"title,author,year\n{known},{self.books[known]['author']},1234\n{new},B,5\n"
        accepted = self.writer.post("/books/import", files={"file": ("b.csv", content.encode())})
        assert self.store.finished(self.writer, accepted.headers["location"])["state"] == "SUCCESS"
        self.books[known] = {**self.books[known], "year": 1234}
        page = self.writer.get("/books", params={"q": new}).json()
        self.books[new] = {"id": page["items"][0]["id"], "title": new, "author": "B", "year": 5, "isbn": None}
        assert page["items"] == [self.books[new]]

    def check(self) -> None:
        for reader in self.readers:
            for sort, limit in (("title", 100), ("-year", 3)):
                page = self.read(reader, "/books", q=self.tag, sort=sort, limit=limit).json()
                assert page["total"] == len(self.books)
                if sort == "title":
                    assert page["items"] == [self.books[title] for title in sorted(self.books)]
            for book in self.books.values():
                for spelling in ("{}", "{}.0"):
                    assert self.read(reader, f"/books/{spelling.format(book['id'])}").json() == book
            for book_id in (*self.gone[-3:], self.next_id()):
                assert self.read(reader, f"/books/{book_id}").status_code == 404

    def next_id(self) -> int:
        """Of a book that is not there yet."""
        return max([book["id"] for book in self.books.values()] + self.gone) + 1


@pytest.fixture
def shelf(stores: list[Bookstore]) -> Iterator[Shelf]:
    store, other = stores
    with store.client() as writer, store.client(headers=READ_FROM) as near, other.client(headers=READ_FROM) as far:
        store.log_in(writer)
        far.headers["authorization"] = f"Bearer {writer.cookies['session']}"
        shelf = Shelf(store, writer, [near, far])
        shelf.create()
        shelf.create()
        yield shelf
        shelf.check()
        seen = shelf.hits
        shelf.check()
        assert shelf.hits - seen >= len(shelf.books)  # else all this said nothing about cached responses


def test_each_mutation_after_each_is_seen_by_the_next_read(shelf: Shelf) -> None:
    create, update, delete, import_file = shelf.create, shelf.update, shelf.delete, shelf.import_file
    # Each pair of two stands in it once.
    walk = (create, create, update, update, delete, delete, create, delete, import_file, import_file, update)
    walk += (create, import_file, create, update, import_file, delete, update, delete)
    assert set(product({create, update, delete, import_file}, repeat=2)) <= set(pairwise(walk))
    shelf.check()
    for mutate in walk:
        mutate()
        shelf.check()


@pytest.mark.slow
def test_every_order_of_all_mutations_is_seen_by_the_next_read(shelf: Shelf) -> None:
    shelf.check()
    for order in permutations([shelf.create, shelf.update, shelf.delete, shelf.import_file]):
        for mutate in order:
            mutate()
            shelf.check()
        while len(shelf.books) > 3:
            shelf.delete()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_random_walk_of_mutations_is_seen_by_the_next_read(shelf: Shelf, seed: int) -> None:
    random.seed(seed)
    for _ in range(25):
        actions = [shelf.create] * (len(shelf.books) < 6)
        actions += [shelf.update, shelf.update, shelf.delete] * (len(shelf.books) > 1)
        random.choice(actions or [shelf.create])()
        shelf.check()


def test_in_a_crowd_no_read_that_begins_after_a_write_is_older_than_it(stores: list[Bookstore]) -> None:
    store, other = stores
    written, writes, ended = 1, 150, threading.Event()
    with store.client() as writer:
        store.log_in(writer)
        tag = uuid.uuid4().hex
        url = writer.post("/books", json={"title": tag, "author": "A", "year": 1}).headers["location"]

        def write() -> None:
            nonlocal written
            try:
                for year in range(2, writes + 2):
                    assert writer.patch(url, json={"year": year}).status_code == 200
                    written = year
            finally:
                ended.set()

        def read(place: Bookstore) -> tuple[int, int]:
            reads = hits = 0
            with place.client(headers=READ_FROM) as reader:
                while not ended.is_set():
                    before = written
                    answer = reader.get(url)
                    assert answer.json()["year"] >= before
                    hits += "hit" in answer.headers["cache-status"]
                    before = written
                    page = reader.get("/books", params={"q": tag}).json()
                    assert page["items"][0]["year"] >= before
                    reads += 2
            return reads, hits

        with ThreadPoolExecutor() as threads:
            readers = [threads.submit(read, place) for place in (store, other, store, other)]
            threads.submit(write).result()
            reads, hits = map(sum, zip(*(reader.result() for reader in readers), strict=True))
            assert reads > 20  # they went on meanwhile; how fast, is not what is asked here
            assert hits > 0
        assert written == writes + 1
