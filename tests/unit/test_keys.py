"""Names on the server are short, say what they are, and never meet."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backburner.cache.keys import MAX_SHOWN, Keyspace, check_key

KEYSPACE = Keyspace("app:")
keys = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=3 * MAX_SHOWN)


@given(keys)
@example("x" * MAX_SHOWN)
@example("x" * (MAX_SHOWN + 1))
def test_a_name_is_short_and_begins_with_its_key(key: str) -> None:
    name = KEYSPACE.entry(check_key(key))
    shown = key if len(key) <= MAX_SHOWN else key[:150]
    assert name.startswith(f"app:{shown}")
    assert len(name) <= len("app:") + MAX_SHOWN
    assert KEYSPACE.key_of(name) == KEYSPACE.local(key)
    assert len(KEYSPACE.lease(key)) < 2 * MAX_SHOWN


@given(keys, keys)
@example("x" * 500 + "a", "x" * 500 + "b")
@example("x" * 199, "x" * 200)
def test_different_keys_have_different_names(one: str, other: str) -> None:
    assert (KEYSPACE.entry(one) == KEYSPACE.entry(other)) is (one == other)


def test_no_key_can_be_chosen_to_meet_a_long_one() -> None:
    with pytest.raises(ValueError, match="control characters"):
        check_key(KEYSPACE.local("x" * 500))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("", "a key must not be empty"),
        (b"key", r"a key must be text, not bytes: b'key'"),
        (None, "a key must be text, not NoneType"),
        ("a\nb", r"a key must not contain control characters: 'a\\nb'"),
        ("a\x7f", "a key must not contain control characters"),
        ("\ud800", "a key must be valid Unicode text"),
        ("x" * 65_537, "a key has at most 65536 characters, this one has 65537: 'xxx"),
    ],
)
def test_what_is_no_key_is_refused_with_a_sentence(key: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_key(key)
