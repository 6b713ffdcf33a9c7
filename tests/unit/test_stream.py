"""What a connection makes of the bytes that arrive, however they are cut; the test is the server."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import redis
import redis.asyncio

from backburner.redis.cluster import meaning_of_errors
from backburner.redis.linked import linked
from backburner.redis.stream import Stream

PING = b"PING\r\n"


class NoHandshake(linked(redis.asyncio.Connection)):  # type: ignore[misc]  # made when this module is
    async def on_connect(self) -> None:
        pass


class Talk:
    """A stream, and the server at its other end, which says what the test has it say."""

    def __init__(self, slot: int | None) -> None:
        self.slot = slot
        self.pushed: list[Any] = []
        self.ends = 0

    async def begin(self) -> None:
        self.accepted: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self.server = await asyncio.start_server(lambda *ends: self.accepted.put_nowait(ends), "127.0.0.1")
        host, port = self.server.sockets[0].getsockname()
        self.connection = NoHandshake(host=host, port=port)
        self.stream = Stream(
            self.connection,
            "the server",
            5.0,
            on_push=self.pushed.append,
            on_end=self._ended,
            meaning=meaning_of_errors(self.slot),
        )
        self.reader, self.writer = await self.accepted.get()

    async def end(self) -> None:
        await self.stream.close()
        assert not self.connection.is_connected
        assert self.ends == 1
        self.writer.close()
        self.server.close()
        await self.server.wait_closed()

    def _ended(self, _: Exception) -> None:
        self.ends += 1

    async def ask(self, count: int) -> "list[asyncio.Future[Any]]":
        """Send so many commands; they have arrived when this returns."""
        futures = [self.stream.send(PING) for _ in range(count)]
        await self.reader.readexactly(len(PING) * count)
        return futures

    def hear(self, data: bytes) -> None:
        self.writer.write(data)


def _talk(main: Callable[[Talk], Any], slot: int | None = None) -> None:
    async def talk() -> None:
        one = Talk(slot)
        await one.begin()
        try:
            async with asyncio.timeout(10):
                await main(one)
        finally:
            await one.end()

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
            await asyncio.sleep(0)  # time to read it
            await asyncio.sleep(0)
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
        talk.hear(b"$1\r\na\r\n" + stray)
        assert await asked[0] == b"a"
        while not talk.ends:  # noqa: ASYNC110  # until the stray reply is read
            await asyncio.sleep(0)
        with pytest.raises(redis.InvalidResponse, match="nothing had asked for"):
            await talk.stream.room()
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

    _talk(main, slot)


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
        large = [b"%d" % number * 4_000_000 for number in range(8)]
        asked = [talk.stream.send(command) for command in large[:4]]
        await asyncio.sleep(0.01)  # they are on their way, and do not get through
        asked += [talk.stream.send(command) for command in large[4:]]
        await asyncio.sleep(0.01)
        assert talk.stream._unsent == large[4:]
        for command in large:
            assert await talk.reader.readexactly(len(command)) == command
        talk.hear(b"+OK\r\n" * 8)
        assert await _outcomes(asked) == [b"OK"] * 8

    _talk(main)


def test_what_comes_before_anything_was_asked_for_is_read() -> None:
    async def main(talk: Talk) -> None:
        talk.hear(b">1\r\n+early\r\n")
        asked = await talk.ask(1)
        talk.hear(b"+OK\r\n")
        assert await asked[0] == b"OK"
        assert talk.pushed == [[b"early"]]

    _talk(main)


def test_a_connection_that_the_server_closes_says_whose_it_was() -> None:
    async def main(talk: Talk) -> None:
        asked = await talk.ask(2)
        talk.hear(b"+OK\r\n")
        talk.writer.close()
        okay, error = await _outcomes(asked)
        assert okay == b"OK"
        assert isinstance(error, redis.ConnectionError)
        assert "connection to the server ended" in str(error)

    _talk(main)
