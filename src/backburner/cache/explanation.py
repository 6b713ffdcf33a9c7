"""What `Cache.explain` returns: why a read of a key finds what it finds. Pure; the engine gathers the facts.

Explaining changes nothing: no count, no event, no copy, no effect on eviction. Only the server cannot be kept from
noticing that its key was read.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from backburner.cache.entry import COUNTER, Decision, Entry, decide
from backburner.cache.stores.base import Find
from backburner.errors import CodecError, StoreError
from backburner.events import Tier

__all__ = ["Explanation", "TagState", "explain"]

_CODECS: Final = {b"J": "json", b"K": "json with types", b"P": "pickle"}
_UNITS: Final = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


@dataclass(frozen=True, slots=True)
class TagState:
    """A tag of an entry, with its versions in hexadecimal."""

    name: str
    stored: str
    """Its version when the value was computed."""
    current: str | None
    """Its version now; ``None`` after a flush, until another entry is stored with it."""

    @property
    def flushed(self) -> bool:
        """Whether it has been flushed since, which makes the entry a miss."""
        return self.stored != self.current


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What lies under a key, and what a read makes of it. Times are seconds from now, infinite for never. Everything
    about the entry is ``None`` if there is none, or none that can be read."""

    key: str
    decision: Decision
    """What the entry is good for; for `get`, a stale entry is a miss."""
    reason: str
    tier: Tier | None = None
    """Where a read would find the value; ``None``: nowhere."""
    in_memory: bool = False
    """Whether this process keeps the entry."""
    on_server: bool | None = None
    """Whether the server has something there; ``None``: there is no server, or it does not answer."""
    age: float | None = None
    refresh_in: float | None = None
    """When `remember` begins to renew it."""
    fresh_for: float | None = None
    kept_for: float | None = None
    """When it expires; until then it may stand in for a callback that fails or takes too long."""
    compute_seconds: float | None = None
    """How long the callback took; 0 where there was none."""
    tags: tuple[TagState, ...] = ()
    codec: str | None = None
    payload_bytes: int | None = None
    """Size of the encoded value; ``None`` if the value itself is kept."""
    stored_bytes: int | None = None
    """Size of everything stored on the server, header and tags included."""

    def __str__(self) -> str:
        places = [place for place, there in (("memory", self.in_memory), ("server", self.on_server)) if there]
        lines = [
            f"{self.key!r}: {self.decision.name}, {self.reason}",
            f"  lies in   {' and '.join(places) or 'nothing'}",
        ]
        if self.age is not None:
            sizes = [] if self.payload_bytes is None else [f"{self.payload_bytes} bytes"]
            sizes += [] if self.stored_bytes is None else [f"{self.stored_bytes} on the server"]
            lines += [
                f"  age       {_span(self.age)}, computed in {_span(self.compute_seconds or 0)}",
                f"  renewed   {_when(self.refresh_in)}",
                f"  fresh     {_until(self.fresh_for)}",
                f"  kept      {_until(self.kept_for)}",
                f"  value     {', '.join([self.codec or '', *sizes])}",
            ]
        lines += [f"  tag       {tag.name!r} {tag.stored}, now {tag.current or 'flushed'}" for tag in self.tags]
        return "\n".join(lines)


def explain(
    key: str,
    find: Find | StoreError,
    current: Mapping[str, bytes | None],
    now: float,
    *,
    owed: bool,
    decode: Callable[[bytes], object],
) -> Explanation:
    """Explain what is known about a key.

    Args:
        find: what lies there, or why that is unknown.
        current: the current versions of its entry's tags.
        owed: whether the key was removed while the server was away, and the server has yet to be told.
        decode: raises a `CodecError` for a payload that cannot be read.
    """
    if isinstance(find, StoreError):
        return Explanation(key=key, decision=Decision.MISS, reason=f"the server does not answer: {find}")
    entry = find.kept if find.entry is None else find.entry
    unreadable = find.unreadable
    if entry is not None and entry.payload is not None and not COUNTER.fullmatch(entry.payload):
        try:
            decode(entry.payload)
        except CodecError as error:
            unreadable = str(error)
    tags = tuple(_state(tag, version, current) for tag, version in entry.tags) if entry is not None else ()
    decision = decide(entry, now, [current[tag.name] for tag in tags])
    if unreadable is not None or owed:
        decision = Decision.MISS
    explanation = Explanation(
        key=key,
        decision=decision,
        reason=_reason(entry, decision, tags, now, unreadable, owed=owed),
        in_memory=find.kept is not None,
        on_server=find.stored is not None if find.asked else None,
        tags=tags,
        stored_bytes=None if find.stored is None else len(find.stored),
    )
    if entry is None:
        return explanation
    kept = find.kept is not None and (not find.asked or now < find.kept.refresh_at)
    return replace(
        explanation,
        tier=None if decision is Decision.MISS else "memory" if kept else "server",
        age=now - entry.created,
        refresh_in=entry.refresh_at - now,
        fresh_for=entry.fresh_until - now,
        kept_for=entry.expires_at - now,
        compute_seconds=entry.compute_seconds,
        codec=_codec(entry, compressed=find.compressed),
        payload_bytes=None if entry.payload is None else len(entry.payload),
    )


def _state(tag: str, stored: bytes, current: Mapping[str, bytes | None]) -> TagState:
    version = current[tag]
    return TagState(tag, stored.hex(), None if version is None else version.hex())


def _reason(
    entry: Entry | None,
    decision: Decision,
    tags: tuple[TagState, ...],
    now: float,
    unreadable: str | None,
    *,
    owed: bool,
) -> str:
    flushed = [repr(tag.name) for tag in tags if tag.flushed]
    if unreadable is not None:
        return f"its bytes cannot be read: {unreadable}"
    if entry is None:
        return "there is no entry"
    if owed:
        return "it was removed while the server did not answer, which is made good before the next read"
    if flushed:
        which = f"tag {flushed[0]} was" if len(flushed) == 1 else f"tags {', '.join(flushed)} were"
        return f"{which} flushed since it was stored {_span(now - entry.created)} ago"
    match decision:
        case Decision.MISS:
            return f"it expired {_span(now - entry.expires_at)} ago"
        case Decision.STALE:
            return f"its freshness ended {_span(now - entry.fresh_until)} ago"
        case Decision.RESTING:
            return (
                f"its freshness ended {_span(now - entry.fresh_until)} ago, its callback has failed since, and is left "
                f"alone for another {_span(entry.refresh_at - now)}"
            )
        case Decision.REFRESH:
            return f"fresh for another {_span(entry.fresh_until - now)}, and about to be renewed"
        case _:
            return f"fresh {_until(entry.fresh_until - now)}"


def _codec(entry: Entry, *, compressed: bool) -> str:
    payload = entry.payload
    if payload is None:
        return f"kept as it is ({type(entry.value).__name__})"
    name = "counter" if COUNTER.fullmatch(payload) else _CODECS.get(payload[:1], f"unknown ({payload[:1]!r})")
    return f"{name}, compressed" if compressed else name


def _span(seconds: float) -> str:
    """A duration in human-readable form."""
    if math.isinf(seconds):
        return "ever"
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1000:.3g} ms"


def _until(seconds: float | None) -> str:
    if seconds is None or seconds <= 0:
        return "no more" if seconds is None else f"until {_span(-seconds)} ago"
    return f"for {'ever' if math.isinf(seconds) else 'another ' + _span(seconds)}"


def _when(seconds: float | None) -> str:
    if seconds is None or math.isinf(seconds):
        return "never"
    return f"in {_span(seconds)}" if seconds > 0 else f"since {_span(-seconds)} ago"
