"""Reading structured fields: strictly, and in one go."""

import time

import pytest

from backburner.http import headers, structured


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("max-age=60", {"max-age": ["60"]}),
        ("  max-age=60 ,\tno-store ", {"max-age": ["60"], "no-store": [None]}),
        ("max-age=60, max-age=10", {"max-age": ["10"]}),
        ("max-age=60;a;b=1; c=?0, foo", {"max-age": ["60"], "foo": [None]}),
        ("a=(1 x;y), b=:aGk=:, c=@1, d=1.5, e=foo/bar", {name: [None] for name in "abcde"}),
        ('max-age="60", private="x"', {"max-age": [None], "private": [None]}),
        ("no-store=?0, private=?1", {"private": [None]}),
    ],
)
def test_a_dictionary_gives_its_integers_and_what_else_is_said(text: str, read: dict[str, list[str | None]]) -> None:
    assert structured.dictionary(text) == read


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "max-age=60,",
        "max-age=60, &&&&&",
        "max-age = 60",
        "Max-Age=60",
        'a="',
        'a="\\x"',
        "a=(1",
        "a=1.",
        "a b",
    ],
)
def test_one_mistake_makes_a_dictionary_unreadable(text: str | None) -> None:
    assert structured.dictionary(text) == {}


def test_no_text_keeps_a_parser_busy() -> None:
    begun = time.perf_counter()
    for rubbish in (
        "a=(" + " " * 60_000 + "!",
        'a="' + "\\" * 60_001,
        "a;" * 30_000,
        "a=" + "1" * 60_000,
        "(" * 60_000,
    ):
        structured.dictionary(rubbish)
        structured.strings(rubbish)
    assert time.perf_counter() - begun < 5


def test_a_number_too_long_to_read_is_a_long_time() -> None:
    assert headers.delta_seconds("9" * 10_000) == headers.LONGEST
    assert headers.delta_seconds("0" * 10_000 + "60") == 60
