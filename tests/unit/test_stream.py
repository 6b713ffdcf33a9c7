"""What a connection makes of the bytes that arrive, however they are cut; the test is the server."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import redis

from backburner.redis import stream
from backburner.redis.cluster import error_of
from backburner.redis.pipelined import PipelinedClient
from backburner.redis.stream import Stream


class Wire:
    """In place of redis-py's connection, its writer and its transport."""

    def __init__(self) -> None:
        self._reader = asyncio.StreamReader()
        self._writer = self.transport = self
        self.written: list[bytes] = []
        self.closed = False

    async def connect(self) -> None: ...

    async def disconnect(self, *, nowait: bool) -> None:
        assert nowait
        self.closed = True

    def set_protocol(self, protocol: Stream) -> None:
        self.protocol = protocol

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def get_extra_info(self, name: str) -> Any:
        """It is no TLS."""


class Talk:
    """A stream, and the wire that it is on."""

    def __init__(self, slot: int | None = None) -> None:
        self.wire = Wire()
        self.pushed: list[Any] = []
        self.ends = 0
        self.stream = Stream(
            self.wire, "the server", 5.0, on_push=self.pushed.append, on_end=self._ended, error_of=error_of(slot)
        )

    def _ended(self) -> None:
        self.ends += 1

    async def ask(self, count: int) -> "list[asyncio.Future[Any]]":
        """Send so many commands; they have left when this returns."""
        futures = [self.stream.send(b"PING\r\n") for _ in range(count)]
        while sum(map(len, self.wire.written)) < len(b"PING\r\n") * count:  # noqa: ASYNC110 - at the end of the tick
            await asyncio.sleep(0)
        return futures

    def hear(self, data: bytes) -> None:
        protocol = self.wire.protocol
        buffer = protocol.get_buffer(-1)
        for begin in range(0, len(data), len(buffer)):
            piece = data[begin : begin + len(buffer)]
            buffer[: len(piece)] = piece
            protocol.buffer_updated(len(piece))


def _talk(main: Callable[[Talk], Any], **options: Any) -> None:
    async def talk() -> None:
        one = Talk(**options)
        try:
            await main(one)
        finally:
            await one.stream.close()
        assert one.wire.closed
        assert one.ends == 1

    asyncio.run(talk())


async def _outcomes(futures: "list[asyncio.Future[Any]]") -> list[Any]:
    return await asyncio.gather(*futures, return_exceptions=True)


MANY = (
    b"$3\r\none\r\n:2\r\n*2\r\n$1\r\na\r\n*1\r\n:3\r\n_\r\n-WRONGTYPE no\r\n"
    b">2\r\n+invalidate\r\n*1\r\n$1\r\nk\r\n+OK\r\n$0\r\n\r\n"
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, len(MANY)])
def test_replies_of_all_kinds_find_their_callers_however_they_are_cut(size: int) -> None:
    async def main(talk: Talk) -> None:
        asked = await talk.ask(7)
        for first in range(0, len(MANY), size):
            talk.hear(MANY[first : first + size])
        one, two, nested, nothing, error, okay, empty = await _outcomes(asked)
        assert [one, two, nested, nothing, okay, empty] == [b"one", 2, [b"a", [3]], None, b"OK", b""]
        assert isinstance(error, redis.ResponseError)
        assert talk.pushed == [[b"invalidate", [b"k"]]]
        assert talk.stream.pending == 0

    _talk(main)


def test_thousands_of_replies_in_one_read_with_an_error_among_them() -> None:
    async def main(talk: Talk) -> None:
        asked = await talk.ask(5_000)
        replies = [b"$4\r\n%04d\r\n" % number for number in range(5_000)]
        replies[1_234] = b"-ERR not this one\r\n"
        talk.hear(b"".join(replies))
        got = await _outcomes(asked)
        assert str(got.pop(1_234)) == "not this one"
        assert got == [b"%04d" % number for number in range(5_000) if number != 1_234]
        assert talk.ends == 0

    _talk(main)


def test_replies_to_cancelled_callers_are_dropped_and_leave_the_others_theirs() -> None:
    async def main(talk: Talk) -> None:
        asked = await talk.ask(6)
        for number in (0, 2, 3):
            asked[number].cancel()
        talk.hear(b"$1\r\na\r\n:1\r\n-ERR c\r\n$1\r\nd\r\n$1\r\ne\r\n*0\r\n")
        assert [await asked[number] for number in (1, 4, 5)] == [1, b"e", []]

    _talk(main)


@pytest.mark.parametrize("stray", [b"$1\r\nb\r\n", b":1\r\n", b"-ERR no\r\n"], ids=["bytes", "number", "error"])
def test_a_reply_that_nobody_asked_for_ends_the_connection_and_is_given_to_nobody(stray: bytes) -> None:
    async def main(talk: Talk) -> None:
        asked = await talk.ask(1)
        unsent = talk.stream.send(b"GET\r\n")
        talk.hear(b"$1\r\na\r\n" + stray)
        assert await asked[0] == b"a"
        with pytest.raises(redis.InvalidResponse, match="nothing had asked for"):
            await unsent
        assert talk.ends == 1
        talk.hear(b"$1\r\nc\r\n")  # what still arrives is nobody's

    _talk(main)


@pytest.mark.parametrize(
    ("reply", "slot", "match"),
    [
        (b"-LOADING the dataset is being loaded\r\n", None, "being loaded"),
        (b"-MOVED 7 127.0.0.1:7001\r\n", 7, "slot 7 has moved"),
        (b"?what\r\n", None, "Protocol error"),
    ],
    ids=["loading", "moved", "no protocol"],
)
def test_what_ends_a_connection_fails_all_that_wait_for_it(reply: bytes, slot: int | None, match: str) -> None:
    async def main(talk: Talk) -> None:
        first, *others = await talk.ask(4)
        talk.hear(b"$1\r\na\r\n" + reply + b"$1\r\nb\r\n")
        assert await first == b"a"
        errors = await _outcomes(others)
        assert all(isinstance(error, redis.ConnectionError | redis.InvalidResponse) for error in errors)
        assert match in str(errors[0])
        assert len({id(error) for error in errors}) == 3

    _talk(main, slot=slot)


def test_a_slot_that_moved_is_an_ordinary_error_where_no_slot_is_kept() -> None:
    async def main(talk: Talk) -> None:
        asked = await talk.ask(2)
        talk.hear(b"-MOVED 7 127.0.0.1:7001\r\n+OK\r\n")
        error, okay = await _outcomes(asked)
        assert isinstance(error, redis.exceptions.MovedError)
        assert okay == b"OK"

    _talk(main)


def test_a_replica_tells_the_caller_so_and_the_others_that_the_connection_is_over() -> None:
    async def main(talk: Talk) -> None:
        asked = await talk.ask(2)
        talk.hear(b"-READONLY You can't write against a read only replica.\r\n")
        first, second = await _outcomes(asked)
        assert isinstance(first, redis.exceptions.ReadOnlyError)
        assert isinstance(second, redis.ConnectionError)
        assert "no longer a master" in str(second)

    _talk(main)


def test_what_the_server_does_not_read_yet_is_held() -> None:
    async def main(talk: Talk) -> None:
        await talk.ask(1)
        talk.stream.pause_writing()
        held = [talk.stream.send(b"HELD\r\n") for _ in range(3)]
        await asyncio.sleep(0)
        assert talk.wire.written == [b"PING\r\n"]
        talk.stream.resume_writing()
        assert talk.wire.written == [b"PING\r\n", b"HELD\r\n" * 3]
        talk.hear(b"+OK\r\n" * 4)
        assert await _outcomes(held) == [b"OK"] * 3

    _talk(main)


def test_what_had_come_before_the_transport_was_taken_over_is_read() -> None:
    async def main(talk: Talk) -> None:
        talk.wire._reader.feed_data(b">1\r\n+early\r\n")
        asked = await talk.ask(1)
        talk.hear(b"+OK\r\n")
        assert await asked[0] == b"OK"
        assert talk.pushed == [[b"early"]]

    _talk(main)


@pytest.fixture
def without_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    """A redis-py that keeps it where it is not looked for, and callers who must wait for their turn."""
    monkeypatch.setattr(stream, "MAX_PENDING", 10)
    monkeypatch.setattr(stream, "_transport_of", lambda _: None)


@pytest.mark.usefixtures("without_transport")
def test_without_the_transport_it_goes_on_by_what_redis_py_makes_public(redis_url: str) -> None:
    pushed: list[Any] = []

    async def main() -> None:
        client = PipelinedClient(redis_url, timeout=5.0, on_push=pushed.append)
        await client.execute_command("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "p:")
        asked = [client.execute_command("SET", f"p:{number}", b"x" * 50_000) for number in range(100)]
        asked += [client.execute_command("INCR", "p:1"), client.execute_command("ECHO", "still in step")]
        *stored, refused, echo = await asyncio.gather(*asked, return_exceptions=True)
        assert stored == [b"OK"] * 100
        assert isinstance(refused, redis.ResponseError)
        assert echo == b"still in step"
        with redis.Redis.from_url(redis_url) as other:
            other.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        async with asyncio.timeout(5):
            while client._stream is not None:  # noqa: ASYNC110 - until the loss is noticed
                await asyncio.sleep(0.01)
        assert await client.execute_command("ECHO", "again") == b"again"
        await client.aclose()

    asyncio.run(main())
    assert {name for _, names in pushed for name in names} >= {b"p:0", b"p:99"}
