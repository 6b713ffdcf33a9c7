"""Hear from the server which keys have changed, so that copies of them in memory can be dropped.

One daemon thread with a connection of its own serves processes without an event loop and with several of them alike.
If the server supports it (RESP3), it announces every change, expiry and eviction (CLIENT TRACKING, BCAST). If it
refuses, a pub/sub channel takes its place, on which only writers that use this library announce changes. They do so
while a key with the channel's name exists, which listeners keep alive. Each connection tries anew which of the two
works.

A thread may have to wait for its turn while another one computes. So event loops listen on their own connections, too
(`PipelinedClient.hear`); but whether all changes are heard, so that copies can be trusted, is known only here.

A connection that is lost, or stays silent for two timeouts although asked for a sign of life, is distrusted: between
`on_lost` and the next `on_trusted`, changes may go unheard, and nothing may be served from memory. What to keep and
what to drop is not decided here.
"""

import logging
from collections.abc import Callable
from threading import Event, Lock, Thread, current_thread
from time import monotonic
from typing import Any, Final, Literal

import redis
import redis.connection

from backburner.redis.client import connect
from backburner.redis.push import PushParser
from backburner.redis.url import ServerURL

__all__ = ["Mode", "Tracking"]

log = logging.getLogger("backburner.cache")

Mode = Literal["tracking", "pubsub", "off"]

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 1.0
ANNOUNCED: Final = 30.0
"""Seconds that writers go on publishing changes after a listener has last asked for it."""
REFUSED_PAUSE: Final = 30.0
"""Seconds until a server that refuses both ways is tried again."""
_STEPS: Final = 6
"""Of connecting and agreeing with a server, about; each takes a timeout at most."""
_RESP3: Final = 3
_SEPARATOR: Final = "\x00"  # in no key and in no tag


class Tracking:
    """Calls back when keys under a prefix change. Callbacks run in its thread and must be quick.

    Args:
        url: any URL that `ServerURL` understands.
        prefix: which keys to hear of.
        channel: the channel for listeners to which the server announces nothing. A message holds the names of changed
            keys, separated by NUL; an empty one means that all may have changed.
        on_invalidated: called with the full names of changed keys, or with ``None``: all may have changed. The
            process's own writes are included.
        on_trusted: called when changes are heard from now on.
        on_lost: called when they no longer are, with the error; also if a callback fails.
        timeout: seconds for each step of connecting and for each reply; also seconds of silence after which the server
            is asked for a sign of life.
        name: the client name, as CLIENT LIST shows it.

    Raises:
        ConfigError: the URL is not that of a server.
    """

    def __init__(
        self,
        url: str,
        prefix: str,
        channel: str,
        *,
        on_invalidated: Callable[[list[bytes] | None], None],
        on_trusted: Callable[[], None] = lambda: None,
        on_lost: Callable[[Exception], None] = lambda _: None,
        timeout: float = 0.25,
        name: str = "backburner-tracking",
    ) -> None:
        server = ServerURL.parse(url)
        self.mode: Mode = "off"
        """How changes are heard, as last agreed with a server; "off" before the first connection."""
        self.trusted = False
        """Whether changes are being heard."""
        self.refusal: str | None = None
        """Why the server refuses client tracking, in its words."""
        self._url = url
        self._server = server.masked
        # A node of a cluster that has lost the prefix to another would be silent for ever, were it not asked about it.
        self._probe = ("PING",) if server.slot is None else ("EXISTS", prefix)
        self._protocol = int(dict(server.options).get("protocol", _RESP3))
        self._prefix = prefix
        self._channel = channel
        self._on_invalidated = on_invalidated
        self._on_trusted = on_trusted
        self._on_lost = on_lost
        self._timeout = timeout
        self._name = name
        self._thread: Thread | None = None
        self._starting = Lock()
        self._connection: Any = None
        self._announced = 0.0
        self._stopping = Event()

    def start(self) -> None:
        """Start listening, unless already started. Returns at once; `on_trusted` is called when it works."""
        if self._thread is not None or not self._starting.acquire(blocking=False):
            return
        stopping = Event()
        try:
            if self._thread is None:  # else another thread was faster
                name = f"backburner-tracking {self._server}"
                thread = Thread(target=self._run, args=(stopping,), name=name, daemon=True)
                thread.start()
                self._thread, self._stopping = thread, stopping
        except RuntimeError as error:  # no room for another thread; the next call tries again
            log.debug("invalidations from %s are not heard: %s", self._server, error)
        except BaseException:
            stopping.set()  # it may have started, and nobody else could stop it
            raise
        finally:
            self._starting.release()

    def stop(self) -> None:
        """Stop listening, and wait for the thread to end. No callback is called after that, `on_lost` included.

        A thread that cannot end (a name lookup takes as long as it takes) is waited for only as long as connecting may
        take otherwise.
        """
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stopping.set()
        self._disconnect()  # wakes the thread
        if thread is not current_thread():
            thread.join(_STEPS * self._timeout)

    def after_fork(self) -> None:
        """In the child: leave thread and connection to the parent. Call `start` to listen here too."""
        self._thread = None
        self._starting = Lock()
        self._disconnect()  # the child's copy only
        self._connection = None
        self.trusted = False
        self.mode = "off"

    def _run(self, stopping: Event) -> None:
        pause, silent = FIRST_PAUSE, False
        client = connect(self._url, timeout=self._timeout, name=self._name)
        while not stopping.is_set():
            try:
                mode = self._agree(client)
                if stopping.is_set():
                    break
                self._trust(mode)
                pause, silent = FIRST_PAUSE, False
                self._listen(stopping, client)
            except Exception as error:  # noqa: BLE001  # whatever it is, changes go unheard
                if stopping.is_set():
                    break
                if isinstance(error, redis.ResponseError):
                    self.mode, pause = "off", REFUSED_PAUSE
                self._distrust(error, silent=silent)
                silent = True
            finally:
                self._disconnect()
            stopping.wait(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
        self.trusted = False
        client.close()

    def _agree(self, client: "redis.Redis") -> Mode:
        """Connect, and find out how the server can announce changes."""
        try:
            self._connect(client, self._protocol)
            self._track()
        except redis.ResponseError as error:  # HELLO or CLIENT was refused
            self.refusal = str(error)
        else:
            self.refusal = None
            return "tracking"
        self._disconnect()
        self._connect(client, 2)
        self._order("SUBSCRIBE", self._channel)
        self._announce(client)
        return "pubsub"

    def _announce(self, client: "redis.Redis") -> None:
        """Ask writers to publish changes. On another connection, since this one may only subscribe now."""
        client.set(self._channel, "", px=int(ANNOUNCED * 1000))
        self._announced = monotonic()

    def _track(self) -> None:
        if (self._connection.handshake_metadata or {}).get(b"proto") != _RESP3:
            # The server would accept the command all the same, and then tell nothing.
            raise redis.ResponseError("the connection speaks RESP2")
        self._order("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", self._prefix)

    def _connect(self, client: "redis.Redis", protocol: int) -> None:
        pool = client.connection_pool
        options = pool.connection_kwargs | {"protocol": protocol, "parser_class": PushParser}
        self._connection = pool.connection_class(**options)
        self._connection.connect()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.disconnect()

    def _order(self, *command: str) -> None:
        self._connection.send_command(*command, check_health=False)
        self._connection.read_response()

    def _listen(self, stopping: Event, client: "redis.Redis") -> None:
        asked = False
        while not stopping.is_set():
            if self.mode == "pubsub" and monotonic() > self._announced + ANNOUNCED / 3:
                self._announce(client)
            try:
                message = self._connection.read_response(disconnect_on_error=False, push_request=True)
            except redis.TimeoutError:
                if asked:
                    raise redis.TimeoutError(f"no sign of life within {self._timeout} s") from None
                self._connection.send_command(*self._probe, check_health=False)
                asked = True
            except redis.ResponseError as error:
                asked = False  # who may not PING gets a sign of life too
                log.debug("cache server %s: %s", self._server, error)
            else:
                asked = False
                self._heard(message)

    def _heard(self, message: Any) -> None:
        match message:
            case [b"invalidate", names]:
                self._on_invalidated(names)
            case [b"message", _, payload]:
                self._on_invalidated(payload.split(_SEPARATOR.encode()) if payload else None)
            case _:
                pass  # the answer to the probe

    def _trust(self, mode: Mode) -> None:
        if mode == "pubsub" and self.mode != mode:
            log.warning(
                "cache server %s refuses client tracking (%s): only changes that this library makes are heard of",
                self._server,
                self.refusal,
            )
        self.mode = mode
        self.trusted = True
        log.info("invalidations from %s are heard (%s)", self._server, mode)
        self._on_trusted()

    def _distrust(self, error: Exception, *, silent: bool) -> None:
        was_trusted, self.trusted = self.trusted, False
        try:
            if was_trusted:
                self._on_lost(error)
        except Exception:
            log.exception("the receiver of lost connections failed")
        level = logging.DEBUG if silent else logging.WARNING
        known = isinstance(error, redis.RedisError | OSError)
        log.log(
            level, "invalidations from %s are not heard: %s", self._server, error, exc_info=None if known else error
        )
