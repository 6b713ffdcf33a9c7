"""Headers that nobody should send, through the real middleware: the application's answer comes through whatever they
hold, nothing is stored that should not be, and no text of a header becomes another header."""

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st

from backburner import Cache, cached_response
from backburner.http import CacheMiddleware, Policy, headers
from tests.http.conftest import Clock
from tests.http.exchanges import Origin, Reply, ask

Pair = tuple[bytes, bytes]
Through = Callable[..., CacheMiddleware]

JUNK = st.binary(max_size=24) | st.text(st.sampled_from('abz-=",;\\ \t019*/W\x00\r\né()'), max_size=40).map(
    lambda text: text.encode("latin-1")
)
DATES = [b"Sun, 06 Nov 2094 08:49:37 GMT", b"Sun, 06 Nov 1994 08:49:37 GMT", b"Thu, 99 Foo 0000 99:99:99 GMT", b"0"]
TAGS = [b'"a"', b'W/"a"', b"*", b'"', b'""', b'"a", W/"b"', b"a"]
DIRECTIVES = [
    *(b"max-age=60", b"max-age=0", b"max-age", b'max-age="60"', b"max-age=-1", b"max-age=1e9", b"max-age=" + b"9" * 30),
    *(b"s-maxage=60", b"no-store", b"no-cache", b'no-cache="x"', b"private", b'private="x-a"', b"public"),
    *(b"must-revalidate", b"must-understand", b"stale-while-revalidate=60", b"stale-if-error=60", b"only-if-cached"),
    *(b"max-stale", b"min-fresh=5", b"max-age=60, no-store", b'x="a, no-store', b"immutable", b"=", b",,"),
]
ASKED = {
    b"host": [b"shop.example", b"[::1]", b"[:::]", b"a b", b"", b"shop.example:99999"],
    b"authorization": [b"Bearer a", b"", b"Basic \xff"],
    b"cookie": [b"a=b", b"", b";;", b"=", b"session"],
    b"cache-control": DIRECTIVES,
    b"pragma": [b"no-cache", b"x"],
    b"if-none-match": TAGS,
    b"if-match": TAGS,
    b"if-modified-since": DATES,
    b"if-unmodified-since": DATES,
    b"range": [
        b"bytes=0-1",
        b"bytes=-1",
        b"bytes=5-",
        b"bytes=9-1",
        b"bytes=0-0,1-1,2-2",
        b"lines=1",
        b"bytes=" + b"0-," * 99,
    ],
    b"if-range": [*TAGS, *DATES],
    b"content-length": [b"0", b"5", b"-1", b"x", b"0, 0"],
    b"transfer-encoding": [b"chunked", b"x"],
    b"upgrade": [b"websocket"],
    b"accept-language": [b"en, de;q=0.5", b'"', b",,,", b"*"],
}
ANSWERED = {
    b"cache-control": DIRECTIVES,
    b"cdn-cache-control": DIRECTIVES,
    b"expires": DATES,
    b"date": DATES,
    b"age": [b"0", b"5", b"-5", b"5, 5", b"9" * 30],
    b"vary": [b"*", b"accept-language", b"Cookie", b"authorization", b",", b"a b", b'"*', b"x" * 300, b"a," * 40],
    b"etag": TAGS,
    b"last-modified": DATES,
    b"set-cookie": [b"a=b", b""],
    b"location": [
        b"/b",
        b"//evil.example",
        b"http://u@shop.example/a",
        b"http://shop.example:/a",
        b"http://[::1",
        b"\xff",
    ],
    b"content-location": [b"?", b"http://shop.example:x/", b"..", b"//", b"http:"],
    b"content-length": [b"0", b"2", b"-1", b"x", b"99999"],
    b"content-type": [b"text/plain", b""],
    b"content-range": [b"bytes 0-1/2", b"x"],
    b"content-encoding": [b"gzip"],
    b"connection": [b"close, etag", b"cache-control"],
    b"cache-groups": [b'"a"', b'"a', b'"\\"", "b"', b"a", b'"' + b"x" * 2000 + b'"', b'""'],
    b"cache-group-invalidation": [b'"a"', b'"', b'""', b'"' + b"x" * 2000 + b'"'],
    b"bad name": [b"x"],
    b"X-Capital": [b"x"],
    b"": [b""],
}


def lines(known: dict[bytes, list[bytes]], most: int, usual: list[list[Pair]]) -> st.SearchStrategy[list[Pair]]:
    """Some headers besides usual ones, without which not much would happen."""
    some = st.one_of([st.tuples(st.just(name), st.sampled_from(values) | JUNK) for name, values in known.items()])
    return st.builds(list.__add__, st.sampled_from(usual), st.lists(some, max_size=most))


ASKING = lines(ASKED, 1, [[], [], [(b"authorization", b"Bearer a")], [(b"cookie", b"a=b")]])
ANSWERING = lines(ANSWERED, 2, [[], *([(b"cache-control", value)] for value in (b"max-age=60", b"public, max-age=60"))])


@dataclass
class Answered:
    """What the application got and said, once."""

    asked: list[Pair]
    said: list[Pair]

    def says(self, *words: bytes) -> bool:
        """Whether a word stands anywhere in what caches are told."""
        return any(word in value.lower() for name, value in self.said if b"cache-control" in name for word in words)


@dataclass
class Talker:
    """An application that answers with the number of the call, and the headers that are its turn."""

    turns: list[tuple[int, list[Pair]]]
    calls: list[Answered] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        status, said = self.turns[len(self.calls) % len(self.turns)]
        self.calls.append(Answered(list(scope["headers"]), said))
        body = b"call %d." % (len(self.calls) - 1)
        await send({"type": "http.response.start", "status": status, "headers": list(said)})
        await send({"type": "http.response.body", "body": body})


POLICIES = [
    Policy(ttl=60, stale_while_revalidate=30, stale_if_error=30, tags=lambda scope: [scope["path"], "all"]),
    Policy.gateway(cache_status="bb", ttl=10),
    Policy(cache_status="bb", methods=frozenset({"GET", "HEAD", "QUERY", "POST"})),
    Policy(ttl=60, ignore_cookies=True, request_directives=True),
]
STATUSES = [*[200] * 8, 203, 204, 206, 301, 304, 404, 500, 503, 599]


@settings(max_examples=200)
@given(
    st.sampled_from(POLICIES),
    st.lists(st.tuples(st.sampled_from(STATUSES), ANSWERING), min_size=1, max_size=3),
    st.lists(
        st.tuples(
            st.sampled_from([*["GET"] * 6, "HEAD", "POST", "PUT", "QUERY"]),
            st.sampled_from([*["/a"] * 6, "/a\n", "/" + "a" * 2000]),
            ASKING,
            st.sampled_from([0, 0, 0, 5, 61]),
        ),
        min_size=3,
        max_size=6,
    ),
)
def test_whatever_is_said_the_answer_comes_and_is_nobody_elses(
    policy: Policy, turns: list[tuple[int, list[Pair]]], visits: list[tuple[str, str, list[Pair], int]]
) -> None:
    asyncio.run(visited(policy, Talker(turns), visits))


async def visited(policy: Policy, origin: Talker, visits: list[tuple[str, str, list[Pair], int]]) -> None:
    clock = Clock()
    app = CacheMiddleware(origin, cache=Cache("memory://", clock=clock), policy=policy)
    for method, target, asked, wait in visits:
        calls = len(origin.calls)
        host = None if any(name == b"host" for name, _ in asked) else "shop.example"
        reply = await ask(app, target, method, host=host, lines=asked)
        if len(origin.calls) == calls:
            check_stored(reply, policy, origin, asked)
        clock.pass_(wait)


def check_stored(reply: Reply, policy: Policy, origin: Talker, asked: list[Pair]) -> None:
    """What was given without a call."""
    assert reply.status in {200, 206, 304, 416, 504, *STATUSES}
    assert reply["set-cookie"] is None
    assert headers.are_clean([(name.encode(), value.encode("latin-1")) for name, value in reply.headers])
    if (made := re.match(rb"call (\d+)\.", reply.body)) is None:
        return
    call = origin.calls[int(made[1])]
    told = [value.strip().lower() for name, value in call.said if name == b"cache-control"]
    if b"no-store" in told and not call.says(b"must-understand") and not targeted(call):
        raise AssertionError("given though it says no-store")
    if b"private" in told and not targeted(call):
        raise AssertionError("given though it is private")
    assert (b"vary", b"*") not in call.said
    secret = {b"authorization"} if policy.ignore_cookies else {b"authorization", b"cookie"}
    if secret & {name for name, _ in (*call.asked, *asked)}:
        assert call.says(b"public", b"s-maxage", b"must-revalidate")


def targeted(call: Answered) -> bool:
    return any(name == b"cdn-cache-control" for name, _ in call.said)


NOT_FRESH = [
    *(b"no-store", b"NO-STORE", b"max-age=60,no-store", b"no-store=1", b'no-store="x"', b"max-age=60, no-store;x"),
    *(b"\tno-store , max-age=60", b"private", b"private=", b'private=""', b"private, max-age=60", b"Private"),
    *(b'max-age=60, x="', b'max-age=60, "no-store', b"max-age=-1", b"max-age=x", b"max-age=60, max-age=0"),
    *(b"max-age=60;no-store", b"s-maxage=0, max-age=60"),
]
BESIDES = [
    *((b"cache-control", b"no-store"), (b"set-cookie", b"a=b"), (b"Set-Cookie", b"a=b"), (b"age", b"60")),
    *(
        (b"vary", b'"accept, *'),
        (b"vary", b"accept language"),
        (b"content-length", b"4, 5"),
        (b"content-length", b"99"),
    ),
    *((b"a b", b"x"), (b"a:b", b"x"), (b"a\r\nb", b"x"), (b"", b"x"), (b"\xe9", b"x")),
]
BROKEN = [b"a\r\nb: c", b"a\nb", b"a\rb", b"a\0b"]
COPIED = [b"etag", b"location", b"cache-groups", b"content-type", b"last-modified", b"link"]
"""Fields that are copied into other messages than the one they came with, or read as something else."""


@pytest.mark.anyio
@pytest.mark.parametrize(
    "said",
    [
        *([(b"cache-control", value)] for value in NOT_FRESH),
        *([(b"cache-control", b"max-age=60"), pair] for pair in BESIDES),
        *([(b"cache-control", b"max-age=60"), (b"x", value)] for value in BROKEN),
        *([(b"cache-control", b"max-age=60"), (name, b'"' + value + b'"')] for name in COPIED for value in BROKEN),
        [(b"cache-control", b'max-age=60, x="'), (b"cache-control", b"no-store"), (b"cache-control", b'"')],
        [(b"cache-control", b"max-age=60"), (b"vary", b"a"), (b"vary", b"*")],
        [(b"Cache-Control", b"no-store")],
        [(b"expires", b"0")],
        [(b"expires", b"Sun, 06 Nov 2094 08:49:37 GMT, 0")],
        [(b"cdn-cache-control", b"no-store"), (b"cache-control", b"max-age=60")],
    ],
)
async def test_a_response_that_is_not_to_be_kept_in_any_reading_is_not(
    through: Through, origin: Origin, said: list[Pair]
) -> None:
    app = through(ttl=60)
    calls = []

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        calls.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": list(said)})
        await send({"type": "http.response.body", "body": b"body"})

    app._app = answer
    for number in (1, 2):
        assert (await ask(app)).body == b"body"
        assert len(calls) == number


@pytest.mark.anyio
@pytest.mark.parametrize("name", [name.decode() for name in ASKED if name != b"host"])
async def test_nothing_that_a_client_says_comes_back_from_the_cache(
    through: Through, origin: Origin, name: str
) -> None:
    origin.headers |= {"etag": '"known"', "vary": "accept-language", "last-modified": "Sun, 06 Nov 1994 08:49:37 GMT"}
    app = through(request_directives=True, ignore_cookies=True)
    await ask(app)
    for said in (b'"injected"', b"bytes=0-1,injected", b"injected\r\nx: y", b"injected=1", b'W/"injected'):
        for method in ("GET", "HEAD"):
            reply = await ask(app, method=method, lines=[(name.encode(), said)])
            assert "injected" not in repr(reply.headers)


@pytest.mark.anyio
async def test_a_clients_entity_tag_matches_only_what_it_is(through: Through, origin: Origin) -> None:
    origin.headers["etag"] = '"a"'
    app = through()
    await ask(app)
    for said, status in (
        ('"a"', 304),
        ('W/"a"', 304),
        ('x"a"', 304),
        ("a", 200),
        ('"a', 200),
        ('"a\r\n"', 200),
        ('"A"', 200),
    ):
        assert (await ask(app, if_none_match=said)).status == status


@pytest.mark.anyio
@pytest.mark.parametrize("host", ["shop.example", "[::1]", "[:::]", "[1.2]", "shop.example:99999"])
@pytest.mark.parametrize("name", ["location", "content-location"])
async def test_a_change_that_leads_nowhere_is_answered_and_empties_what_it_changed(
    through: Through, origin: Origin, host: str, name: str
) -> None:
    app = through()
    for said in [value.decode("latin-1") for value in ANSWERED[b"location"] + ANSWERED[b"content-location"]]:
        origin.headers = {"cache-control": "max-age=60"}
        before = (await ask(app, host=host)).body
        origin.headers = {name: said, "cache-group-invalidation": '"a\r", "'}
        assert (await ask(app, method="PUT", host=host)).status == 200
        origin.headers = {"cache-control": "max-age=60"}
        assert (await ask(app, host=host)).body != before


@pytest.mark.anyio
async def test_a_path_that_makes_no_tag_is_answered_and_not_stored(through: Through, origin: Origin) -> None:
    app = through(tags=lambda scope: [f"page:{scope['path']}"])
    for target in ("/a\nb", "/a\0", "/" + "a" * 2000):
        before = len(origin.calls)
        for method in ("GET", "GET", "POST"):
            assert (await ask(app, target, method)).status == 200
        assert len(origin.calls) == before + 3


@pytest.mark.anyio
async def test_a_response_with_more_groups_than_an_entry_holds_is_answered_and_not_stored(
    through: Through, origin: Origin
) -> None:
    app = through()
    groups = ", ".join(f'"group {number}"' for number in range(5000))
    origin.headers = {"cache-control": "max-age=60", "cache-groups": groups}
    assert [(await ask(app)).text for _ in range(2)] == ["/a 1", "/a 2"]


@pytest.mark.anyio
async def test_a_function_that_gives_what_no_tags_are_is_told(through: Through) -> None:
    for wrong in ("books", [5], [b"x"]):
        with pytest.raises(ValueError, match="tag"):
            await ask(through(tags=lambda _, wrong=wrong: wrong))


@pytest.mark.parametrize(
    "text",
    [
        *(
            '"' + '\\"' * 32_000,
            '"' * 64_001,
            '",' * 32_001,
            '"\\' * 32_000,
            "," * 64_000,
            "a=" * 32_000,
            " \t" * 32_000,
        ),
        *(
            "\\" * 64_001,
            'x="a,' * 12_000,
            "bytes=" + "0-0," * 16_000,
            "W/" * 32_000,
            '("a" ' * 13_000,
            "a;a=" * 16_000,
        ),
    ],
    ids=lambda text: ascii(text[:2] + text[-3:]),
)
def test_no_header_costs_more_time_the_longer_it_gets_than_its_length(text: str) -> None:
    """64 KB is what servers let through; by a product of lengths it would be many seconds."""
    began = time.process_time()
    said = [(name, text.encode("latin-1")) for name in ANSWERED]
    asked = dict.fromkeys(("if_none_match", "range", "if_range", "cookie", "cache_control", "accept_language"), text)

    async def exchange() -> None:
        app = CacheMiddleware(Talker([(200, said)]), cache=Cache("memory://"), policy=Policy.gateway())
        await ask(app, "/a", **asked)
        app._app = Talker(
            [(200, [(b"cache-control", b"max-age=60"), (b"vary", b"accept-language"), (b"etag", b'"a"')])]
        )
        for _ in range(2):
            await ask(app, "/b", **asked)

    asyncio.run(exchange())
    assert time.process_time() - began < 3


@pytest.mark.anyio
async def test_a_route_whose_path_makes_no_tag_answers() -> None:
    app = FastAPI()

    @app.get("/pages/{name}")
    @cached_response(ttl=60, tags=["page:{name}"], cache=Cache("memory://"))
    async def read_page(name: str) -> str:
        return name

    for name in ("a\nb", "\0", "a" * 2000, "{name}", "a:b", "é"):
        for _ in range(2):
            assert (await ask(app, f"/pages/{name}")).status == 200
