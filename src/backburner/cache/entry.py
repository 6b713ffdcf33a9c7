"""One cache entry: what it holds, until when, and what it looks like in bytes. Pure: no clock, no I/O, no locks.

An entry is fresh, and served, until `fresh_until`. From `refresh_at` on, a little earlier, one caller renews it while
the others still get it. From `fresh_until` to `expires_at` it is stale: kept in case a callback fails or takes too
long. The store removes it at `expires_at`. A failed renewal moves `refresh_at` into the future; until then, none is
tried.

    0      1        2               4        12          20           28          36               40     44
    magic  version  payload offset  created  refresh_at  fresh_until  expires_at  compute seconds  check  tags…  payload

Numbers are big-endian, times are Unix seconds as doubles, and infinity means for ever. Each tag is the length of its
name (2 bytes), its name in UTF-8, and the 8 bytes that were its version when the value was computed.

The check is a CRC-32 of key, tags and payload; it detects damaged bytes and those of another key. It is not a
signature: whoever can write to the server can forge it. That of a counter covers only the key, since the server itself
changes the number; a newline after the digits tells a whole number from a truncated one.
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
"""How many bytes the tags of one entry may take."""
TIMES: Final = struct.Struct(">ddd")
"""`refresh_at`, `fresh_until` and `expires_at`: in the header from `TIMES_OFFSET` on, where scripts rewrite them."""
TIME: Final = struct.Struct(">d")
"""One of these, or the time of creation."""
TIMES_OFFSET: Final = 12
INT64: Final = range(-(2**63), 2**63)
"""What a counter can hold."""
COUNTER: Final = re.compile(rb"J(-?\d{1,19})\n")
"""The payload of a 64-bit integer, whatever the codec."""

Duration = float | int | timedelta | str
TTL = Duration | None
"""How long an entry lives: seconds, a `timedelta` or text such as ``"10m"``; ``None`` means the cache's default."""

TagVersions = tuple[tuple[str, bytes], ...]


class _Encoded(Enum):
    """Stands for the value of an entry that has only been kept as bytes."""

    ENCODED = auto()


ENCODED: Final = _Encoded.ENCODED


@dataclass(slots=True)
class Entry:
    """A value with its times and tags. Immutable, except for the memory store, which changes entries under its lock."""

    payload: bytes | None
    """The encoded value; ``None`` if the store keeps the value itself."""
    created: float
    refresh_at: float
    fresh_until: float
    expires_at: float
    tags: TagVersions = ()
    compute_seconds: float = 0.0
    value: object = ENCODED
    """The value itself if it is immutable and can be shared; otherwise `ENCODED`, and each reader decodes its own."""
    tags_held_at: int = field(default=-1, compare=False)
    """The store's `generation` when the tags were last found valid."""
    counts: TierCounts | None = field(default=None, compare=False)
    """Where hits on it are counted, from its first hit in this process on: a look-up per hit would cost too much."""
    uses: int = field(default=0, compare=False)
    """Hits, as the eviction policy of a memory store counts them."""
    size: int = field(default=0, compare=False)
    """Bytes that it takes in a memory store, with its key and all bookkeeping; 0 until it is stored there."""
    group: set[str] | None = field(default=None, compare=False, repr=False)
    """The keys of the entries in its memory store that expire together with it."""

    @property
    def mark(self) -> bytes:
        """Tells this entry from others under the same key, earlier or later. ``b""`` is the mark of an absent entry."""
        return TIME.pack(self.created)

    def renewed_from(self, refresh_at: float) -> "Entry":
        """A copy of this entry with another `refresh_at`."""
        # `dataclasses.replace` takes five times as long.
        times = (self.created, refresh_at, self.fresh_until, self.expires_at)
        return Entry(self.payload, *times, self.tags, self.compute_seconds, self.value)

    def pack(self, key: str) -> bytes:
        """The entry as the bytes to be stored under a key.

        Raises:
            ValueError: the value is not encoded, or the tags take more than `MAX_TAGS` bytes.
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
    """How many bytes a tag takes, out of `MAX_TAGS`."""
    return _TAG.size + len(tag.encode()) + VERSION_BYTES


class Decision(Enum):
    """What an entry is good for."""

    HIT = 1, True
    REFRESH = 2, True
    """As good as a hit, but somebody should renew it."""
    STALE = 3, False
    RESTING = 4, False
    """Stale, and a renewal has just failed: none is to be tried for a moment."""
    MISS = 5, False

    def __init__(self, _: int, fresh: bool) -> None:
        self.fresh: Final = fresh
        """Whether every reader may get the value."""


def decide(entry: Entry | None, now: float, current: Sequence[bytes | None]) -> Decision:
    """Decide what an entry is good for at a time, given the `current` versions of its tags, in the entry's order;
    ``None`` for a tag without a version.

    If a tag has been flushed, or the server has lost its version, the entry is a miss. It is not even stale: whoever
    flushed has declared it wrong.
    """
    if entry is None or now >= entry.expires_at:
        return Decision.MISS
    if entry.tags and [version for _, version in entry.tags] != list(current):
        return Decision.MISS
    if now < entry.fresh_until:
        return Decision.HIT if now < entry.refresh_at else Decision.REFRESH
    return Decision.RESTING if now < entry.refresh_at else Decision.STALE


def refresh_point(fresh_until: float, compute_seconds: float, draw: float) -> float:
    """When to renew an entry before it expires, so that nobody has to wait for it (XFetch).

    The longer it took to compute, the earlier. `draw`, from 0 exclusive to 1 inclusive, spreads entries that were
    computed together; it is drawn once, when the entry is made, so that a hit costs a single comparison.

    Source: Vattani, Chierichetti, Lowenstein, "Optimal Probabilistic Cache Stampede Prevention", VLDB 2015.
    """
    return fresh_until + compute_seconds * math.log(draw)


_UNITS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|[smhdw])")
_TEXT: Final = re.compile(rf"\s*(?:{_PART.pattern}\s*)+")


_LONGEST: Final = timedelta.max.total_seconds()
"""Seconds. Much longer times would overflow the milliseconds that servers count."""


def seconds(ttl: object) -> float:
    """A ttl in seconds. Text is a number with a unit (ms, s, m, h, d, w) or several: ``"1h 30m"``.

    Raises:
        ValueError: it is not a duration.
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
