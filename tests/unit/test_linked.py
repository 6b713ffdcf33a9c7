"""Connecting and logging in: what redis-py does, on a link of ours, and how failures of it are told."""

import asyncio
import gc
import socket
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
import redis.asyncio

from backburner.redis.linked import linked
from backburner.redis.pipelined import PipelinedClient
from backburner.redis.stream import Stream
from tests.processes import free_port

Streams = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def _run(main: Callable[[PipelinedClient], Awaitable[Any]], url: str, **options: Any) -> Any:
    async def with_client() -> Any:
        client = PipelinedClient(url, **{"timeout": 5.0} | options)
        try:
            async with asyncio.timeout(10):
                return await main(client)
        finally:
            await client.aclose()

    return asyncio.run(with_client())


def _address(url: str) -> str:
    return urlsplit(url).netloc


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("login", ["reader:open-sesame@", ":open-sesame@"], ids=["user", "password only"])
def test_it_logs_in_takes_its_database_and_says_its_name(redis_url: str, login: str, protocol: int) -> None:
    with redis.Redis.from_url(redis_url) as admin:
        admin.acl_setuser("reader", enabled=True, passwords=["+open-sesame"], commands=["+@all"], keys=["*"])
        admin.config_set("requirepass", "open-sesame")
        try:

            async def main(client: PipelinedClient) -> None:
                about = (await client.execute_command("CLIENT", "INFO")).decode()
                for said in ("name=itself ", "db=2 ", f"resp={protocol} ", "lib-name=redis-py"):
                    assert said in about
                assert f"user={'reader' if login.startswith('reader') else 'default'} " in about

            _run(main, f"redis://{login}{_address(redis_url)}/2?protocol={protocol}", name="itself")
        finally:
            admin.config_set("requirepass", "")
            admin.acl_deluser("reader")


def test_a_wrong_password_is_told_to_all_that_wait_and_is_in_no_message(redis_url: str) -> None:
    async def main(client: PipelinedClient) -> list[Any]:
        asked = [client.execute_command("PING") for _ in range(3)]
        return await asyncio.gather(*asked, return_exceptions=True)

    errors = _run(main, f"redis://somebody:hunter2@{_address(redis_url)}/0")
    assert {type(error) for error in errors} == {redis.AuthenticationError}
    assert "hunter2" not in str(errors)


def test_unix_sockets_serve_as_well(redis_url: str, tmp_path: Path) -> None:
    host, _, port = _address(redis_url).rpartition(":")

    over = asyncio.Event()

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            target.write(data)
        target.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(host, port)
        await asyncio.gather(copy(reader, server_writer), copy(server_reader, writer))
        over.set()

    async def main(client: PipelinedClient) -> None:
        async with await asyncio.start_unix_server(relay, tmp_path / "s"):
            assert await client.execute_command("SET", "key", b"x" * 1_000_000) == b"OK"
            assert await client.execute_command("STRLEN", "key") == 1_000_000
            assert "db=1 " in (await client.execute_command("CLIENT", "INFO")).decode()
            await client.aclose()
            await over.wait()

    _run(main, f"unix://{tmp_path / 's'}?db=1")


def test_the_other_end_is_kept_alive(redis_url: str) -> None:
    async def main(client: PipelinedClient) -> None:
        await client.execute_command("PING")
        assert client._stream is not None
        assert client._stream._link is not None
        transport = client._stream._link._transport
        assert transport is not None
        connected = transport.get_extra_info("socket")
        assert connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)

    _run(main, f"{redis_url}?socket_keepalive=yes")


@asynccontextmanager
async def _server_that(does: Streams) -> Any:
    gone = asyncio.Queue[bytes]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await does(reader, writer)
        gone.put_nowait(await reader.read())  # returns when the client has closed
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        yield f"redis://127.0.0.1:{port}/0", gone


def _says(data: bytes) -> Streams:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n")  # of the handshake
        writer.write(data)

    return say


async def _closes(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


async def _hangs_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


@pytest.mark.parametrize(
    ("does", "error", "match"),
    [
        (_hangs_up, redis.ConnectionError, "connection to 127.0.0.1:[0-9]+ ended"),
        (_says(b"-LOADING is being loaded\r\n"), redis.BusyLoadingError, "being loaded"),
        (_says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), redis.RedisError, "Protocol error"),
        (_says(b""), redis.TimeoutError, "did not answer"),
        (_says(b"+OK\r\n" * 9), redis.InvalidResponse, "nothing had asked for"),
    ],
    ids=["hangs up", "loads", "speaks another protocol", "is silent", "says too much"],
)
def test_a_handshake_that_fails_is_told_and_leaves_no_connection(does: Streams, error: type, match: str) -> None:
    async def main() -> None:
        async with _server_that(does) as (url, gone):
            client = PipelinedClient(url, timeout=0.3)
            for _ in range(2):  # and is tried again
                with pytest.raises(error, match=match):
                    await client.execute_command("PING")
                async with asyncio.timeout(5):
                    await gone.get()
            await client.aclose()

    asyncio.run(main())


def test_what_the_system_says_while_logging_in_reaches_who_waits(caplog: pytest.LogCaptureFixture) -> None:
    class NoCredentials(linked(redis.asyncio.Connection)):  # type: ignore[misc]  # made when this runs
        async def on_connect(self) -> None:
            raise FileNotFoundError("/run/secrets/token")

    async def main() -> None:
        async with _server_that(_closes) as (url, gone):
            connection = NoCredentials(host="127.0.0.1", port=urlsplit(url).port)
            stream = Stream(connection, "it", 5.0, on_push=None, on_end=lambda _: None, meaning=lambda error: error)
            with pytest.raises(FileNotFoundError, match="token"):
                await stream.send(b"PING\r\n")
            async with asyncio.timeout(5):
                await gone.get()
            await stream.close()

    asyncio.run(main())
    gc.collect()
    assert not caplog.records, "such as an exception that nobody has retrieved"


def test_a_server_that_is_not_there_is_named() -> None:
    unused_port = free_port()

    async def main(client: PipelinedClient) -> None:
        with pytest.raises(redis.ConnectionError, match=f"no connection to 127.0.0.1:{unused_port}: .*111"):
            await client.execute_command("PING")

    _run(main, f"redis://127.0.0.1:{unused_port}/0")


def test_closing_while_it_connects_leaves_no_connection() -> None:
    async def main() -> None:
        async with _server_that(_says(b"")) as (url, gone):
            client = PipelinedClient(url, timeout=5.0)
            asked = client.execute_command("PING")
            await asyncio.sleep(0.05)
            await client.aclose()
            with pytest.raises(redis.ConnectionError, match="was closed"):
                await asked
            async with asyncio.timeout(5):
                await gone.get()

    asyncio.run(main())
