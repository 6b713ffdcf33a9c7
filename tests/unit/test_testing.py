"""FaultProxy against a server that echoes what it gets, over real sockets."""

import asyncio
import gc
import socket
import socketserver
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import closing

import pytest
from redis import Redis

from backburner.testing import FaultProxy


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        try:
            while chunk := self.request.recv(65536):
                self.server.received += len(chunk)
                self.request.sendall(chunk)
        except OSError:
            pass


class EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    received = 0


@pytest.fixture
def server() -> Iterator[EchoServer]:
    with EchoServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(server: EchoServer) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", server.server_address[1]) as proxy:
        yield proxy


def connect(proxy: FaultProxy, timeout: float = 10) -> closing[socket.socket]:
    return closing(socket.create_connection(("127.0.0.1", proxy.port), timeout=timeout))


def receive(client: socket.socket, size: int) -> bytes:
    """Up to `size` bytes; fewer when the connection ended."""
    received = b""
    while len(received) < size and (chunk := client.recv(size - len(received))):
        received += chunk
    return received


def until(predicate) -> None:
    deadline = time.monotonic() + 10
    while not predicate():
        assert time.monotonic() < deadline, "did not happen within 10 s"
        time.sleep(0.002)


def test_everything_passes_until_told_otherwise(proxy: FaultProxy) -> None:
    message = bytes(range(256)) * 4096
    with connect(proxy) as client:
        threading.Thread(target=client.sendall, args=(message,)).start()
        assert receive(client, len(message)) == message
        assert (proxy.mode, proxy.connections, proxy.open_connections) == ("pass_through", 1, 1)
        assert proxy.request_bytes == proxy.reply_bytes == len(message)
    until(lambda: proxy.open_connections == 0)
    assert proxy.connections == 1


def test_a_client_may_close_its_half_and_still_read_the_reply(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        client.sendall(b"bye")
        client.shutdown(socket.SHUT_WR)
        assert receive(client, 100) == b"bye"


def test_refuse_closes_open_connections_and_refuses_new_ones(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        client.sendall(b"hello")
        assert receive(client, 5) == b"hello"
        proxy.refuse()
        assert receive(client, 1) == b""
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    assert proxy.connections == 1


def test_the_port_is_the_same_after_refusing(proxy: FaultProxy) -> None:
    port = proxy.port
    for _ in range(3):
        proxy.refuse()
        with socket.socket() as rival, pytest.raises(OSError, match="in use"):
            rival.bind(("127.0.0.1", port))
        proxy.pass_through()
        assert proxy.port == port
        with connect(proxy) as client:
            client.sendall(b"back")
            assert receive(client, 4) == b"back"


def test_stall_silences_open_and_new_connections_until_it_ends(proxy: FaultProxy, server: EchoServer) -> None:
    with connect(proxy) as early:
        early.sendall(b"one")
        assert receive(early, 3) == b"one"
        proxy.stall()
        early.sendall(b"two")
        with connect(proxy) as late:
            late.sendall(b"three")
            until(lambda: proxy.request_bytes >= len("onetwo") and proxy.connections == 2)
            for client in (early, late):
                client.settimeout(0.05)
                with pytest.raises(TimeoutError):
                    client.recv(1)
                client.settimeout(10)
            assert server.received == 3
            proxy.pass_through()
            assert receive(early, 3) == b"two"
            assert receive(late, 5) == b"three"


def test_a_reply_on_its_way_is_held_back_by_a_stall(proxy: FaultProxy, server: EchoServer) -> None:
    with connect(proxy) as client:
        proxy.delay(60)
        client.sendall(b"x")
        until(lambda: server.received == 1)
        proxy.stall()
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.recv(1)
        proxy.pass_through()
        client.settimeout(10)
        assert receive(client, 1) == b"x"


def test_delay_makes_replies_late_but_not_later_the_more_there_are(proxy: FaultProxy) -> None:
    proxy.delay(0.1)
    with connect(proxy) as client:
        started = time.monotonic()
        for number in range(20):
            client.sendall(b"%02d" % number)
            until(lambda sent=number: proxy.request_bytes == 2 * (sent + 1))
        assert receive(client, 40) == b"".join(b"%02d" % number for number in range(20))
        took = time.monotonic() - started
    assert 0.1 <= took < 1.5  # one after the other would be 2


def test_ending_a_delay_hands_over_what_waited(proxy: FaultProxy, server: EchoServer) -> None:
    proxy.delay(60)
    with connect(proxy) as client:
        client.sendall(b"x")
        until(lambda: server.received == 1)
        proxy.pass_through()
        assert receive(client, 1) == b"x"


@pytest.mark.parametrize("after", [0, 1, 4, 10])
def test_cut_closes_every_connection_after_that_many_bytes_of_reply(
    proxy: FaultProxy, server: EchoServer, after: int
) -> None:
    with connect(proxy) as early:
        early.sendall(b"0123456789")
        assert receive(early, 10) == b"0123456789"
        proxy.cut(after=after)
        with connect(proxy) as late:
            for client in (early, late):
                client.sendall(b"abcdefghij")
                assert receive(client, 11) == b"abcdefghij"[:after]
    assert server.received == 30
    assert proxy.reply_bytes == 10 + 2 * after


def test_reset_breaks_open_connections_once(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        client.sendall(b"x")
        assert receive(client, 1) == b"x"
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert proxy.mode == "pass_through"
    with connect(proxy) as client:
        client.sendall(b"y")
        assert receive(client, 1) == b"y"


def test_silence_is_for_the_connections_that_are_open_and_for_ever(proxy: FaultProxy, server: EchoServer) -> None:
    with connect(proxy, timeout=0.1) as client:
        client.sendall(b"x")
        assert receive(client, 1) == b"x"
        proxy.silence()
        client.sendall(b"y")
        with pytest.raises(TimeoutError):
            client.recv(1)
        with connect(proxy) as other:
            other.sendall(b"z")
            assert receive(other, 1) == b"z"
        assert server.received == 2
    until(lambda: proxy.open_connections == 0)


def test_reset_works_during_a_stall(proxy: FaultProxy) -> None:
    proxy.stall()
    with connect(proxy) as client:
        until(lambda: proxy.open_connections == 1)
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert (proxy.mode, proxy.open_connections) == ("stall", 0)


def test_a_client_that_resets_takes_the_server_connection_with_it(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        client.sendall(b"x")
        assert receive(client, 1) == b"x"
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    until(lambda: proxy.open_connections == 0)


def test_without_a_server_behind_it_connections_are_closed() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with FaultProxy("127.0.0.1", unused.getsockname()[1]) as proxy, connect(proxy) as client:
            assert receive(client, 1) == b""


def test_closing_ends_connections_and_thread_and_may_be_repeated(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        client.sendall(b"x")
        assert receive(client, 1) == b"x"
        proxy.close()
        assert receive(client, 1) == b""
    proxy.close()
    assert f"fault-proxy-{proxy.port}" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)


@pytest.mark.parametrize("switch", ["delay", "cut"])
def test_a_negative_amount_is_refused(proxy: FaultProxy, switch: str) -> None:
    with pytest.raises(ValueError, match="zero or more"):
        getattr(proxy, switch)(-1)
    assert proxy.mode == "pass_through"


def test_a_redis_client_works_through_it(redis_url: str) -> None:
    target = Redis.from_url(redis_url).connection_pool.connection_kwargs
    with FaultProxy(target["host"], target["port"]) as proxy, Redis.from_url(proxy.url) as client:
        client.set("greeting", "hello")
        assert client.get("greeting") == b"hello"


def test_a_connection_that_is_dropped_before_it_was_looked_at_is_closed(proxy: FaultProxy, server: EchoServer) -> None:
    closed = []

    async def accept_and_drop() -> None:
        reader, writer = await asyncio.open_connection(*server.server_address)
        proxy._accept(reader, writer)
        await proxy._drop_connections(reset=False)
        closed.append(writer.transport.is_closing())
        writer.transport.abort()

    proxy._run(accept_and_drop())
    assert closed == [True]


def test_who_is_just_being_accepted_when_the_proxy_closes_is_closed_too() -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(50):
            proxy = FaultProxy("127.0.0.1", 1)
            clients = [socket.create_connection(("127.0.0.1", proxy.port)) for _ in range(3)]
            proxy.close()
            for client in clients:
                client.close()
        gc.collect()
    assert [str(each.message) for each in said] == []
