"""Entries on a server, with copies of those in use in this process, dropped when the server announces a change.

A copy may be kept only while changes are heard (`Tracking`): a lost connection means no copies. Nor may it be kept if a
change was announced between the request that brought it and its arrival: the reply may be older than the change. So
each read leaves a token before it asks, and an announcement takes the token away; without it, the reply is returned to
the caller but not kept. The versions of tags are kept in the same way, which makes a tagged hit as cheap as any other.
In any case, a copy is kept for a minute at most.

One `Near` serves all stores of a cache in this process: that of each event loop, and that of blocking callers.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from threading import Lock
from typing import Any, Final

from backburner.cache.entry import Entry
from backburner.cache.keys import Keyspace
from backburner.cache.stores.base import Find, Outcome, Seen, Taken, Turn
from backburner.cache.stores.memory import MemoryStore
from backburner.cache.stores.redis import RedisStore
from backburner.errors import CodecError, StoreError
from backburner.events import Tier
from backburner.redis.tracking import Mode, Tracking

CAP: Final = 60.0
"""Seconds that a copy is kept at most: the bound if, despite all of the above, an announcement were lost."""

_SCALARS: Final = frozenset(b'"-0123456789tfn')
"""First bytes of plain JSON values that are immutable, so that readers can share them."""


class Near(MemoryStore):
    """Copies of a server's entries, and of the versions of their tags.

    Entries are kept under `Keyspace.local`, since announcements contain names on the server. So for a long key the
    shortcut for hits finds nothing, but `copy_of` does.
    """

    def __init__(
        self, url: str, keyspace: Keyspace, *, policy: str, max_items: int, max_bytes: int | str, timeout: float
    ) -> None:
        super().__init__(policy, max_items, max_bytes)
        self._keyspace = keyspace
        self._tokens: dict[str, object] = {}
        self._guard = Lock()  # held while a token is checked and acted upon
        self._trusted = False
        self._tracking = Tracking(
            url,
            keyspace.prefix,
            keyspace.channel,
            on_invalidated=self._heard,
            on_trusted=self._trust,
            on_lost=self._distrust,
            timeout=timeout,
        )

    def start(self) -> None:
        """Start listening; until that works, nothing is kept."""
        self._tracking.start()

    def stop(self) -> None:
        """Stop listening, and drop everything."""
        self._tracking.stop()
        self._distrust()

    def after_fork(self) -> None:
        """In a forked child: start empty, and listen on a connection of its own."""
        super().after_fork()
        self._guard = Lock()
        self._tracking.after_fork()
        self._distrust()

    @property
    def tracking(self) -> Mode:
        """How changes are heard."""
        return self._tracking.mode if self._trusted else "off"

    def pushed(self, message: list[Any]) -> None:
        """Handle a push message that came on another connection than that of `Tracking`."""
        match message:
            case [b"invalidate", names]:
                self._heard(names)
            case _:
                pass  # nothing else was asked for

    def look(self, key: str) -> Entry | None:
        return super().look(self._keyspace.local(key))

    def copy_of(self, key: str, now: float) -> Entry | None:
        """A copy that can be used without asking the server, if its tags are still valid."""
        entry = self.peek(self._keyspace.local(key))
        return entry if entry is not None and now < entry.refresh_at else None

    def ask(self, names: Iterable[str]) -> dict[str, object]:
        """Leave tokens for names that are about to be read; none while changes are not heard."""
        with self._guard:  # else trust could be lost in between, and the copy be kept
            return self._leave_tokens(names) if self._trusted else {}

    def keep_entry(self, key: str, entry: Entry, token: object, now: float) -> None:
        """Keep an entry that a read has brought, if its token is still there."""
        with self._guard:
            if self._tokens.pop(self._keyspace.entry(key), None) is token:
                of_use_until = min(entry.refresh_at, now + CAP)
                entry = entry.renewed_from(of_use_until)
                with self._lock:
                    self._put(self._keyspace.local(key), entry, now, of_use_until)

    def keep_tag(self, tag: str, version: bytes, token: object) -> None:
        """Keep the version of a tag, if its token is still there."""
        with self._guard:
            if self._tokens.pop(self._keyspace.tag(tag), None) is token:
                with self._lock:
                    self._tags.set(tag, version)

    def let_go(self, tokens: Mapping[str, object]) -> None:
        """Remove the tokens of a read that failed or found nothing."""
        with self._guard:
            self._take_tokens(tokens)

    def drop(self, names: Iterable[str]) -> None:
        """Drop copies by their names on the server; results of reads in progress will not be kept."""
        with self._guard, self._lock:
            self._drop(names)

    def drop_all(self) -> None:
        """Drop everything; results of reads in progress will not be kept."""
        with self._guard, self._lock:
            self._tokens.clear()
            self._clear()

    # Under the guard

    def _leave_tokens(self, names: Iterable[str]) -> dict[str, object]:
        return {name: self._tokens.setdefault(name, object()) for name in names}

    def _take_tokens(self, tokens: Mapping[str, object]) -> None:
        for name, token in tokens.items():
            if self._tokens.get(name) is token:
                del self._tokens[name]

    def _drop(self, names: Iterable[str]) -> None:
        tags = False
        for name in names:
            self._tokens.pop(name, None)
            if (tag := self._keyspace.tag_of(name)) is not None:
                tags |= self._tags.flush(tag)
            else:
                self._remove(self._keyspace.key_of(name))
        self.generation += tags

    # Called back

    def _heard(self, names: list[bytes] | None) -> None:
        if names is None:
            self.drop_all()
        else:
            self.drop(name.decode("utf-8", "replace") for name in names)

    def _trust(self) -> None:
        self.drop_all()
        self._trusted = True

    def _distrust(self, _: Exception | None = None) -> None:
        self._trusted = False
        self.drop_all()


class TieredStore:
    """A `RedisStore` with copies in a `Near`."""

    shares_values = False

    def __init__(
        self,
        near: Near,
        far: RedisStore,
        keyspace: Keyspace,
        decode: Callable[[bytes], object],
        clock: Callable[[], float],
    ) -> None:
        self.locks = far.locks
        self.limits = far.limits
        self._near = near
        self._far = far
        self._keyspace = keyspace
        self._decode = decode
        self._clock = clock
        self._hears = False

    def tier_of(self, key: str, entry: Entry) -> Tier:
        return "memory" if self._near.look(key) is entry else "server"

    async def find(self, key: str) -> Find:
        kept = self._near.look(key)
        try:
            return replace(await self._far.find(key), kept=kept)
        except StoreError:
            if kept is None:
                raise
            return Find(kept)

    async def read_one(self, key: str) -> Entry | None:
        self._near.start()
        now = self._clock()
        entry = self._near.copy_of(key, now)
        if entry is not None:
            return entry
        tokens = self._ask((self._keyspace.entry(key),))
        try:
            entry = await self._far.read_one(key)
            if entry is not None and tokens:
                _, token = tokens.popitem()
                self._near.keep_entry(key, self._shared(entry), token, now)
        finally:
            if tokens:
                self._near.let_go(tokens)
        return entry

    async def read(self, keys: Sequence[str]) -> list[Entry | None]:
        self._near.start()
        now = self._clock()
        found = {key: self._near.copy_of(key, now) for key in keys}
        absent = [key for key, entry in found.items() if entry is None]
        if absent:
            tokens = self._ask(map(self._keyspace.entry, absent))
            try:
                for key, entry in zip(absent, await self._far.read(absent), strict=True):
                    found[key] = entry
                    token = tokens.pop(self._keyspace.entry(key), None) if entry is not None else None
                    if entry is not None and token is not None:
                        self._near.keep_entry(key, self._shared(entry), token, now)
            finally:
                self._near.let_go(tokens)
        return [found[key] for key in keys]

    async def tag_versions(self, tags: Sequence[str]) -> list[bytes | None]:
        known = dict(zip(tags, await self._near.tag_versions(tags), strict=True))
        absent = [tag for tag, version in known.items() if version is None]
        if absent:
            tokens = self._ask(map(self._keyspace.tag, absent))
            try:
                for tag, version in zip(absent, await self._far.tag_versions(absent), strict=True):
                    known[tag] = version
                    token = tokens.pop(self._keyspace.tag(tag), None) if version is not None else None
                    if version is not None and token is not None:
                        self._near.keep_tag(tag, version, token)
            finally:
                self._near.let_go(tokens)
        return [known[tag] for tag in tags]

    async def write(self, entries: Mapping[str, Entry], now: float) -> None:
        async with self._changing(entries):
            await self._far.write(entries, now)

    async def add(self, key: str, entry: Entry, now: float) -> Entry | None:
        async with self._changing([key]):
            return await self._far.add(key, entry, now)

    async def replace(self, key: str, found: Entry, entry: Entry, now: float) -> bool:
        async with self._changing([key]):
            return await self._far.replace(key, found, entry, now)

    async def take(self, key: str) -> Entry | None:
        async with self._changing([key]):
            return await self._far.take(key)

    async def forget(self, keys: Sequence[str]) -> int:
        async with self._changing(keys):
            return await self._far.forget(keys)

    async def increment(self, key: str, amount: int, begin: Entry, now: float, *, tags_checked: bool) -> int | None:
        async with self._changing([key]):
            return await self._far.increment(key, amount, begin, now, tags_checked=tags_checked)

    async def touch(self, key: str, fresh_until: float, expires_at: float, now: float) -> bool:
        async with self._changing([key]):
            return await self._far.touch(key, fresh_until, expires_at, now)

    async def expire(self, key: str, now: float) -> bool:
        async with self._changing([key]):
            return await self._far.expire(key, now)

    async def pin_tags(self, tags: Sequence[str], lifetime: float) -> list[bytes]:
        return await self._far.pin_tags(tags, lifetime)

    async def flushed_since(self, tags: Sequence[str], began: int) -> bool:
        return await self._far.flushed_since(tags, began)

    async def begin(self, seen: Seen, tags: Sequence[str], lifetime: float, lease: float) -> Turn:
        return await self._far.begin(seen, tags, lifetime, lease)

    async def renew(self, tokens: Mapping[str, str], lease: float) -> list[str]:
        return await self._far.renew(tokens, lease)

    async def finish(self, turn: Turn, outcomes: Mapping[str, Outcome], now: float) -> list[str]:
        async with self._changing(turn.keys):
            return await self._far.finish(turn, outcomes, now)

    async def wait(self, taken: Taken) -> None:
        await self._far.wait(taken)

    async def flush_tags(self, tags: Sequence[str]) -> None:
        async with self._changing_names([self._keyspace.tag(tag) for tag in tags]):
            await self._far.flush_tags(tags)

    async def flush(self) -> None:
        self._near.start()
        self._near.drop_all()
        try:
            await self._far.flush()
        finally:
            self._near.drop_all()

    async def close(self) -> None:
        await self._far.close()

    def _ask(self, names: Iterable[str]) -> dict[str, object]:
        if not self._hears and self._near.tracking == "tracking":
            # In addition to the tracking thread, which may have to wait for this one to let go of the interpreter.
            self._hears = True
            self._far.hear(self._near.pushed)
        return self._near.ask(names)

    def _shared(self, entry: Entry) -> Entry:
        """The entry with its value decoded, if that is immutable so that all readers can share it."""
        payload = entry.payload or b""
        if payload[:1] == b"J" and payload[1:2] and payload[1] in _SCALARS:
            try:
                return replace(entry, value=self._decode(payload))
            except CodecError:
                return entry  # whoever reads it is told
        return entry

    def _changing(self, keys: Iterable[str]) -> AbstractAsyncContextManager[None]:
        return self._changing_names([self._keyspace.entry(key) for key in keys])

    @asynccontextmanager
    async def _changing_names(self, names: Sequence[str]) -> AsyncIterator[None]:
        """Drop copies before a write, so that nobody reads the old ones; and after it, those read in between."""
        self._near.start()
        self._near.drop(names)
        try:
            yield
        finally:
            self._near.drop(names)
