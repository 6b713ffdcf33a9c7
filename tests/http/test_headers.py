"""Reading header fields: whatever comes, nothing raises, and what cannot be read makes a cache keep less."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backburner.http import Policy, headers, rules, structured

JUNK = st.text(st.sampled_from('abz-=",;\\ \t019*/W\x00é()'), max_size=60) | st.text(
    st.characters(max_codepoint=255), max_size=40
)
TOKEN = st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyz-"), min_size=1, max_size=12)
NOW = 1_800_000_000.0


@settings(max_examples=60)
@given(JUNK)
def test_no_text_makes_a_parser_raise(text: str) -> None:
    headers.directives(text)
    structured.dictionary(text)
    headers.delta_seconds(text)
    headers.members(text)
    headers.date(text)
    structured.strings(text)
    headers.seconds([text])
    headers.byte_ranges(text, 10)
    headers.byte_ranges(f"bytes={text}", 10)
    headers.normalised(b"accept", text)
    headers.names_tag(text.encode("latin-1", "replace"), b'"tag"')


@given(st.dictionaries(TOKEN, st.none() | st.text(st.sampled_from("abc,= 019"), max_size=8), max_size=6))
def test_directives_come_back_as_they_were_written(written: dict[str, str | None]) -> None:
    text = ", ".join(name if value is None else f'{name}="{value}"' for name, value in written.items())
    assert headers.directives(text) == {name: [value] for name, value in written.items()}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("max-age=60", 60),
        ('max-age="60"', 60),
        ("MAX-AGE=0060", 60),
        ("max-age=99999999999", headers.LONGEST),
        ("max-age=60, max-age=10", 10),
        ("max-age", 0),
        ("max-age=", 0),
        ("max-age=-1", 0),
        ("max-age=6.5", 0),
        ("max-age= 60", 0),
        ("max-age='60'", 0),
        ("max-age=²", 0),
        ('extension="max-age=60", max-age=1', 1),
        ('extension="max-age=60"', None),
    ],
)
def test_a_length_of_time_is_read_on_the_safe_side(text: str, seconds: int | None) -> None:
    assert headers.seconds(headers.directives(text).get("max-age")) == seconds


@pytest.mark.parametrize("text", ["no-store;x", "no-store foo", "no-store=1", "a, no-store", 'x="open, max-age=60'])
def test_what_looks_like_no_store_is_no_store(text: str) -> None:
    assert "no-store" in headers.directives(text)


def test_quotes_in_other_lines_hide_nothing() -> None:
    assert "no-store" in headers.directives('max-age=60, x="', "no-store", '"')


@pytest.mark.parametrize(
    "text",
    ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"],
)
def test_all_three_forms_of_a_date_are_read(text: str) -> None:
    assert headers.date(text) == 784111777.0


@pytest.mark.parametrize("text", ["", "0", "-1", "Sun, 06 Nov 1994 08:49:37 UTC", "Sun, 99 Nov 1994 08:49:37 GMT"])
def test_anything_else_is_no_date(text: str) -> None:
    assert headers.date(text) is None


@pytest.mark.parametrize(
    ("condition", "tag", "named"),
    [
        (b'"a"', b'"a"', True),
        (b'W/"a"', b'"a"', True),
        (b'"a"', b'W/"a"', True),
        (b'"x", "a" , "y"', b'"a"', True),
        (b'"x,"a"', b'"a"', False),
        (b"*", b'"a"', True),
        (b"a", b'"a"', False),
        (b'"A"', b'"a"', False),
        (b'"aa"', b'"a"', False),
        (b'"x, y"', b'"y"', False),
    ],
)
def test_a_list_of_entity_tags_names_a_tag_by_weak_comparison(condition: bytes, tag: bytes, named: bool) -> None:
    assert headers.names_tag(condition, tag) is named


@pytest.mark.parametrize(
    ("text", "ranges"),
    [
        ("bytes=0-1", [(0, 2)]),
        ("bytes=2-", [(2, 10)]),
        ("bytes=-3", [(7, 10)]),
        ("bytes=-30", [(0, 10)]),
        ("bytes=0-99", [(0, 10)]),
        ("bytes=0-0,-1", [(0, 1), (9, 10)]),
        ("bytes=10-", []),
        ("bytes=-0", []),
        ("bytes=5-2", None),
        ("items=0-1", None),
        ("bytes=0-9,0-9", None),
        ("bytes=" + ",".join("0-0" for _ in range(100)), None),
    ],
)
def test_ranges(text: str, ranges: list[tuple[int, int]] | None) -> None:
    assert headers.byte_ranges(text, 10) == ranges


def test_the_order_of_preferences_does_not_matter_and_that_of_others_does() -> None:
    assert headers.normalised(b"accept-language", " en ,   DE;q=0.5") == headers.normalised(
        b"accept-language", "de; q=0.5,en"
    )
    assert headers.normalised(b"x-any", "a, b") == headers.normalised(b"x-any", "a,b")
    assert headers.normalised(b"x-any", "a, b") != headers.normalised(b"x-any", "b, a")


FIELDS = st.lists(
    st.tuples(
        st.sampled_from(
            [b"cache-control", b"cdn-cache-control", b"expires", b"age", b"date", b"vary", b"etag", b"last-modified"]
        ),
        st.sampled_from(
            [b"max-age=60", b"s-maxage=9", b"public", b"0", b"5, 0", b"*", b"Sun, 06 Nov 2094 08:49:37 GMT"]
        )
        | JUNK.map(lambda text: text.encode("latin-1", "replace")),
    ),
    max_size=6,
)
FORBIDDEN = st.sampled_from(
    [
        (b"cache-control", b"no-store"),
        (b"cache-control", b"NO-STORE"),
        (b"cache-control", b'x="y", no-store'),
        (b"cache-control", b"private"),
        (b"vary", b"*"),
        (b"x-injected", b"a\r\nset-cookie: b"),
        (b"bad name", b"x"),
    ]
)


@settings(max_examples=60)
@given(FIELDS, FORBIDDEN, st.integers(0, 6), st.sampled_from([200, 203, 301, 404, 500]))
def test_a_response_that_must_not_be_stored_is_not_whatever_else_it_says(
    fields: list[tuple[bytes, bytes]], forbidden: tuple[bytes, bytes], place: int, status: int
) -> None:
    fields = [pair for pair in fields if pair[0] != b"cdn-cache-control"]  # which may take the word of cache-control
    fields.insert(place, forbidden)
    # An open quote swallows what follows: that is no-store too.
    terms, reason = rules.may_store(status, fields, Policy.gateway(ttl=60), credentials="", now=NOW, delay=0)
    assert terms is None
    assert reason


@settings(max_examples=60)
@given(
    FIELDS, st.sampled_from([200, 204, 206, 301, 304, 404, 500, 999]), st.sampled_from(["", "authorization", "cookie"])
)
def test_the_rules_never_raise(fields: list[tuple[bytes, bytes]], status: int, credentials: rules.Credentials) -> None:
    for policy in (Policy(), Policy(ttl=60), Policy.gateway()):
        terms, _ = rules.may_store(status, fields, policy, credentials=credentials, now=NOW, delay=0.1)
        assert terms is None or terms.born <= NOW
        rules.invalidated("http://shop.example/a", fields)
        rules.groups(fields, b"cache-groups")


@pytest.mark.parametrize(
    ("lines", "age"),
    [
        ([], 2),
        ([b"30"], 32),
        ([b"30, 0"], 32),
        ([b"0, 30"], 2),
        ([b"30", b"0"], 32),
        ([b"abc"], 2),
        ([b"-30"], 2),
        ([b"30.0"], 2),
        ([b"99999999999"], headers.LONGEST + 2),
    ],
)
def test_of_several_ages_the_first_counts_if_it_is_one(lines: list[bytes], age: float) -> None:
    assert rules.initial_age([(b"age", line) for line in lines], NOW, delay=2) == age
