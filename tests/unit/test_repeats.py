"""Entries whose bytes come again: only the very same bytes are, and what is kept is bounded."""

import pytest

from backburner.cache.compression import Compression
from backburner.cache.entry import Entry
from backburner.cache.stores import repeats
from backburner.cache.stores.repeats import Repeats

PAYLOAD = b'J{"title":"Emma","pages":448}'


def _entry(payload: bytes = PAYLOAD) -> Entry:
    return Entry(payload, 1.0, 2.0, 2.0, 3.0, tags=(("books", b"version1"),))


def test_the_same_bytes_are_the_same_entry_and_no_others() -> None:
    data, entry = _entry().pack("key"), _entry()
    known = Repeats()
    assert known.find("key", data) is None
    known.keep("key", data, entry)
    assert known.find("key", bytes(bytearray(data))) is entry
    assert known.find("other", data) is None
    assert known.find("key", data[:-1]) is None
    assert known.find("key", data + data[-1:]) is None
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1
        assert known.find("key", bytes(changed)) is None
    assert known.find("key", data) is entry


def test_what_is_stored_compressed_is_compared_as_it_is_stored() -> None:
    payload = PAYLOAD * 200
    stored = Compression("zstd", 1 << 20).pack(payload)
    assert stored != payload
    data, entry = _entry(stored).pack("key"), _entry(payload)
    known = Repeats()
    known.keep("key", data, entry)
    assert known.find("key", data) is entry
    assert known.find("key", data[:-1] + bytes((data[-1] ^ 1,))) is None


def test_an_empty_payload_is_none_of_the_others() -> None:
    data, entry = _entry(b"").pack("key"), _entry(b"")
    known = Repeats()
    known.keep("key", data, entry)
    assert known.find("key", data) is entry
    assert known.find("key", data + b"J1") is None


def test_a_new_value_takes_the_place_of_the_old_one() -> None:
    known = Repeats()
    for number in range(3):
        entry = _entry(b"J%d" % number)
        known.keep("key", entry.pack("key"), entry)
        assert known.find("key", entry.pack("key")) is entry
    assert known.find("key", _entry(b"J0").pack("key")) is None


@pytest.mark.parametrize("size", [10, 10_000, 1_000_000])
def test_what_is_kept_is_bounded_and_what_is_used_stays(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "MOST_ITEMS", 100)
    known, most = Repeats(), 0
    popular = _entry(b"J" + b"p" * size)
    known.keep("popular", popular.pack("popular"), popular)
    for number in range(300):
        entry = _entry(b"J" + b"x" * size)
        known.keep(f"key:{number}", entry.pack("key"), entry)
        assert known.find("popular", popular.pack("popular")) is popular
        most = max(most, len(known))
    assert most <= min(100, 2 + repeats.MOST_BYTES // (2 * size)) + 2


def test_what_would_take_the_room_of_many_is_not_kept() -> None:
    entry = _entry(b"J" + b"x" * (repeats.MOST_BYTES // 8))
    known = Repeats()
    known.keep("key", entry.pack("key"), entry)
    assert len(known) == 0
