"""One cache entry: what it holds, until when, and what it looks like in bytes. Pure: no clock, no I/O, no locks.

An entry is fresh until `fresh_until` and is served. From `refresh_at` on, a little earlier, one caller renews it while
the others still get it. From `fresh_until` to `expires_at` it is stale: kept for when a callback fails, or takes its
time. The store removes it at `expires_at`. A renewal that failed moves `refresh_at` on, and none is tried before.

    0      1        2               4        12          20           28          36               40     44
    magic  version  payload offset  created  refresh_at  fresh_until  expires_at  compute seconds  check  tags…  payload

Numbers are big-endian, times are Unix seconds as doubles, infinity means for ever. Each tag is the length of its name
(2 bytes), its name in UTF-8 and the 8 bytes of its version at the time the value was computed.

The check is the CRC-32 of key, tags and payload. Damaged bytes, and those of another key, are recognised by it. It is
no signature: whoever can write to the server can make one. A counter's covers its key only, since the server adds to
the number, which ends with a newline so that none that was cut off passes for a whole one.
"""

import math
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum, auto
from typing import Final

from backburner.cache.counters import TierCounts
from backburner.errors import CodecError

MAGIC: Final = 0xBB
VERSION: Final = 2
MARK: Final = bytes((MAGIC, VERSION))
HEADER: Final = struct.Struct(">BBHddddfI")
_TAG: Final = struct.Struct(">H")
VERSION_BYTES: Final = 8
MAX_TAGS: Final = 0xFFFF - HEADER.size
"""Bytes that the tags of one entry may take."""
TIMES: Final = struct.Struct(">ddd")
"""`refresh_at`, `fresh_until` and `expires_at`, as they stand in the header from `TIMES_OFFSET` on. Scripts rewrite
them."""
TIME: Final = struct.Struct(">d")
"""One of them, or when the entry was created."""
TIMES_OFFSET: Final = 12
INT64: Final = range(-(2**63), 2**63)
"""What a counter can hold."""
COUNTER: Final = re.compile(rb"J(-?\d{1,19})\n")
"""The payload of a whole number of 64 bits, whatever the codec."""

Duration = float | int | timedelta | str
TTL = Duration | None
"""How long an entry lives: seconds, a `timedelta` or text such as ``"10m"``; ``None`` is the cache's default."""

TagVersions = tuple[tuple[str, bytes], ...]


class _Encoded(Enum):
    """Marks an entry whose value exists as bytes only."""

    ENCODED = auto()


ENCODED: Final = _Encoded.ENCODED


@dataclass(slots=True)
class Entry:
    """A value with its times and tags. Not changed after it was made, except by the memory store under its lock."""

    payload: bytes | None
    """The encoded value; ``None`` where the store keeps immutable values as they are."""
    created: float
    refresh_at: float
    fresh_until: float
    expires_at: float
    tags: TagVersions = ()
    compute_seconds: float = 0.0
    value: object = ENCODED
    """The value itself where it is immutable and so can be shared; else `ENCODED`, and each reader decodes its own."""
    tags_held_at: int = field(default=-1, compare=False)
    """The generation of its store in which the tags were last seen to hold."""
    counts: TierCounts | None = field(default=None, compare=False)
    """Where hits on it are counted, once it had one in this process: a look-up for each would cost too much."""
    uses: int = field(default=0, compare=False)
    """Hits, as far as they matter to the policy of a memory store."""
    size: int = field(default=0, compare=False)
    """Bytes that it takes in this process, with its key and all that is needed to keep it; 0 until it is kept."""
    group: set[str] | None = field(default=None, compare=False, repr=False)
    """The keys of those in its memory store that end with it."""

    @property
    def mark(self) -> bytes:
        """Tells this entry from those that were, or will be, under the same key. An absent one has the mark ``b""``."""
        return TIME.pack(self.created)

    def renewed_from(self, refresh_at: float) -> "Entry":
        """Another one of the same value, which is to be renewed from another time on."""
        # `dataclasses.replace` takes five times as long.
        times = (self.created, refresh_at, self.fresh_until, self.expires_at)
        return Entry(self.payload, *times, self.tags, self.compute_seconds, self.value)

    def pack(self, key: str) -> bytes:
        """The entry as the bytes that stand for it under a key.

        Raises:
            ValueError: it is not encoded, or its tags take more than `MAX_TAGS`.
        """
        payload = self.payload
        if payload is None:
            raise ValueError("only encoded entries leave the process")
        tags = b"".join(
            _TAG.pack(len(name)) + name + version
            for name, version in ((tag.encode(), version) for tag, version in self.tags)
        )
        if len(tags) > MAX_TAGS:
            raise ValueError(f"the {len(self.tags)} tags of one entry take {len(tags)} bytes; {MAX_TAGS} are the limit")
        offset = HEADER.size + len(tags)
        times = (self.created, self.refresh_at, self.fresh_until, self.expires_at, self.compute_seconds)
        header = HEADER.pack(MAGIC, VERSION, offset, *times, _check(key, tags, payload))
        return b"".join((header, tags, payload))

    @classmethod
    def unpack(cls, data: bytes, key: str) -> "Entry":
        """Read what `pack` wrote for the same key.

        Raises:
            CodecError: these bytes are not an entry of this version, or not of this key.
        """
        if data[:1] != MARK[:1]:
            raise CodecError("not an entry of Backburner")
        if data[:2] != MARK:
            raise CodecError(f"entry format {data[1] if data[1:] else '?'}, this program reads {VERSION}")
        if len(data) < HEADER.size:
            raise CodecError("the header is cut off")
        _, _, offset, created, refresh_at, fresh_until, expires_at, took, check = HEADER.unpack_from(data)
        if not HEADER.size <= offset <= len(data) or math.isnan(refresh_at + fresh_until + expires_at):
            raise CodecError("the header is damaged")
        payload = data[offset:]
        if check != _check(key, data[HEADER.size : offset], payload):
            raise CodecError("the bytes are damaged, or belong to another key")
        tags = _unpack_tags(data, offset) if offset > HEADER.size else ()
        return cls(payload, created, refresh_at, fresh_until, expires_at, tags, took)


def _check(key: str, tags: bytes, payload: bytes) -> int:
    of_key = zlib.crc32(key.encode())
    if payload.endswith(b"\n") and COUNTER.fullmatch(payload):
        return of_key
    return zlib.crc32(payload, zlib.crc32(tags, of_key) if tags else of_key)


def _unpack_tags(data: bytes, end: int) -> TagVersions:
    tags = []
    position = HEADER.size
    while position < end:
        try:
            (length,) = _TAG.unpack_from(data, position)
            position += _TAG.size
            name = data[position : position + length].decode()
        except (struct.error, UnicodeDecodeError) as error:
            raise CodecError("the tags are damaged") from error
        position += length + VERSION_BYTES
        tags.append((name, data[position - VERSION_BYTES : position]))
    if position != end:
        raise CodecError("the tags are damaged")
    return tuple(tags)


def tag_bytes(tag: str) -> int:
    """What a tag takes of `MAX_TAGS`."""
    return _TAG.size + len(tag.encode()) + VERSION_BYTES


class Decision(Enum):
    """What an entry is good for."""

    HIT = 1, True
    REFRESH = 2, True
    """As good as a hit; and somebody should renew it."""
    STALE = 3, False
    RESTING = 4, False
    """Stale, and renewing it has failed just now: it is not to be tried again for a moment."""
    MISS = 5, False

    def __init__(self, _: int, fresh: bool) -> None:
        self.fresh: Final = fresh
        """Whether the value may be given to anybody."""


def decide(entry: Entry | None, now: float, current: Sequence[bytes | None]) -> Decision:
    """Judge an entry at a time, given the `current` versions of its tags (in the entry's order; ``None``: none).

    A tag that was flushed since, or whose version the server has lost, makes the entry a miss: not even stale, because
    whoever flushed said that it is wrong.
    """
    if entry is None or now >= entry.expires_at:
        return Decision.MISS
    if entry.tags and [version for _, version in entry.tags] != list(current):
        return Decision.MISS
    if now < entry.fresh_until:
        return Decision.HIT if now < entry.refresh_at else Decision.REFRESH
    return Decision.RESTING if now < entry.refresh_at else Decision.STALE


def refresh_point(fresh_until: float, compute_seconds: float, draw: float) -> float:
    """When to renew an entry before it ends, so that nobody waits for it then (XFetch).

    The longer it took to compute, the earlier; `draw`, from 0 exclusive to 1 inclusive, spreads entries that were
    computed together. Drawn once, when the entry is made, so that a hit costs one comparison.

    Source: Vattani, Chierichetti, Lowenstein, "Optimal Probabilistic Cache Stampede Prevention", VLDB 2015.
    """
    return fresh_until + compute_seconds * math.log(draw)


_UNITS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|[smhdw])")
_TEXT: Final = re.compile(rf"\s*(?:{_PART.pattern}\s*)+")


_LONGEST: Final = timedelta.max.total_seconds()
"""Servers can count a thousand times as many milliseconds, and no more."""


def seconds(ttl: object) -> float:
    """A ttl in seconds. Text is a number with a unit (ms, s, m, h, d, w) or several: ``"1h 30m"``.

    Raises:
        ValueError: it is no length of time.
    """
    length: float
    if isinstance(ttl, timedelta):
        length = ttl.total_seconds()
    elif isinstance(ttl, str) and _TEXT.fullmatch(ttl):
        length = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(ttl))
    elif isinstance(ttl, bool | str) or not isinstance(ttl, int | float) or ttl != ttl:  # NaN
        raise ValueError(
            f"{ttl!r} is no length of time; write seconds, a timedelta, or text such as '90s', '10m', '1h 30m'"
        )
    else:
        length = ttl
    if _LONGEST < length < math.inf:
        raise ValueError("more than timedelta.max is no length of time; to keep something for ever there is forever()")
    return float(length)
