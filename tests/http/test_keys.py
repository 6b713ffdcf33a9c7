"""Whose response is whose: no two requests that an application can tell apart share one, whatever their senders do.

The application here answers with all that it sees of the request's target, so that a response that is given for another
one shows by its body.
"""

import ast
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import permutations
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backburner import Cache
from backburner.http import CacheMiddleware, Policy
from backburner.http.request import Request
from tests.http.exchanges import Origin, Reply, ask

Through = Callable[..., CacheMiddleware]


def seen(scope: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    """All that an application may tell requests apart by, but for their headers."""
    host = dict(scope["headers"]).get(b"host", b"").lower()
    parts = (scope["scheme"], host, scope.get("root_path", ""), scope["raw_path"], scope["query_string"])
    return 200, {"cache-control": "max-age=60"}, repr(parts).encode()


@pytest.fixture
def mirror(origin: Origin) -> Origin:
    origin.answer = seen
    return origin


PATHS = [
    *(b"/a", b"/A", b"/a/", b"//a", b"/a//", b"/./a", b"/b/../a", b"/a;b", b"/a;", b"/a&b", b"/a=b", b"/a+b", b"/a b"),
    *(b"/a/b", b"/a%2Fb", b"/a%2fb", b"/a%252Fb", b"/a%25252Fb", b"/a%5Cb", b"/a\\b", b"/a%3Fb", b"/a%3fb", b"/a%23b"),
    *(b"/%61", b"/a%00", b"/a%0A", b"/a%", b"/a%2", b"/a%zz", b"/a#b", b"/a%20b", b"/%2e%2e/a", b"/..%2fa"),
    # The same letter composed, decomposed, in Latin-1; overlong; a ligature that compatibility would take apart.
    *(b"/%C3%A9", b"/e%CC%81", b"/%E9", b"/\xc3\xa9", b"/\xe9", b"/%C0%AF", b"/%E0%80%AF", b"/%EF%AC%81", b"/fi"),
    *(b"/http://shop.example/a", b"/shop.example/a", b"/POST http://shop.example/a", b"/a\x01b", b"/a\x02", b"/a\x01"),
    *(b"/" + b"x" * length for length in (180, 199, 200, 510, 511, 512, 513, 1024, 9000)),
    *(b"/" + b"x" * 600 + end for end in (b"", b"a", b"b", b"#" + b"0" * 32)),
]
QUERIES = [
    *(b"", b"b", b"b=", b"=b", b"b=1", b"b=2", b"B=1", b"b=1&", b"&b=1", b"b=1&&", b"b=1;b=2", b"b=1&b=2", b"b=2&b=1"),
    *(
        b"b=1&c=2",
        b"c=2&b=1",
        b"b=%31",
        b"b=1%26c=2",
        b"b=a+c",
        b"b=a%20c",
        b"b=a%2Bc",
        b"?",
        b"?b",
        b"b?",
        b"/",
        b"b#c",
    ),
    *(b"b=%C3%A9", b"b=e%CC%81", b"b=%00", b"b[]=1", b"b%5B%5D=1", b"utm_source=x&b=1", b"b=" + b"x" * 5000),
]
PLACES = [
    *("shop.example", "shop.example.", "shop.example:8080", "shop.example:443", "shop.example.evil", "evil.example"),
    *("shop", "shop.exampl", "www.shop.example", "127.0.0.1", "[::1]", "[::1]:80", "[::1]:8080", "shop.example:0"),
]


def requests() -> Iterator[dict[str, Any]]:
    """One of each, and neighbours that differ in what comes before or behind."""
    yield from ({"raw_path": path, "target": "/?"} for path in PATHS)
    yield from ({"raw_path": b"/a", "target": f"/a?{query.decode('latin-1')}"} for query in QUERIES[1:])
    yield from ({"raw_path": b"/a", "host": host} for host in PLACES[1:])
    yield from ({"raw_path": b"/a", "scheme": "https", "host": host} for host in PLACES)


@pytest.mark.anyio
async def test_what_an_application_can_tell_apart_is_never_given_for_one_another(
    through: Through, mirror: Origin
) -> None:
    app = through()
    first = [(await ask(app, **request)).body for request in requests()]
    assert [(await ask(app, **request)).body for request in requests()] == first
    # All of them were kept, one for those that differ in nothing but the port that goes without saying.
    told = {ast.literal_eval(body.decode()) for body in first}
    ports = {"http": b":80", "https": b":443"}
    assert len(mirror.calls) == len({(scheme, host.removesuffix(ports[scheme]), *rest) for scheme, host, *rest in told})


TEXT = st.lists(
    st.sampled_from([*"aA/?#%&=;:.@\\ +\x00\x01\xe9", "%2F", "%3F", "shop", ".example", "http://", "//", "x" * 300]),
    max_size=6,
).map(lambda parts: "".join(parts).encode("latin-1"))
HOSTS = st.sampled_from([place.encode() for place in PLACES]) | TEXT.map(lambda text: text or b"a")


@settings(max_examples=300)
@given(*(st.tuples(st.sampled_from(["http", "https"]), HOSTS, TEXT, TEXT) for _ in "ab"))
@example(("http", b"shop.example", b".evil/a", b""), ("http", b"shop.example.evil", b"/a", b""))
@example(("http", b"shop.example", b":8080/a", b""), ("http", b"shop.example:8080", b"/a", b""))
@example(("http", b"shop.example", b"/a?b", b""), ("http", b"shop.example", b"/a", b"b?"))
@example(("http", b"shop.example", b"/a?b", b"c"), ("http", b"shop.example", b"/a", b"b?c"))
def test_two_requests_have_one_key_only_if_they_are_one(
    one: tuple[str, bytes, bytes, bytes], other: tuple[str, bytes, bytes, bytes]
) -> None:
    keys = []
    for scheme, host, path, query in (one, other):
        scope = {"method": "GET", "scheme": scheme, "path": path.decode("latin-1"), "raw_path": path}
        keys.append(Request({**scope, "query_string": query, "headers": [(b"host", host)]}).key)
    if keys[0] and keys[0] == keys[1]:
        assert one[0] == other[0]
        assert one[2:] == other[2:]
        hosts = [host.lower().removesuffix(b":80" if one[0] == "http" else b":443") for host in (one[1], other[1])]
        assert hosts[0] == hosts[1]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "target", [b"http://evil.example/a", b".evil/a", b":8080/a", b"@evil.example/a", b"a", b"*", b""]
)
async def test_a_target_that_is_no_path_goes_to_the_application_each_time(
    through: Through, mirror: Origin, target: bytes
) -> None:
    app = through()
    for _ in range(2):
        await ask(app, raw_path=target)
    assert len(mirror.calls) == 2


@pytest.mark.anyio
async def test_one_host_has_many_spellings_and_one_response(through: Through, mirror: Origin) -> None:
    app = through()
    for host in ("shop.example", "SHOP.example", "shop.example:80"):
        await ask(app, host=host)
    assert len(mirror.calls) == 1


@pytest.mark.anyio
async def test_two_applications_below_different_roots_share_nothing(through: Through, mirror: Origin) -> None:
    """A proxy, or an application that mounts others, may take the root off the path."""
    app = through()

    async def below(root: str, path: str) -> Reply:
        async def rooted(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "root_path": root}, receive, send)

        return await ask(rooted, path)

    told = [(await below(*where)).body for where in (("", "/a"), ("/v1", "/a"), ("/v2", "/a"), ("/v é", "/a"))]
    assert len(set(told)) == 4
    # The same address, whether or not the root was taken off.
    assert (await below("/v1", "/v1/a")).body == (await below("/v1", "/a")).body
    await app.responses.apurge(url="http://shop.example/v1/a")
    calls = len(mirror.calls)
    await below("/v1", "/a")
    assert len(mirror.calls) == calls + 1


@pytest.mark.anyio
@pytest.mark.parametrize(
    "name", ["x-forwarded-host", "x-forwarded-proto", "x-original-url", "x-rewrite-url", "forwarded", "x-host"]
)
async def test_what_an_application_reads_and_names_in_vary_poisons_nobody(
    through: Through, origin: Origin, name: str
) -> None:
    def answer(scope: Any) -> tuple[int, dict[str, str], bytes]:
        return 200, {"cache-control": "max-age=60", "vary": name}, dict(scope["headers"]).get(name.encode(), b"-")

    origin.answer = answer
    app = through()
    assert (await ask(app, **{name.replace("-", "_"): "evil.example"})).text == "evil.example"
    assert (await ask(app)).text == "-"


# Users


def greeting(header: str, **more: str) -> Callable[[Any], tuple[int, dict[str, str], bytes]]:
    """An application that greets by what it reads in a header."""

    def answer(scope: Any) -> tuple[int, dict[str, str], bytes]:
        said = [value for name, value in scope["headers"] if name == header.encode()]
        return 200, {"cache-control": "max-age=60", **more}, repr(said).encode()

    return answer


NEARLY = [
    *(b"session=a", b"session=A", b"session=a ", b"session= a", b"session=a;", b"session=a,b", b"session=a, b"),
    *(b'session="a"', b"session=a; session=b", b"session=b; session=a", b"session=a  b", b"session=a b", b'session="a'),
    *(b"x=1; session=a", b"x=1, session=a", b"session=a,,b", b"", b"session", b"Session=a"),
]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("header", "by"),
    [
        ("cookie", "vary_on"),
        ("authorization", "vary_on"),
        ("x-user", "vary_on"),
        ("cookie", "vary"),
        ("authorization", "vary"),
    ],
)
async def test_users_who_are_nearly_the_same_are_two(cache: Cache, origin: Origin, header: str, by: str) -> None:
    app = CacheMiddleware(origin, cache=cache, policy=Policy(vary_on=[header] if by == "vary_on" else []))
    more = {"vary": header, "cache-control": "public, max-age=60"} if by == "vary" else {}
    origin.answer = greeting(header, **more)
    for shown in NEARLY:
        reply = await ask(app, lines=[(header.encode(), shown)])
        assert reply.text == repr([shown])


@pytest.mark.anyio
@pytest.mark.parametrize("order", list(permutations(range(3))))
async def test_a_cookie_counts_on_whichever_line_it_stands(
    cache: Cache, origin: Origin, order: tuple[int, ...]
) -> None:
    app = CacheMiddleware(origin, cache=cache, policy=Policy(vary_on=["cookie:session"]))
    shown = [[], [(b"cookie", b"session=v")], [(b"cookie", b"a=1"), (b"cookie", b"session=w")]]
    origin.answer = greeting("cookie")
    for number in order:
        reply = await ask(app, lines=shown[number])
        assert reply.text == repr([value for _, value in shown[number]])


@pytest.mark.anyio
async def test_head_and_get_share_one_response_and_no_other_method_does(through: Through, mirror: Origin) -> None:
    app = through(methods={"GET", "HEAD", "QUERY", "POST"})
    get, head = await ask(app), await ask(app, method="HEAD")
    assert (head.body, head["content-length"]) == (b"", get["content-length"])
    assert len(mirror.calls) == 1
    for number, method in enumerate(("QUERY", "POST", "OPTIONS", "TRACE", "get", "GETT"), 2):
        await ask(app, method=method)
        assert len(mirror.calls) == number


@pytest.mark.anyio
async def test_a_url_may_be_emptied_as_frameworks_show_it(through: Through) -> None:
    app = through()
    await ask(app, "/caf\u00e9 1?q=%C3%A9%20", raw_path=b"/caf%C3%A9%201")
    assert await app.responses.aexpire("http://shop.example/caf\u00e9 1?q=\u00e9 ")
    assert await app.responses.apurge(url="http://shop.example/caf\u00e9%201?q=%C3%A9 ")
    assert not await app.responses.apurge(url="http://shop.example/caf%C3%A9%201?q=%C3%A9%20")


def test_long_urls_fill_no_memory() -> None:
    scope = {"type": "http", "method": "GET", "path": "/a", "raw_path": b"/a", "query_string": b"", "headers": []}
    tracemalloc.start()
    try:
        for number in range(200):
            long = b"%d" % number + 50_000 * b"x"
            Request({**scope, "query_string": long, "headers": [(b"host", b"shop.example")]})
            Request({**scope, "headers": [(b"host", long)]})
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1_000_000
