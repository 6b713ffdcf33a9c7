"""Large payloads are smaller on the server and whole everywhere else; processes that do not compress share it."""

import random
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from backburner import Cache
from backburner.cache.compression import THRESHOLD, Compression
from backburner.errors import CodecError, ConfigError
from backburner.events import Undecodable
from tests.conftest import Eventually

LARGE = b"J" + b'{"title":"Emma"},' * 200
LIMIT = 100_000
TITLES = ["Emma"] * 1000


@pytest.fixture
def compression() -> Compression:
    return Compression("auto", LIMIT)


@pytest.fixture
def without_zstandard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)


@pytest.fixture
def server(redis_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def cache(redis_url: str) -> Iterator[Callable[..., Cache]]:
    caches = []

    def make(**options: Any) -> Cache:
        caches.append(Cache(redis_url, prefix="app:", strict=True, **options))
        return caches[-1]

    yield make
    for made in caches:
        made.close()


def test_a_large_payload_becomes_smaller_and_whole_again(compression: Compression) -> None:
    packed = compression.pack(LARGE)
    assert packed[:1] == b"Z"
    assert len(packed) < len(LARGE) / 5
    assert compression.unpack(packed) == LARGE


def test_a_payload_stays_as_it_is_below_the_threshold_or_without_gain(compression: Compression) -> None:
    small, noise = LARGE[:THRESHOLD], b"P" + random.Random(1).randbytes(10_000)
    assert compression.pack(small) is small
    assert compression.pack(noise) is noise


def test_who_does_not_compress_reads_what_others_compressed(compression: Compression) -> None:
    plain = Compression(None, LIMIT)
    assert plain.pack(LARGE) is LARGE
    assert plain.unpack(compression.pack(LARGE)) == LARGE


def test_a_frame_cannot_claim_more_than_the_limit(compression: Compression) -> None:
    at_most = Compression("zstd", 10**9).pack(b"J" + bytes(LIMIT - 1))
    assert len(compression.unpack(at_most)) == LIMIT
    bomb = b"Z" + zstandard.ZstdCompressor().compress(bytes(50 * LIMIT))
    with pytest.raises(CodecError, match="says to have 5000000 bytes"):
        compression.unpack(bomb)


def test_a_frame_that_does_not_say_its_size_is_refused(compression: Compression) -> None:
    stream = zstandard.ZstdCompressor().compressobj()
    with pytest.raises(CodecError, match="says to have -1 bytes"):
        compression.unpack(b"Z" + stream.compress(bytes(50 * LIMIT)) + stream.flush())


@given(st.binary(max_size=50), st.integers(0, 60), st.integers(0, 7))
def test_damaged_frames_are_codec_errors(noise: bytes, position: int, bit: int) -> None:
    compression = Compression("auto", LIMIT)
    packed = bytearray(compression.pack(LARGE))
    packed[position % len(packed)] ^= 1 << bit
    for damaged in (b"Z" + noise, bytes(packed), bytes(packed[:position]), compression.pack(LARGE) + b"!"):
        try:
            compression.unpack(damaged)
        except CodecError:
            continue


def test_threads_do_not_share_what_must_not_be_shared(compression: Compression) -> None:
    payloads = [b"J" + b"%d," % number * 5000 for number in range(40)]
    with ThreadPoolExecutor(8) as threads:
        back = threads.map(lambda payload: compression.unpack(compression.pack(payload)), payloads * 5)
        assert list(back) == payloads * 5


@pytest.mark.usefixtures("without_zstandard")
def test_zstd_without_its_package_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r'pip install "backburner\[zstd\]"'):
        Cache(compression="zstd")
    assert Compression("auto", LIMIT).pack(LARGE) is LARGE


@pytest.mark.parametrize(
    ("options", "message"),
    [({"compression": "gzip"}, "CACHE_COMPRESSION='gzip': it must be"), ({"max_value_bytes": 0}, "max_value_bytes=0")],
)
def test_options_that_make_no_sense_are_config_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Cache(**options)


@pytest.mark.parametrize("l1", [False, True])
def test_values_are_compressed_on_the_server_and_come_back(cache: Any, server: Any, l1: bool) -> None:
    here, there = cache(l1=l1), cache(l1=l1)
    here.put("titles", TITLES)
    assert server.strlen("app:titles") < 200
    for _ in range(2):
        assert there.get("titles") == TITLES
    assert there.remember("titles", 60, pytest.fail) == TITLES
    assert there.add("titles", []) is False
    assert there.pull("titles") == TITLES


def test_copies_in_the_process_are_whole(cache: Any, eventually: Eventually) -> None:
    here = cache(l1=True)
    here.put("titles", TITLES)
    eventually(lambda: (here.get("titles"), here._near.look("titles"))[1])
    assert here._near.look("titles").payload.startswith(b'J["Emma"')


def test_a_compressed_entry_that_is_dead_is_replaced_by_add(cache: Any, server: Any) -> None:
    here = cache(l1=False)
    here.tags("books").put("titles", TITLES)
    here.tags("books").flush()
    assert here.add("titles", ["new"]) is True
    assert here.get("titles") == ["new"]


def test_counters_count_whatever_is_compressed(cache: Any, server: Any) -> None:
    here = cache(compression="zstd")
    here.put("n", 2**62)
    assert here.increment("n") == 2**62 + 1
    assert server.get("app:n").endswith(b"J%d\n" % (2**62 + 1))


def test_a_process_without_zstandard_misses_what_others_compressed_and_says_what_to_install(
    cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache().put("titles", TITLES)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    bare = cache()
    seen: list[Any] = []
    bare.events.subscribe(seen.append, Undecodable)
    assert bare.get("titles") is None
    assert bare.many(["titles"]) == {}
    assert bare.remember("titles", 60, lambda: ["computed"]) == ["computed"]
    assert {event.key for event in seen} == {"titles"}
    assert all('pip install "backburner[zstd]"' in event.reason for event in seen)
    assert bare.get("titles") == cache().get("titles") == ["computed"]
