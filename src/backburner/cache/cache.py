"""`Cache`: puts together the engines and stores behind its verbs, and what they share in this process.

A cache may be used from threads, tasks, several event loops and forked children. Its blocking verbs also work inside a
running event loop; they block it for as long as the server takes.
"""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Self
from weakref import WeakKeyDictionary, finalize, ref

from backburner.cache.codec import codec_for
from backburner.cache.compression import Compression
from backburner.cache.counters import COUNTED, Counters
from backburner.cache.engine import FOREVER, MISSING, Engine
from backburner.cache.entry import ENCODED, TTL, Duration, Entry, seconds
from backburner.cache.explanation import Explanation
from backburner.cache.flight import Flights
from backburner.cache.keys import Keyspace, check_key, check_tags
from backburner.cache.leases import Leases
from backburner.cache.limiter import Limiter
from backburner.cache.locks import Lock
from backburner.cache.memo import MemoizedCache
from backburner.cache.owed import Owed
from backburner.cache.runtime import AsyncioRuntime, BlockingRuntime, run
from backburner.cache.shape import shape_of
from backburner.cache.stats import Stats
from backburner.cache.stores import MemoryStore, Near, RedisStore, Store, TieredStore
from backburner.cache.stores.repeats import Repeats
from backburner.cache.trouble import TROUBLE, TroubleLog
from backburner.cache.verbs import Verbs
from backburner.errors import CodecError, ConfigError
from backburner.events import BreakerClosed, BreakerOpened, Events, Hit
from backburner.forking import renew_in_forked_child
from backburner.redis.blocking import BlockingClient
from backburner.redis.breaker import Breaker
from backburner.redis.client import connect
from backburner.redis.patient import PatientClient
from backburner.redis.pipelined import PipelinedClient
from backburner.redis.url import ServerURL, for_prefix
from backburner.settings import Settings


def _no_loop() -> None:
    """Stands for a weak reference when there is no loop yet."""


def _lifetime(default_ttl: TTL) -> float:
    try:
        lifetime = FOREVER if default_ttl is None else seconds(default_ttl)
    except ValueError as error:
        raise ConfigError(f"default_ttl: {error}") from None
    if not lifetime > 0:
        raise ConfigError(f"default_ttl={default_ttl!r}: nothing would be kept; write default_ttl=3600")
    return lifetime


class Cache(Verbs):
    """A cache on a Redis or Valkey server, or in memory.

    Args:
        url: ``redis://…`` and the other dialects of `backburner.redis.url`, or ``memory://?policy=lru&max_items=10000``
            with the policies ``lru``, ``s3fifo``, ``lfu`` and ``ttl`` and, if wanted, ``&max_bytes=64MB``.
        prefix: put before every key on the server; `flush` removes the keys that begin with it, and no others.
        default_ttl: lifetime of entries whose ttl is not given; ``None``: for ever.
        serializer: ``json`` keeps types; ``pickle`` takes almost anything, and signs it.
        signing_key: at least 16 bytes, for ``pickle``.
        compression: ``zstd``, ``auto`` (zstd if the package zstandard is installed) or ``None``. Applies on the server,
            not in memory, and only to values above 2 KB that shrink by a tenth or more.
        max_value_bytes: maximal size of a value, encoded, before compression. `put` and `add` refuse a larger one; one
            that was computed is returned but not stored, which is an event, or an error if the cache is strict.
        l1: keep copies of entries in use in this process, and drop them as soon as the server announces a change: a
            write in another process is seen within milliseconds, one's own at once. Needs a thread and a connection.
        l1_items: how many copies to keep at most.
        l1_bytes: how much memory they may take, in bytes or as text: ``"64MB"``, ``"64MiB"``.
        l1_policy: which of them to evict, as in the URL.
        timeout: seconds that connecting, and each reply, may take.
        lease: seconds after which a process that was killed while it computed a value is replaced by another one that
            waits for it. It does not limit callbacks: leases are renewed.
        strict: raise when the server fails, instead of going on without it.
        clock: returns Unix time in seconds; for tests.

    Raises:
        ConfigError: an argument is invalid; the message says which.
    """

    _latest: tuple[Callable[[], object], Engine | None]
    """The event loop that used this cache last, and its engine."""

    def __init__(
        self,
        url: str = "redis://localhost:6379/0",
        *,
        prefix: str = "cache:",
        default_ttl: TTL = 3600,
        serializer: str = "json",
        signing_key: str | bytes | None = None,
        compression: str | None = "auto",
        max_value_bytes: int = 16 * 1024 * 1024,
        l1: bool = True,
        l1_items: int = 10_000,
        l1_bytes: int | str = "64MB",
        l1_policy: str = "s3fifo",
        timeout: float = 0.25,
        lease: float = 10.0,
        strict: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not isinstance(url, str):
            raise ConfigError(
                f"a cache's URL is text, not {type(url).__name__}; of settings: Cache.from_settings(settings)"
            )
        if not prefix:
            raise ConfigError(
                "a cache needs a prefix, or flush() would remove everything on the server; write prefix='cache:'"
            )
        self.prefix = prefix
        self.codec = codec_for(serializer, signing_key.encode() if isinstance(signing_key, str) else signing_key)
        """Turns values into bytes. `codec.register` and `codec.register_model` teach it more types."""
        if max_value_bytes < 1:
            raise ConfigError(f"max_value_bytes={max_value_bytes}: nothing could be stored")
        self._max_value_bytes = max_value_bytes
        self._compression = Compression(compression, max_value_bytes)
        self.events = Events()
        """Subscribe here to follow what happens."""
        self.events.subscribe(TroubleLog(), *TROUBLE)
        self._url = url = for_prefix(url, prefix)
        self._timeout = timeout
        if not lease > 0:
            raise ConfigError(f"lease={lease!r}: seconds that a dead process is waited for; write lease=10")
        self._lease = lease
        self._strict = strict
        self._clock = clock
        self._default_ttl = _lifetime(default_ttl)
        self._counters = Counters()
        self.events.subscribe(self._counters.note, *COUNTED)
        self._owed = Owed()
        self._memory = MemoryStore.from_url(url) if url.startswith("memory://") else None
        self._server = "" if self._memory is not None else ServerURL.parse(url).masked
        self._near = None
        self._repeats = None if l1 else Repeats()
        if l1 and self._memory is None:
            self._near = Near(
                url,
                Keyspace(prefix),
                policy=l1_policy,
                max_items=l1_items,
                max_bytes=l1_bytes,
                timeout=timeout,
            )
            finalize(self, self._near.stop)
        self._local = self._memory if self._near is None else self._near
        if self._local is not None:
            self._local.on_evicted = self._counters.evicted
            self.events.on_listening = self._local.forget_counts
        self._start()
        renew_in_forked_child(self, Cache._after_fork)

    @classmethod
    def from_settings(cls, settings: Settings, *, strict: bool = False) -> Self:
        """The cache that ``CACHE_*`` and ``REDIS_*`` describe."""
        key = settings.cache_signing_key
        return cls(
            settings.cache_url,
            prefix=settings.cache_prefix,
            default_ttl=settings.cache_default_ttl,
            serializer=settings.cache_serializer,
            signing_key=key.get_secret_value() if key else None,
            compression=None if settings.cache_compression == "none" else settings.cache_compression,
            max_value_bytes=settings.cache_max_value_bytes,
            l1=settings.cache_l1,
            l1_items=settings.cache_l1_items,
            l1_bytes=settings.cache_l1_bytes,
            l1_policy=settings.cache_l1_policy,
            timeout=settings.cache_timeout,
            strict=strict,
        )

    def __repr__(self) -> str:
        return f"<Cache {self._server or self._url} prefix={self.prefix!r}>"

    def tags(self, *tags: str) -> "TaggedCache":
        """The same cache, but its writes carry these tags; flushing any one of the tags invalidates them."""
        return TaggedCache(self, check_tags(tags))

    def memo(self) -> MemoizedCache:
        """The same cache, but within one request, or another `memo_scope`, it reads each key once and returns the same
        object from then on. Outside of a scope it behaves like the cache itself."""
        return MemoizedCache(self)

    def lock(self, name: str, ttl: Duration = 30, *, wait: Duration | None = None, owner: str | None = None) -> Lock:
        """A lock that one owner at a time can hold: ``with cache.lock("import", ttl=30): …``.

        Args:
            name: of the lock. Locks and keys do not share their names.
            ttl: how long the lock is held at most, unless it is extended.
            wait: how long to wait for it at most; ``None``: as long as `ttl`.
            owner: the token of another `Lock`, maybe in another process, to extend or release what that one acquired.
        """
        return Lock(self, self.events, name, ttl, wait, owner)

    def limiter(self, name: str, *, fail_open: bool = True) -> Limiter:
        """A rate limiter: ``if not cache.limiter("login").allow(address, "5/minute"): …``.

        Args:
            name: what is limited.
            fail_open: whether to allow everything while the server does not answer, or nothing.
        """
        return Limiter(self, name, fail_open=fail_open)

    def flush(self) -> bool:
        """Remove everything under this cache's prefix, except locks and rate limits.

        Returns whether that was done. If the server is away, this process makes up for it before its next read."""
        return run(self._engine().flush())

    async def aflush(self) -> bool:
        """As `flush`."""
        return await self._aengine().flush()

    def explain(self, key: str) -> Explanation:
        """Explain what a read of this key finds: where the entry lies, its times, tags and size, and the reason for a
        miss. Print it. It changes nothing, and is not counted as a read."""
        return run(self._engine().explain(check_key(key)))

    async def aexplain(self, key: str) -> Explanation:
        """As `explain`."""
        return await self._aengine().explain(check_key(key))

    def stats(self) -> Stats:
        """What this process has done with the cache so far."""
        namespaces = self._counters.snapshot()
        stats = Stats(
            namespaces=namespaces,
            available=not self._breaker.open,
            tracking=self._near.tracking if self._near is not None else None,
            memory_items=len(self._local) if self._local is not None else 0,
            memory_bytes=self._local.bytes if self._local is not None else 0,
        )
        for counts in namespaces.values():
            stats += counts
        return stats

    def namespace(self, key: str) -> str:
        """The namespace under which `stats` counts a key."""
        return self._counters.namespace(key)

    def close(self) -> None:
        """Close the connections of the blocking verbs. The cache can be used again; it reconnects."""
        if self._near is not None:
            self._near.stop()
        run(self._engine().store.close())

    async def aclose(self) -> None:
        """Close all connections: those of the blocking verbs, and those of the running event loop."""
        self._latest = (_no_loop, None)
        engine = self._aengines.pop(asyncio.get_running_loop(), None)
        if engine is not None:
            await engine.store.close()
        self.close()

    def _start(self) -> None:
        self._breaker = Breaker(
            on_open=lambda pause, error: self.events.emit(BreakerOpened(self._server, pause, error)),
            on_close=lambda elapsed: self.events.emit(BreakerClosed(self._server, elapsed)),
        )
        self._flights = Flights()
        self._leases = Leases(self._lease, lambda tokens: run(self._blocking.renew(tokens)))
        self._aengines: WeakKeyDictionary[asyncio.AbstractEventLoop, Engine] = WeakKeyDictionary()
        self._latest = (_no_loop, None)
        self._blocking = self._engine_with(self._store(BlockingClient, connect), BlockingRuntime(self._clock))

    def _after_fork(self) -> None:
        """In a forked child: leave connections, locks and flights to the parent, which still uses them."""
        if self._local is not None:
            self._local.after_fork()
        self._counters.after_fork()
        self._owed.after_fork()
        self._start()

    def _engine(self) -> Engine:
        return self._blocking

    def _aengine(self) -> Engine:
        loop = asyncio.get_running_loop()
        known, engine = self._latest  # looked at first, since mostly it is the only one
        if known() is loop and engine is not None:
            return engine
        engine = self._aengines.get(loop)
        if engine is None:
            engine = self._aengines[loop] = self._engine_with(
                self._store(PipelinedClient, PatientClient), AsyncioRuntime(self._clock)
            )
        self._latest = ref(loop), engine
        return engine

    def _engine_with(self, store: Store, runtime: BlockingRuntime | AsyncioRuntime) -> Engine:
        return Engine(
            store,
            runtime,
            codec=self.codec,
            flights=self._flights,
            owed=self._owed,
            events=self.events,
            counters=self._counters,
            default_ttl=self._default_ttl,
            max_value_bytes=self._max_value_bytes,
            leases=self._leases,
            strict=self._strict,
        )

    def _store(self, connector: Callable[..., Any], patient: Callable[..., Any]) -> Store:
        if self._memory is not None:
            return self._memory
        keyspace, name = Keyspace(self.prefix), "backburner-cache"
        client = connector(self._url, timeout=self._timeout, name=name)
        waiting = partial(patient, self._url, timeout=self._timeout + RedisStore.patience, name=name)
        far = RedisStore(client, waiting, keyspace, self._breaker, self.events, self._compression, self._repeats)
        if self._near is None:
            return far
        return TieredStore(self._near, far, keyspace, self.codec.decode, self._clock)

    def _peek(self, key: str) -> Entry | None:
        """The entry of a key if it is in this process and fresh, as in `_hit`; not counted."""
        # `_hit` repeats this inline: every hit would pay for the call.
        local = self._local
        entry = local.peek(key) if local is not None else None
        if local is None or entry is None or (now := self._clock()) >= entry.refresh_at or now >= entry.fresh_until:
            return None
        if entry.tags and entry.tags_held_at != local.generation and local.flushed(entry):
            return None
        return entry

    def _count_hit(self, key: str, entry: Entry) -> None:
        """Count a hit on an entry that `_peek` returned, and emit its event."""
        if entry.counts is None:
            self._count_first_hit(key, entry)
        else:
            entry.counts.tally += 1.0

    def _count_first_hit(self, key: str, entry: Entry) -> None:
        """Count a hit, and emit its event. If nobody listens, later hits on the entry are counted without checking."""
        counts = entry.counts = self._counters.of(key).tiers["memory"]
        counts.tally += 1.0
        if Hit in self.events.listening:  # looked at last: who subscribes meanwhile has the counts removed
            entry.counts = None
            self.events.emit(Hit(key, "memory"))

    def _hit(self, key: str) -> object:
        """The value of a key if it is in this process and fresh, else `MISSING`. No coroutine, no lock, no I/O."""
        local = self._local
        if local is None:
            return MISSING
        peek, clock = local.peek, self._clock  # as method calls, both would be looked up in the classes first
        try:
            entry = peek(key)
        except TypeError:  # not hashable: check_key has the better message
            return MISSING
        if entry is None or (now := clock()) >= entry.refresh_at or now >= entry.fresh_until:
            return MISSING
        if entry.tags and entry.tags_held_at != local.generation and local.flushed(entry):
            return MISSING
        value = entry.value
        if value is ENCODED and (value := self._blocking.value(key, entry)) is MISSING:
            return MISSING
        try:  # cheaper than checking for None, which it is only at an entry's first hit
            entry.counts.tally += 1.0  # type: ignore[union-attr]
        except AttributeError:
            self._count_first_hit(key, entry)
        else:
            return value  # not below: the jump there would add a tenth to the cost of counting
        return value

    def _hit_as(self, key: str, annotation: Any) -> object:
        """As `_hit`, checked against a type; `MISSING` also if it does not fit, which the full read then reports."""
        shape, entry = shape_of(annotation), self._peek(check_key(key))
        if shape is None or entry is None or (value := self._blocking.value(key, entry)) is MISSING:
            return MISSING
        try:
            value = shape.fit(value)
        except CodecError:
            return MISSING
        self._count_hit(key, entry)
        return value


class TaggedCache(Verbs):
    """A cache whose writes carry tags. Reads need no tags: an entry can be read by its key alone."""

    def __init__(self, cache: Cache, tags: tuple[str, ...]) -> None:
        self._cache = cache
        self._tags = tags

    # Looked up each time, since a forked child gets new engines.
    def _engine(self) -> Engine:
        return self._cache._engine()  # noqa: SLF001  # the other half of the same class

    def _aengine(self) -> Engine:
        return self._cache._aengine()  # noqa: SLF001

    def _hit(self, key: str) -> object:
        return self._cache._hit(key)  # noqa: SLF001

    def _hit_as(self, key: str, annotation: Any) -> object:
        return self._cache._hit_as(key, annotation)  # noqa: SLF001

    def __repr__(self) -> str:
        return f"<TaggedCache {self._tags} of {self._cache!r}>"

    def tags(self, *tags: str) -> "TaggedCache":
        """The same cache, with these tags added."""
        return TaggedCache(self._cache, check_tags((*self._tags, *tags)))

    def flush(self) -> bool:
        """Invalidate every entry that carries any of these tags, at a cost that does not depend on how many there are.

        Returns whether that was done. If the server is away, this process makes up for it before its next read.
        """
        return run(self._engine().flush_tags(self._tags))

    async def aflush(self) -> bool:
        """As `flush`."""
        return await self._aengine().flush_tags(self._tags)
