"""For your own tests: make Redis or Valkey fail on command, and give tests a cache of their own.

``FaultProxy`` stands between a client and a real server and misbehaves when told to::

    with FaultProxy("127.0.0.1", 6379) as proxy:
        cache = Cache(proxy.url)
        proxy.stall()
        assert cache.get("key", default="none") == "none"

It moves bytes and knows no protocol, so it cannot imitate what goes wrong inside a server (full memory, a failover).

``override_default_cache`` replaces the process's default cache, which functions under `@cached` use, by an empty one.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from threading import Thread
from typing import Any, Self

from backburner.cache import Cache
from backburner.cache.default import set_default_cache

__all__ = ["FaultProxy", "override_default_cache"]

_CHUNK = 65536
_COMMAND_TIMEOUT = 10.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of zero seconds: closing sends RST instead of FIN


@contextlib.contextmanager
def override_default_cache(cache: Cache | None = None) -> Iterator[Cache]:
    """Replace the process's default cache within the block: by `cache`, or else by an empty one in memory.

    Not for tests that run concurrently in one process: there is only one default.
    """
    cache = Cache("memory://") if cache is None else cache
    before = set_default_cache(cache)
    try:
        yield cache
    finally:
        set_default_cache(before)


@dataclass(frozen=True, slots=True)
class _Mode:
    name: str
    delay: float = 0.0
    cut_after: int | None = None


_PASS_THROUGH = _Mode("pass_through")
_REFUSE = _Mode("refuse")
_STALL = _Mode("stall")


class _Switch:
    """The mode in force, and the gate that bytes pass."""

    def __init__(self) -> None:
        self.mode = _PASS_THROUGH
        self._switched = asyncio.Event()

    def set(self, mode: _Mode) -> None:
        self.mode = mode
        self._switched.set()
        self._switched = asyncio.Event()

    async def hold(self, arrived: float | None = None) -> None:
        """Wait while stalled and, for a reply that ``arrived`` then, until its delay is over."""
        while True:
            remaining: float | None = None
            if self.mode is not _STALL:
                remaining = 0.0 if arrived is None else arrived + self.mode.delay - _now()
                if remaining <= 0:
                    return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._switched.wait(), remaining)


class FaultProxy:
    """Forward TCP connections to ``host:port`` and make them fail on command.

    It listens on a free port of 127.0.0.1 as soon as it is built, in one daemon thread, and passes everything
    through until it is switched. A switch has happened when its method returns, holds for connections open
    already and for new ones, and lasts until the next switch. Every method may be called from any thread, and
    inside a running event loop.
    """

    port: int
    connections: int
    """How many connections were accepted so far."""
    request_bytes: int
    """How many bytes clients have sent; while stalled this grows although nothing reaches the server."""
    reply_bytes: int
    """How many bytes of reply were handed to clients."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._switch = _Switch()
        self._open: dict[asyncio.Task[None], _Connection] = {}
        self._server: asyncio.Server | None = None
        self._socket = _bind(0)
        self.port = self._socket.getsockname()[1]
        self.connections = self.request_bytes = self.reply_bytes = 0
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name=f"fault-proxy-{self.port}", daemon=True)
        self._thread.start()
        self._run(self._change(_PASS_THROUGH))

    @property
    def url(self) -> str:
        """The proxy's address as a Redis URL, database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def mode(self) -> str:
        """The name of the method that was called last, ``reset`` and ``silence`` excepted."""
        return self._switch.mode.name

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        return len(self._open)

    def pass_through(self) -> None:
        """Behave: forward everything, held back bytes first."""
        self._run(self._change(_PASS_THROUGH))

    def refuse(self) -> None:
        """Be a server that is gone: close open connections, refuse new ones. The port stays reserved."""
        self._run(self._change(_REFUSE))

    def stall(self) -> None:
        """Be a server that hangs: accept connections and requests, answer nothing.

        Nothing reaches the server either. What was held back is forwarded after the next switch.
        """
        self._run(self._change(_STALL))

    def delay(self, seconds: float) -> None:
        """Be far away: hand over every reply ``seconds`` after it came from the server."""
        if seconds < 0:
            raise ValueError(f"delay() needs zero or more seconds, not {seconds!r}")
        self._run(self._change(_Mode("delay", delay=seconds)))

    def cut(self, after: int) -> None:
        """Break in the middle: close each connection once ``after`` more bytes of reply were handed over.

        With ``after=0`` the server gets the request and does the work, and its reply is lost.
        """
        if after < 0:
            raise ValueError(f"cut() needs zero or more bytes, not {after!r}")
        self._run(self._change(_Mode("cut", cut_after=after)))

    def reset(self) -> None:
        """Reset (RST) the connections that are open now, once. How new ones are treated does not change."""
        self._run(self._drop_connections(reset=True))

    def silence(self) -> None:
        """Half-open: of the connections that are open now the other end is gone, and nobody says so. New ones work."""
        self._run(self._silence_connections())

    def close(self) -> None:
        """Close everything and end the thread. Closing twice does nothing."""
        if self._loop.is_closed():
            return
        self._run(self._shut_down())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_COMMAND_TIMEOUT)
        self._loop.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _run(self, command: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(command, self._loop).result(_COMMAND_TIMEOUT)

    async def _change(self, mode: _Mode) -> None:
        self._switch.set(mode)
        for connection in self._open.values():
            connection.delivered = 0
        if mode is _REFUSE:
            await self._stop_listening()
            await self._drop_connections(reset=False)
        elif self._server is None:
            self._server = await asyncio.start_server(self._accept, sock=self._socket)

    async def _stop_listening(self) -> None:
        server, self._server = self._server, None
        if server is None:
            return
        # Whoever is just being accepted gets a transport first: asyncio cannot attach it to a closed server, and would
        # never close it.
        for sock in server.sockets:
            self._loop.remove_reader(sock.fileno())
        await asyncio.sleep(0)
        server.close()
        # Bound but not listening: connections are refused, and nobody else gets the port meanwhile.
        self._socket = _bind(self.port)

    async def _drop_connections(self, *, reset: bool) -> None:
        tasks = list(self._open)
        for task, connection in self._open.items():
            if reset:
                connection.reset_on_close()
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _silence_connections(self) -> None:
        for connection in self._open.values():
            connection.silent = True

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._switch.mode is _REFUSE:  # accepted just before the listening socket was closed
            writer.transport.abort()
            return
        self.connections += 1
        connection = _Connection(self, self._switch, reader, writer)
        task = self._loop.create_task(connection.relay(*self._target))
        self._open[task] = connection
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        # Here and not by the task: one that was cancelled before its first step does nothing.
        self._open.pop(task).abort()

    async def _shut_down(self) -> None:
        await self._change(_REFUSE)
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)
        for _ in range(3):  # connections end, are aborted, and close their sockets, each in a round of the loop
            await asyncio.sleep(0)
        await self._loop.shutdown_default_executor()


class _Connection:
    """One client's connection and its twin to the server."""

    def __init__(
        self,
        proxy: FaultProxy,
        switch: _Switch,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.delivered = 0
        self.silent = False
        self._proxy = proxy
        self._switch = switch
        self._client_reader, self._client = reader, writer
        self._replies: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=1024)

    async def relay(self, host: str, port: int) -> None:
        """Forward until either side ends, or until cancelled."""
        server: asyncio.StreamWriter | None = None
        others: list[asyncio.Task[None]] = []
        try:
            await self._switch.hold()
            reader, server = await asyncio.open_connection(host, port)
            others.append(asyncio.create_task(self._forward_requests(server)))
            others.append(asyncio.create_task(self._receive_replies(reader)))
            await self._deliver_replies()
            self._client.close()
            await self._client.wait_closed()
        except (asyncio.CancelledError, OSError):
            pass  # dropped by command or by either side: daily business here
        finally:
            for task in others:
                task.cancel()
            if server is not None:
                server.transport.abort()
            await asyncio.sleep(0)  # the transport closes its socket in the loop's next round

    def abort(self) -> None:
        """Close the client's side at once."""
        self._client.transport.abort()

    def reset_on_close(self) -> None:
        connected = self._client.get_extra_info("socket")
        with contextlib.suppress(OSError):  # closed this very moment
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)

    async def _forward_requests(self, server: asyncio.StreamWriter) -> None:
        try:
            while chunk := await self._client_reader.read(_CHUNK):
                self._proxy.request_bytes += len(chunk)
                await self._switch.hold()
                if self.silent:
                    continue
                server.write(chunk)
                await server.drain()
            server.write_eof()
        except OSError:
            server.transport.abort()  # which ends the replies too, and so the connection

    async def _receive_replies(self, server: asyncio.StreamReader) -> None:
        chunk = b"-"
        while chunk:
            try:
                chunk = await server.read(_CHUNK)
            except OSError:
                chunk = b""
            await self._replies.put((_now(), chunk))

    async def _deliver_replies(self) -> None:
        while True:
            arrived, chunk = await self._replies.get()
            await self._switch.hold(arrived)
            last = not chunk
            if self.silent:
                if last and self._client_reader.at_eof():
                    return
                continue
            cut_after = self._switch.mode.cut_after
            if cut_after is not None and self.delivered + len(chunk) >= cut_after:
                chunk, last = chunk[: cut_after - self.delivered], True
            self.delivered += len(chunk)
            self._proxy.reply_bytes += len(chunk)
            self._client.write(chunk)
            if last:
                return
            await self._client.drain()


def _now() -> float:
    return asyncio.get_running_loop().time()


def _bind(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    return listener
