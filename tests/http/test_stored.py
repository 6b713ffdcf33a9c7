"""The bytes of a stored response: they come back as they were, and no other bytes pass for one."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backburner.errors import CodecError
from backburner.http.rules import Terms
from backburner.http.stored import Stored, Variants, unpack

NAMES = st.text(st.sampled_from("abc-"), min_size=1, max_size=8).map(str.encode)
VALUES = st.binary(max_size=20).map(lambda value: value.translate(None, b"\0\r\n"))
SECONDS = st.floats(0, 1e6, width=32)
TERMS = st.builds(
    Terms, SECONDS, st.floats(0, 2e9), st.booleans(), st.booleans(), SECONDS, SECONDS, SECONDS, st.booleans()
)


@settings(max_examples=60)
@given(st.integers(200, 599), st.lists(st.tuples(NAMES, VALUES)), st.binary(max_size=50), TERMS, st.booleans())
def test_a_response_comes_back_as_it_was(
    status: int, headers: list[tuple[bytes, bytes]], body: bytes, terms: Terms, own_tag: bool
) -> None:
    back = unpack(Stored(status, tuple(headers), body, terms, own_tag=own_tag).pack())
    assert isinstance(back, Stored)
    assert (back.status, back.headers, back.body, back.terms) == (status, tuple(headers), body, terms)
    assert back.own_tag is own_tag


@given(st.lists(NAMES, max_size=4))
def test_what_tells_variants_apart_comes_back_too(fields: list[bytes]) -> None:
    back = unpack(Variants(tuple(fields), "0123abcd").pack())
    assert isinstance(back, Variants)
    assert (back.fields, back.token) == (tuple(fields), "0123abcd")


WHOLE = Stored(200, ((b"a", b"b"),), b"body", Terms(60.0, 1e9), own_tag=True).pack()


@settings(max_examples=200)
@given(st.binary(max_size=80) | st.integers(0, len(WHOLE) - 5).map(lambda length: WHOLE[:length]))
def test_other_bytes_are_refused_and_no_other_error_is_raised(data: bytes) -> None:
    try:
        unpack(data)
    except CodecError:
        return
    assert data[:1] in (b"H", b"V")


@pytest.mark.parametrize("place", range(len(WHOLE) - len(b"body")))
def test_a_changed_byte_raises_nothing_but_the_error_for_it(place: int) -> None:
    for byte in (0, 1, 127, 255):
        try:
            unpack(WHOLE[:place] + bytes([byte]) + WHOLE[place + 1 :])
        except CodecError:
            continue


def test_a_time_that_is_none_is_refused() -> None:
    with pytest.raises(CodecError, match="damaged"):
        unpack(Stored(200, (), b"", Terms(60.0, math.nan), own_tag=False).pack())
