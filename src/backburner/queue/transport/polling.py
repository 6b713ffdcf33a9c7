"""Polling the connections of channels, in Celery's event loop or without one: those on which messages are claimed, and
those that stock kombu has."""

from contextlib import suppress
from time import monotonic
from typing import Any, Final

import kombu.transport.redis

from backburner.queue.pool import bridge
from backburner.redis.blocking import is_over

stock: Any = kombu.transport.redis  # the stubs leave out most of what is used here

CLAIM: Final = "CLAIM"
"""The kind of connection on which messages are claimed; others are kombu's."""
_BRPOP: Final = "BRPOP"
"""Kombu's kind for what it waits for itself. Beside our queues that is mostly nothing, and the connection rests until a
server or a proxy closes it as idle."""
TICK: Final = 0.5
"""Seconds between two rounds of the event loop if nothing happens."""
_RESTORE: Final = 60.0
"""Seconds between two checks for messages that stock workers have left behind."""


class ChannelPoller(stock.MultiChannelPoller):  # type: ignore[misc]  # the stubs leave it out
    """As kombu's, which it takes the place of in a transport."""

    loop: Any = None
    """Celery's event loop, if there is one."""
    _wakes_at = 0.0
    _restores_at = 0.0

    def run_in(self, loop: Any) -> None:
        """Note that Celery's event loop polls from now on."""
        self.loop = loop
        loop.call_repeatedly(TICK, _nothing)

    def serve(self, channel: Any) -> None:
        """Watch the connection that the channel's claims are made on."""
        self._register(channel, channel.claims, CLAIM)

    def leave(self, channel: Any) -> None:
        """Stop watching it: once the connection is closed, its file descriptor may be reused."""
        sock = self._chan_to_sock.pop((channel, channel.claims, CLAIM), None)
        if sock is not None:
            for fd, whose in list(self._fd_to_chan.items()):
                if whose == (channel, CLAIM):
                    del self._fd_to_chan[fd]
            with suppress(OSError, ValueError, KeyError):  # it is closed already
                self.poller.unregister(sock)

    def on_poll_start(self) -> None:
        super().on_poll_start()
        for channel in list(self._channels):
            channel.tick()

    def on_readable(self, fileno: int) -> Any:
        channel, kind = self._fd_to_chan.get(fileno, (None, None))
        if kind == CLAIM:
            return channel._claimed()  # noqa: SLF001  # handlers are the channel's, as in kombu
        if kind == _BRPOP and channel.rests:
            channel.client.connection.disconnect()
            return None
        return super().on_readable(fileno)

    def _register_BRPOP(self, channel: Any) -> None:  # noqa: N802  # kombu's name
        client = channel.client
        if self._client_registered(channel, client, _BRPOP) and channel.rests and is_over(client.connection):
            client.connection.disconnect()
        super()._register_BRPOP(channel)

    def wake_in(self, seconds: float) -> None:
        """Have the event loop check its channels in so many seconds. It does so every `TICK` seconds anyway."""
        at = monotonic() + seconds
        if self.loop is not None and 0 < seconds < TICK and not monotonic() < self._wakes_at <= at:
            self._wakes_at = at
            self.loop.call_later(seconds, _nothing)

    def get(self, callback: Any, timeout: float | None = None) -> Any:
        self.on_poll_start()
        wait = min((channel.wait() for channel in self._channels), default=TICK)
        return super().get(callback, wait if timeout is None else min(timeout, wait))

    def maybe_restore_messages(self) -> None:
        """Put back what stock workers took and never acknowledged, as each of them does: there may be none left."""
        if monotonic() < self._restores_at:
            return
        self._restores_at = monotonic() + _RESTORE
        for channel in list(self._channels):
            bridge.block(channel.restore_from_stock)

    def maybe_refresh_binding_expiry(self) -> None:
        bridge.block(super().maybe_refresh_binding_expiry)

    def maybe_check_subclient_health(self) -> None:
        bridge.block(super().maybe_check_subclient_health)

    def on_poll_init(self, poller: Any) -> None:
        self.poller = poller


def _nothing() -> None:
    """Wake the event loop."""
