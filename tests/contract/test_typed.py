"""Values by an annotation, on every store and with both APIs: what fits is given as that type, the rest is a miss."""

import asyncio
import datetime as dt
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
from pydantic import AfterValidator, BaseModel, Field

from backburner import Cache, cached
from backburner.cache import memo_scope
from backburner.errors import CodecError, ConfigError
from backburner.events import Hit, Miss, StaleServed, Undecodable
from tests.contract.conftest import Asynchronous, Clock


class Book(BaseModel):
    title: str
    printed: dt.date | None = None


class Row:
    """Of somebody's database: nothing that pydantic knows."""

    def __init__(self, number: int) -> None:
        self.number = number


EMMA = Book(title="Emma", printed=dt.date(1815, 12, 23))
PLAIN = {"title": "Emma", "printed": "1815-12-23"}


def _seen(cache: Any, *kinds: type[Any]) -> list[Any]:
    seen: list[Any] = []
    cache.events.subscribe(seen.append, *kinds)
    return seen


FITTING: dict[str, tuple[Any, Any, Any]] = {
    "a model": (EMMA, Book, EMMA),
    "a model from a dict": (PLAIN, Book, EMMA),
    "a list of both": ([PLAIN, EMMA], list[Book], [EMMA, EMMA]),
    "a dict of models": ({"a": PLAIN}, dict[str, Book], {"a": EMMA}),
    "a tuple from a list": ([1, 2], tuple[int, ...], (1, 2)),
    "a number": (5, int, 5),
    "a number from text": ("5", int, 5),
    "nothing, or": (None, Book | None, None),
    "nothing": (None, type(None), None),
    "a literal": ("open", Literal["open", "closed"], "open"),
    "a constraint": (3, Annotated[int, Field(gt=2)], 3),
}
UNFITTING: dict[str, tuple[Any, Any]] = {
    "another dict": ({"name": "Emma"}, Book),
    "one of many": ([PLAIN, {"title": 5}], list[Book]),
    "text": ("five", int),
    "nothing": (None, int),
    "a constraint": (1, Annotated[int, Field(gt=2)]),
    "a model": (EMMA, dict[str, str]),
    "another class": (5, Row),
}


def test_what_fits_is_given_as_that_type(cache: Any) -> None:
    cache.put_many({key: stored for key, (stored, _, _) in FITTING.items()})
    for key, (stored, annotation, given) in FITTING.items():
        for _ in range(2):  # the second time, it may come from this process
            assert cache.get(key, type=annotation) == given, key
            assert type(cache.get(key, type=annotation)) is type(given), key
            assert cache.many([key, "none"], type=annotation) == {key: given}
            assert cache.remember(key, 60, list, type=annotation) == given
            assert cache.remember_forever(key, list, type=annotation) == given
            assert cache.flexible(key, (60, 600), list, type=annotation) == given
            assert cache.remember_many([key], 60, dict, type=annotation) == {key: given}
            assert cache.get(key) == stored  # others may ask for something else, or for nothing
        assert cache.pull(key, type=annotation) == given
        assert cache.get(key, "default", type=annotation) == "default"


def test_what_does_not_fit_is_a_miss_that_is_told(cache: Any) -> None:
    cache.put_many({key: stored for key, (stored, _) in UNFITTING.items()})
    seen = _seen(cache, Hit, Miss, Undecodable)
    for key, (stored, annotation) in UNFITTING.items():
        for _ in range(2):
            seen.clear()
            assert cache.get(key, "default", type=annotation) == "default", key
            assert [type(event) for event in seen] == [Undecodable, Miss], key
            assert seen[0].key == key
            assert "it is no " in seen[0].reason
        assert cache.many([key], type=annotation) == {}
        assert cache.get(key) == stored
        assert cache.pull(key, "default", type=annotation) == "default"
        assert cache.missing(key)


def test_what_does_not_fit_is_computed_anew_and_replaced(cache: Any) -> None:
    calls: list[int] = []

    def load() -> Any:
        calls.append(1)
        return PLAIN

    ways: list[Callable[[], Any]] = [
        lambda: cache.remember("key", 60, load, type=Book),
        lambda: cache.remember_forever("key", load, type=Book),
        lambda: cache.flexible("key", (60, 600), load, type=Book),
        lambda: cache.remember_many(["key"], 60, lambda keys: {"key": load()}, type=Book)["key"],
    ]
    for way in ways:
        cache.put("key", {"name": "of an older version"})
        calls.clear()
        assert [way(), way()] == [EMMA, EMMA]
        assert len(calls) == 1
        assert cache.get("key") == PLAIN


def test_what_the_callback_gives_is_held_to_the_type_too_and_not_stored_otherwise(cache: Any) -> None:
    with pytest.raises(
        CodecError, match=r"the callback for 'key' gave a dict, and it is no Book: title: Field required"
    ):
        cache.remember("key", 60, lambda: {"name": "Emma"}, type=Book)
    assert cache.missing("key")
    with pytest.raises(CodecError, match="'b' gave a str"):
        cache.remember_many(["a", "b"], 60, lambda keys: {"a": PLAIN, "b": "Emma"}, type=Book)
    assert cache.many(["a", "b"]) == {}
    assert cache.remember("key", 60, lambda: PLAIN, type=Book) == EMMA


def test_a_callback_that_breaks_its_word_is_one_that_failed(cache: Any, clock: Clock) -> None:
    cache.remember("key", 60, lambda: PLAIN, grace=60, type=Book)
    clock.advance(61)
    seen = _seen(cache, StaleServed)
    assert cache.remember("key", 60, lambda: {"name": "Emma"}, grace=60, type=Book) == EMMA
    assert [type(event.error) for event in seen] == [CodecError]


def test_a_stale_value_that_does_not_fit_is_not_given_in_place_of_an_error(cache: Any, clock: Clock) -> None:
    cache.remember("key", 60, lambda: {"name": "Emma"}, grace=60)
    clock.advance(61)
    with pytest.raises(ZeroDivisionError):
        cache.remember("key", 60, lambda: 1 / 0, grace=60, type=Book)


def test_a_validator_sees_each_value_once_and_may_fail_in_any_way(cache: Any) -> None:
    plus_one = Annotated[int, AfterValidator(lambda number: number + 1)]
    assert [cache.remember("key", 60, lambda: 1, type=plus_one) for _ in range(3)] == [2, 2, 2]

    def careless(value: object) -> object:
        raise KeyError(value)

    assert cache.get("key", type=Annotated[int, AfterValidator(careless)]) is None


def test_classes_that_pydantic_does_not_know_are_told_by_what_they_are(cache: Any) -> None:
    cache.codec.register(Row, lambda row: row.number, Row)
    for _ in range(2):
        (row,) = cache.remember("key", 60, lambda: [Row(1)], type=list[Row])
        assert (type(row), row.number) == (Row, 1)
    cache.put("key", [1])
    assert cache.get("key", type=list[Row]) is None


def test_what_is_no_type_is_an_error_whatever_is_there(cache: Any) -> None:
    cache.put("key", 1)
    for annotation in ("Book", list["Nobody"], 5, [int]):  # type: ignore[name-defined]  # noqa: F821
        for key in ("key", "none") if annotation != list["Nobody"] else ("key",):  # type: ignore[name-defined]  # noqa: F821
            with pytest.raises(ConfigError):
                cache.get(key, type=annotation)
            with pytest.raises(ConfigError):
                cache.remember(key, 60, list, type=annotation)


def test_an_annotation_that_cannot_be_hashed_will_do(cache: Any) -> None:
    cache.put("key", 1)
    assert cache.get("key", type=Annotated[int, {"unhashable": []}]) == 1


def test_tagged_caches_read_by_type_too(cache: Any) -> None:
    cache.tags("books").put("key", PLAIN)
    assert cache.tags("books").get("key", type=Book) == EMMA
    cache.tags("books").flush()
    assert cache.get("key", type=Book) is None


def test_within_a_scope_each_type_has_an_object_of_its_own(cache: Any) -> None:
    memo: Any = cache.memo() if isinstance(cache, Cache) else Asynchronous(cache._cache.memo(), cache._loop)
    with memo_scope():
        cache.put("key", PLAIN)
        book, plain = memo.get("key", type=Book), memo.get("key")
        assert (book, plain) == (EMMA, PLAIN)
        assert memo.get("key", type=Book) is book
        assert memo.remember("key", 60, dict, type=Book) is book
        assert memo.get("key") is plain
        cache.put("key", {"title": "Persuasion"})
        assert memo.get("key", type=Book) == Book(title="Persuasion")


# With @cached


def test_a_cached_function_gives_what_its_annotation_says(plain_cache: Cache) -> None:
    calls: list[int] = []

    @cached(ttl=60, key="books:{number}", typed=True, cache=plain_cache)
    def load(number: int) -> list[Book]:
        calls.append(number)
        return [PLAIN] * number  # type: ignore[list-item]

    @cached(ttl=("1m", "10m"), key="books:{number}", typed=True, cache=lambda: plain_cache)
    async def aload(number: int) -> list[Book]:
        return load.__wrapped__(number)  # type: ignore[attr-defined, no-any-return]

    for _ in range(2):
        assert load(2) == [EMMA, EMMA]
        assert asyncio.run(_closing(plain_cache, aload(2))) == [EMMA, EMMA]
    assert calls == [2]
    plain_cache.put("books:2", [{"name": "of an older version"}])
    assert load(2) == [EMMA, EMMA]
    plain_cache.put("books:2", [{"name": "of an older version"}])
    assert asyncio.run(_closing(plain_cache, aload(2))) == [EMMA, EMMA]
    assert calls == [2, 2, 2]
    assert load.refresh(2) == [EMMA, EMMA]
    assert plain_cache.get("books:2") == [PLAIN, PLAIN]


async def _closing(cache: Cache, awaited: Any) -> Any:
    try:
        return await awaited
    finally:
        await cache.aclose()


class Shelf:
    @cached(key="shelf:{number}", typed=True, cache=Cache("memory://"))
    def book(self, number: int) -> "Book":
        return PLAIN  # type: ignore[return-value]

    @cached(key="shelf", typed=True, cache=Cache("memory://"))
    @classmethod
    def best(cls) -> Book:
        return PLAIN  # type: ignore[return-value]

    @cached(key="none", typed=True, cache=Cache("memory://").tags("books"))
    @staticmethod
    def none(session: "OnlyForTypeCheckers" = None) -> None:  # type: ignore[name-defined]  # noqa: F821
        return None


def test_methods_have_types_too() -> None:
    for _ in range(2):
        assert Shelf().book(1) == EMMA
        assert Shelf.best() == EMMA
        assert Shelf.none() is None  # type: ignore[func-returns-value]


def test_an_annotation_that_makes_no_sense_is_an_error_where_the_function_is_decorated() -> None:
    def unknown() -> "list[Nobody]":  # type: ignore[name-defined]  # noqa: F821
        return []

    def silent():  # type: ignore[no-untyped-def]
        return []

    def strange() -> 5:  # type: ignore[valid-type]
        return 5

    for function, told in (
        (unknown, "'Nobody' is not defined"),
        (silent, "does not say what it gives"),
        (strange, "5"),
    ):
        with pytest.raises(ConfigError, match=told) as raised:
            cached(typed=True)(function)
        assert function.__name__ in str(raised.value)
        cached(key="k")(function)  # nobody minds otherwise
