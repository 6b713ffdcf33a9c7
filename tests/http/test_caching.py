"""What clients get through the cache, and how often the application is asked: in memory, on a server, with copies."""

import asyncio
import gzip
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest
import redis
from starlette.middleware.gzip import GZipMiddleware

from backburner import Cache
from backburner.errors import ConfigError
from backburner.events import Event, Hit, RefreshFailed
from backburner.http import CacheMiddleware, Policy
from tests.http.conftest import Clock
from tests.http.exchanges import Origin, Reply, ask, respond

pytestmark = pytest.mark.anyio
Through = Callable[..., CacheMiddleware]


async def test_a_fresh_response_is_served_without_asking_the_application(
    through: Through, origin: Origin, clock: Clock
) -> None:
    app = through()
    first = await ask(app)
    clock.pass_(20)
    again = await ask(app)
    assert (first.body, again.body) == (b"/a 1", b"/a 1")
    assert (first["age"], again["age"]) == (None, "20")
    assert first["etag"] == again["etag"]
    assert first["cache-status"] == "bb; fwd=uri-miss; fwd-status=200; stored"
    assert again["cache-status"] == "bb; hit; ttl=40"
    clock.pass_(41)
    assert (await ask(app)).body == b"/a 2"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"cache-control": "no-store, max-age=60"},
        {"cache-control": "private, max-age=60"},
        {"cache-control": "max-age=0"},
        {"cache-control": "max-age=60", "vary": "accept, *"},
        {"cache-control": "max-age=60", "set-cookie": "a=b"},
        {"cache-control": "max-age=60", "content-length": "99"},
        {"cache-control": "max-age=60", "age": "61"},
        {"cache-control": "max-age=60, must-understand", "x-status": "299"},
        {"cache-control": "max-age=60", "content-range": "bytes 0-3/9", "x-status": "206"},
        {"expires": "0"},
    ],
)
async def test_what_must_not_be_stored_reaches_each_client_from_the_application(
    through: Through, origin: Origin, headers: dict[str, str]
) -> None:
    origin.headers = headers
    origin.status = int(headers.get("x-status", 200))
    app = through()
    assert [(await ask(app)).body for _ in range(3)] == [b"/a 1", b"/a 2", b"/a 3"]


async def test_a_rules_ttl_is_for_responses_that_say_nothing(through: Through, origin: Origin) -> None:
    app = through(ttl="1m")
    origin.headers = {}
    assert [(await ask(app)).text for _ in range(2)] == ["/a 1", "/a 1"]
    origin.headers = {"cache-control": "no-store"}
    assert [(await ask(app, "/b")).text for _ in range(2)] == ["/b 2", "/b 3"]


async def test_a_field_for_this_cache_wins_over_cache_control(through: Through, origin: Origin, clock: Clock) -> None:
    origin.headers = {"cache-control": "no-store", "cdn-cache-control": "max-age=60;x=1"}
    app = through()
    await ask(app)
    assert (await ask(app)).text == "/a 1"


async def test_variants_are_told_apart_by_what_vary_names(through: Through, origin: Origin) -> None:
    origin.headers = {"cache-control": "max-age=60", "vary": "Accept-Language"}
    app = through()
    asked = ["en, de", "fr", " de , EN", "fr", None, ""]
    told = [await ask(app, **({} if value is None else {"accept_language": value})) for value in asked]
    assert [reply.text for reply in told] == ["/a 1", "/a 2", "/a 1", "/a 2", "/a 3", "/a 4"]


async def test_a_response_that_varies_by_more_than_before_is_told_apart_by_all_of_it(
    through: Through, origin: Origin
) -> None:
    origin.headers = {"cache-control": "max-age=60", "vary": "a"}
    app = through()
    await ask(app, a="1", b="1")
    origin.headers["vary"] = "b"
    await ask(app, a="2", b="1")  # found to vary by b too
    await ask(app, a="2", b="1")
    assert (await ask(app, a="2", b="1")).text == "/a 3"
    assert (await ask(app, a="2", b="2")).text == "/a 4"


@pytest.mark.parametrize("shown", [{"authorization": "Bearer alice"}, {"cookie": "session=alice"}])
async def test_nobody_gets_what_another_one_was_given_for_showing_credentials(
    through: Through, origin: Origin, shown: dict[str, str]
) -> None:
    app = through(ttl=60)
    assert (await ask(app, **shown)).text == "/a 1"
    assert (await ask(app)).text == "/a 2"
    assert (await ask(app)).text == "/a 2"
    assert (await ask(app, **shown)).text == "/a 3"


@pytest.mark.parametrize("shown", [{"authorization": "Bearer alice"}, {"cookie": "session=alice"}])
async def test_must_revalidate_shares_what_was_made_for_a_password_and_not_what_was_made_for_a_cookie(
    through: Through, origin: Origin, shown: dict[str, str]
) -> None:
    origin.headers = {"cache-control": "max-age=60, must-revalidate"}
    app = through()
    await ask(app, **shown)
    assert (await ask(app)).text == ("/a 1" if "authorization" in shown else "/a 2")


@pytest.mark.parametrize("shown", [{"authorization": "Bearer alice"}, {"cookie": "session=alice"}])
async def test_a_response_that_says_so_is_for_everybody(
    through: Through, origin: Origin, shown: dict[str, str]
) -> None:
    origin.headers = {"cache-control": "public, max-age=60", "set-cookie": "session=alice"}
    app = through()
    first = await ask(app, **shown)
    assert first["set-cookie"] == "session=alice"
    for reply in (await ask(app), await ask(app, **shown)):
        assert reply.text == "/a 1"
        assert reply["set-cookie"] is None


@pytest.mark.parametrize(
    "vary_on", [["Authorization"], lambda scope: str(dict(scope["headers"]).get(b"authorization"))]
)
async def test_with_an_identity_each_user_has_responses_of_their_own(
    through: Through, origin: Origin, vary_on: Any
) -> None:
    app = through(vary_on=vary_on)
    told = [(await ask(app, authorization=name)).text for name in ("alice", "bob", "alice", "bob")]
    assert told == ["/a 1", "/a 2", "/a 1", "/a 2"]
    await app.responses.apurge(url="http://shop.example/a")
    assert (await ask(app, authorization="alice")).text == "/a 3"


async def test_no_two_targets_share_a_response(through: Through, origin: Origin) -> None:
    app = through()
    targets: list[dict[str, Any]] = [
        {"target": "/a"},
        {"target": "/A"},
        {"target": "/a/"},
        {"target": "/a?x=1"},
        {"target": "/a?x=1&x=2"},
        {"target": "/a?x=2&x=1"},
        {"target": "/a?x=1&x=2&"},
        {"target": "/a?X=1"},
        {"target": "/a?x=%31"},
        {"target": "/a", "host": "other.example"},
        {"target": "/a", "host": "shop.example:8080"},
        {"target": "/a", "scheme": "https"},
        {"target": "/a/b"},
        {"target": "/a/b", "raw_path": b"/a%2Fb"},
        {"target": "/a?", "raw_path": b"/a%3F"},
        {"target": "/" + "x" * 2000},
        {"target": "/" + "x" * 2001},
    ]
    replies = [(await ask(app, **target)).body for target in targets]
    assert len(origin.calls) == len(targets)
    assert [(await ask(app, **target)).body for target in targets] == replies
    assert len(origin.calls) == len(targets)


async def test_one_target_has_one_response_however_its_host_is_written(through: Through, origin: Origin) -> None:
    app = through()
    await ask(app)
    await ask(app, host="SHOP.Example")
    await ask(app, host="shop.example:80")
    assert len(origin.calls) == 1


@pytest.mark.parametrize(
    "host", [None, "", "shop.example/a", "a b", "x@shop.example", "shop.example, evil.example", "shop.example?x", "é"]
)
async def test_a_host_that_makes_no_sense_has_no_stored_response(
    through: Through, origin: Origin, host: str | None
) -> None:
    app = through()
    await ask(app, host=host)
    await ask(app, host=host)
    assert len(origin.calls) == 2


async def test_a_second_host_line_is_no_way_to_poison_the_first(through: Through, origin: Origin) -> None:
    app = through()
    await ask(app, lines=[(b"host", b"evil.example")])
    assert (await ask(app)).text == "/a 2"


@pytest.mark.parametrize(
    "ask_for", [{"cache_control": "no-cache"}, {"cache_control": "max-age=0"}, {"pragma": "no-cache"}]
)
async def test_clients_make_the_application_work_only_where_that_is_allowed(
    through: Through, origin: Origin, ask_for: dict[str, str]
) -> None:
    app = through()
    await ask(app)
    assert (await ask(app, **ask_for)).text == "/a 1"
    assert (await ask(through(request_directives=True), **ask_for)).text == "/a 2"


async def test_a_body_where_none_is_expected_is_the_applications_business(through: Through, origin: Origin) -> None:
    app = through()
    await ask(app, body=b"evil")
    assert (await ask(app)).text == "/a 2"


async def test_what_is_compressed_behind_the_cache_is_stored_once_for_each_encoding(
    cache: Cache, origin: Origin
) -> None:
    origin.body = b"Emma " * 500
    app = CacheMiddleware(GZipMiddleware(origin), cache=cache, policy=Policy(cache_status="bb"))
    plain = await ask(app)
    for asked in ("gzip", "gzip, br", "br,gzip", "br , gzip"):
        zipped = await ask(app, accept_encoding=asked)
        assert zipped["content-encoding"] == "gzip"
        assert gzip.decompress(zipped.body) == plain.body == origin.body
        assert zipped["etag"] != plain["etag"]
    assert (await ask(app, accept_encoding="identity")).body == plain.body
    again = [await ask(app), await ask(app, accept_encoding="gzip"), await ask(app, accept_encoding="br, gzip")]
    assert [reply.body for reply in again] == [plain.body, zipped.body, zipped.body]
    assert all("hit" in (reply["cache-status"] or "") for reply in again)
    assert len(origin.calls) == 4  # nothing asked for, `gzip`, both of them in any order, and `identity`
    condition = {"if_none_match": zipped["etag"] or ""}
    assert (await ask(app, accept_encoding="gzip", **condition)).status == 304
    assert (await ask(app, **condition)).status == 200  # of another encoding


async def test_conditions_are_answered_from_what_is_stored(through: Through, origin: Origin) -> None:
    origin.headers = {
        "cache-control": "max-age=60",
        "content-type": "text/plain",
        "vary": "accept",
        "last-modified": "Sun, 06 Nov 1994 08:49:37 GMT",
        "x-any": "1",
    }
    app = through()
    tag = (await ask(app))["etag"]
    assert tag is not None
    for condition in ({"if_none_match": f'"x", W/{tag}'}, {"if_modified_since": "Sun, 06 Nov 1994 08:49:37 GMT"}):
        reply = await ask(app, **condition)
        assert (reply.status, reply.body) == (304, b"")
        assert [reply[name] for name in ("etag", "cache-control", "vary", "x-any", "content-type")] == [
            *(tag, "max-age=60", "accept", "1", None)
        ]
    changed = {"if_none_match": '"x"', "if_modified_since": "Sun, 06 Nov 1994 08:49:37 GMT"}
    assert (await ask(app, **changed)).status == 200
    assert (await ask(app, if_modified_since="Sun, 06 Nov 1994 08:49:36 GMT")).status == 200
    assert len(origin.calls) == 1


async def test_a_condition_finds_its_answer_also_where_nothing_is_stored_yet(through: Through, origin: Origin) -> None:
    origin.headers = {"cache-control": "max-age=60", "etag": '"1"'}
    app = through()
    assert (await ask(app, if_none_match='"1"')).status == 304
    assert origin.asked("if-none-match") is None  # so that there was something to store
    assert (await ask(app)).text == "/a 1"


async def test_a_condition_reaches_the_application_where_nothing_is_ever_stored(
    through: Through, origin: Origin
) -> None:
    origin.headers = {}
    app = through()
    await ask(app)
    await ask(app, if_none_match='"1"')
    assert origin.asked("if-none-match") == '"1"'


async def test_an_entity_tag_is_of_the_content_and_so_the_same_everywhere(through: Through, origin: Origin) -> None:
    origin.body = b"same"
    app = through()
    assert (await ask(app, "/a"))["etag"] == (await ask(app, "/b"))["etag"] == '"ec4bcbe6580eff11377e307f"'


async def test_a_response_without_content_gets_no_length(through: Through, origin: Origin) -> None:
    origin.status, origin.body = 204, b""
    app = through()
    for _ in range(2):
        reply = await ask(app)
        assert (reply.status, reply["content-length"], reply.body) == (204, None, b"")
    assert len(origin.calls) == 1


async def test_ranges_are_cut_from_a_stored_whole(through: Through, origin: Origin) -> None:
    origin.body = b"0123456789"
    origin.headers = {"cache-control": "max-age=60", "content-type": "text/plain"}
    app = through()
    tag = (await ask(app))["etag"]
    part = await ask(app, range="bytes=2-4")
    assert (part.status, part.body) == (206, b"234")
    assert (part["content-range"], part["content-length"], part["etag"]) == ("bytes 2-4/10", "3", tag)
    beyond = await ask(app, range="bytes=10-")
    assert (beyond.status, beyond["content-range"], beyond.body) == (416, "bytes */10", b"")
    several = await ask(app, range="bytes=0-1,8-")
    boundary = (several["content-type"] or "").partition("boundary=")[2]
    assert several.status == 206
    assert several.body.count(f"--{boundary}".encode()) == 3
    assert b"content-range: bytes 8-9/10\r\n\r\n89\r\n" in several.body
    assert (await ask(app, range="bytes=0-1", if_range='"other"')).status == 200
    assert (await ask(app, range="bytes=0-1", if_range=tag or "")).status == 206
    assert (await ask(app, range="lines=0-1")).status == 200
    assert len(origin.calls) == 1


@pytest.mark.parametrize(("seconds", "status"), [(0, 200), (2, 206), (60, 206)])
async def test_a_date_says_that_the_content_is_the_same_only_if_it_cannot_have_changed_twice_within_a_second(
    through: Through, origin: Origin, clock: Clock, seconds: int, status: int
) -> None:
    app = through()
    modified = formatdate(clock.now - seconds, usegmt=True)
    origin.headers = {"cache-control": "max-age=60", "last-modified": modified}
    await ask(app)
    assert (await ask(app, range="bytes=0-1", if_range=modified)).status == status
    assert (await ask(app, range="bytes=0-1", if_range=formatdate(clock.now - 3600, usegmt=True))).status == 200


async def test_head_is_answered_from_a_stored_get_and_asks_as_head_else(through: Through, origin: Origin) -> None:
    app = through()
    await ask(app, method="HEAD")
    assert origin.calls[-1]["method"] == "HEAD"
    await ask(app)
    head = await ask(app, method="HEAD")
    assert (head.body, head["content-length"], len(origin.calls)) == (b"", "4", 2)


async def test_the_application_is_asked_whether_a_stale_response_still_holds(
    through: Through, origin: Origin, clock: Clock
) -> None:
    origin.headers = {"cache-control": "max-age=60", "etag": '"1"', "x-any": "old", "x-other": "stays"}
    app = through()
    await ask(app)
    clock.pass_(61)
    origin.answer = lambda scope: (304, {"etag": '"1"', "x-any": "new", "cache-control": "max-age=100"}, b"")
    reply = await ask(app)
    assert origin.asked("if-none-match") == '"1"'
    assert (reply.status, reply.text, reply["x-any"], reply["x-other"]) == (200, "/a 1", "new", "stays")
    assert reply["cache-status"] == "bb; fwd=stale; fwd-status=304; stored"
    clock.pass_(99)
    assert (await ask(app))["x-any"] == "new"
    assert len(origin.calls) == 2


async def test_a_range_of_a_stale_response_is_cut_from_the_whole_that_is_asked_about(
    through: Through, origin: Origin, clock: Clock
) -> None:
    origin.headers = {"cache-control": "max-age=60", "etag": '"1"'}
    app = through()
    await ask(app)
    clock.pass_(61)
    origin.answer = lambda scope: (304, {"cache-control": "max-age=60"}, b"")
    part = await ask(app, range="bytes=0-1")
    assert (part.status, part.body) == (206, b"/a")
    assert origin.asked("range") is None


async def test_a_range_of_what_is_not_stored_is_the_applications_to_give(through: Through, origin: Origin) -> None:
    app = through()
    origin.answer = lambda scope: (206, {"cache-control": "max-age=60", "content-range": "bytes 0-1/4"}, b"/a")
    for headers in ({}, {"cookie": "a=b"}):
        part = await ask(app, range="bytes=0-1", **headers)
        assert (part.status, part.body, origin.asked("range")) == (206, b"/a", "bytes=0-1")


async def test_no_cache_means_asking_each_time(through: Through, origin: Origin) -> None:
    origin.headers = {"cache-control": "no-cache", "etag": '"1"'}
    app = through()
    await ask(app)
    origin.answer = lambda scope: (304, {}, b"")
    assert [(await ask(app)).text for _ in range(2)] == ["/a 1", "/a 1"]
    assert len(origin.calls) == 3


async def test_a_stale_response_is_given_while_it_is_renewed(through: Through, origin: Origin, clock: Clock) -> None:
    origin.headers = {"cache-control": "max-age=60, stale-while-revalidate=30"}
    app = through()
    await ask(app)
    clock.pass_(70)
    origin.gate = asyncio.Event()
    assert [(await ask(app)).text for _ in range(3)] == ["/a 1"] * 3
    origin.gate.set()
    await until(lambda: ask(app), lambda reply: reply.text == "/a 2")
    assert len(origin.calls) == 2
    clock.pass_(91)
    assert (await ask(app)).text == "/a 3"


async def test_a_renewal_that_fails_leaves_what_is_stored_and_is_told(
    through: Through, cache: Cache, origin: Origin, clock: Clock
) -> None:
    told: list[Event] = []
    cache.events.subscribe(told.append, RefreshFailed)
    origin.headers = {"cache-control": "max-age=60, stale-while-revalidate=30"}
    app = through()
    await ask(app)
    clock.pass_(70)
    for failure in ((503, {}, b"sorry"), OSError("no database")):

        def fail(scope: Any, failure: Any = failure) -> Any:
            if isinstance(failure, Exception):
                raise failure
            return failure

        origin.answer = fail
        told.clear()
        assert (await ask(app)).text == "/a 1"
        while not told:  # noqa: ASYNC110  # the event comes from a task of its own
            await asyncio.sleep(0)
        clock.pass_(2)
    origin.answer = None
    await until(lambda: ask(app), lambda reply: reply.text == f"/a {len(origin.calls)}")


@pytest.mark.parametrize("failure", [500, 503, OSError("no database")])
async def test_a_stale_response_stands_in_for_an_application_that_fails(
    through: Through, origin: Origin, clock: Clock, failure: Any
) -> None:
    origin.headers = {"cache-control": "max-age=60, stale-if-error=30"}
    app = through()
    await ask(app)
    clock.pass_(70)

    def fail(scope: Any) -> Any:
        if isinstance(failure, Exception):
            raise failure
        return failure, {}, b"sorry"

    origin.answer = fail
    assert [(await ask(app)).text for _ in range(3)] == ["/a 1"] * 3
    assert len(origin.calls) == 2  # who has just failed is left alone for a moment
    clock.pass_(1.1)
    assert (await ask(app)).text == "/a 1"
    assert len(origin.calls) == 3
    clock.pass_(30)
    if isinstance(failure, Exception):
        with pytest.raises(OSError, match="no database"):
            await ask(app)
    else:
        assert (await ask(app)).text == "sorry"


async def test_must_revalidate_means_that_nothing_stands_in(through: Through, origin: Origin, clock: Clock) -> None:
    origin.headers = {"cache-control": "max-age=60, must-revalidate, stale-if-error=90, stale-while-revalidate=90"}
    app = through(stale_if_error=90)
    await ask(app)
    clock.pass_(61)
    origin.answer = lambda scope: (500, {}, b"sorry")
    assert (await ask(app)).status == 500


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "ANY"])
async def test_what_changes_a_resource_empties_what_was_stored_of_it(
    through: Through, origin: Origin, method: str
) -> None:
    app = through()
    for target in ("/a", "/b", "/c"):
        await ask(app, target)
    await ask(app, "/c", host="other.example")
    kept = origin.headers
    origin.headers = {"location": "/b", "content-location": "http://other.example/c"}
    await ask(app, "/a", method)
    origin.headers = kept
    assert [(await ask(app, target)).text for target in ("/a", "/b", "/c")] == ["/a 6", "/b 7", "/c 3"]
    assert (await ask(app, "/c", host="other.example")).text == "/c 4"


async def test_a_change_that_failed_empties_nothing(through: Through, origin: Origin) -> None:
    app = through()
    await ask(app)
    origin.answer = lambda scope: (422, {}, b"")
    await ask(app, method="POST")
    assert (await ask(app)).text == "/a 1"


async def test_what_is_computed_when_its_resource_changes_is_not_stored(through: Through, origin: Origin) -> None:
    app = through()
    origin.gate = asyncio.Event()
    reading = asyncio.create_task(ask(app))
    await origin.called(1)
    gate, origin.gate = origin.gate, None
    await ask(app, method="POST")
    gate.set()
    assert (await reading).text == "/a 1"
    assert (await ask(app)).text == "/a 3"


async def test_what_is_read_between_the_answer_to_a_change_and_its_commit_does_not_stay(
    through: Through, origin: Origin
) -> None:
    app = through()
    committed = asyncio.Event()

    async def change(send: Any) -> None:
        await respond(send, 204, {}, b"")
        await committed.wait()

    async def answering(scope: Any, receive: Any, send: Any) -> None:
        await (change(send) if scope["method"] == "PUT" else origin(scope, receive, send))

    app._app = answering
    changing = asyncio.create_task(ask(app, method="PUT"))
    await asyncio.sleep(0)
    while (await ask(app))["cache-status"] != "bb; hit; ttl=60":
        pass
    calls = len(origin.calls)
    committed.set()
    await changing
    assert (await ask(app)).text == f"/a {calls + 1}"


@pytest.mark.parametrize("shown", [{}, {"cookie": "session=alice"}])
async def test_an_application_inside_may_have_a_middleware_with_the_same_cache(
    through: Through, cache: Cache, origin: Origin, clock: Clock, shown: dict[str, str]
) -> None:
    origin.headers = {"cache-control": "public, max-age=60, stale-while-revalidate=30"}
    app = through()
    app._app = CacheMiddleware(origin, cache=cache)
    assert [(await ask(app, **shown)).text for _ in range(2)] == ["/a 1", "/a 1"]
    clock.pass_(70)
    assert (await ask(app, **shown)).text == "/a 1"
    await until(lambda: ask(app, **shown), lambda reply: (reply.text, reply["age"]) == ("/a 2", "0"))
    await ask(app, method="PUT")
    assert (await ask(app, **shown)).text == "/a 4"


async def test_an_application_inside_may_keep_answers_to_queries_in_the_same_cache(
    through: Through, cache: Cache, origin: Origin
) -> None:
    methods = frozenset({"GET", "QUERY"})
    app = through(methods=methods)
    app._app = CacheMiddleware(origin, cache=cache, policy=Policy(methods=methods))
    assert [(await ask(app, method="QUERY", body=b"q")).text for _ in range(2)] == ["/a 1", "/a 1"]


async def test_a_head_that_finds_a_stale_response_does_not_renew_it(
    through: Through, origin: Origin, clock: Clock
) -> None:
    def answer(scope: Any) -> Any:
        headers = {"cache-control": "max-age=60, stale-while-revalidate=30"}
        return (405, headers, b"") if scope["method"] == "HEAD" else (200, headers, b"%d" % len(origin.calls))

    origin.answer = answer
    app = through()
    await ask(app)
    clock.pass_(70)
    assert (await ask(app, method="HEAD"))["cache-status"] == "bb; hit; ttl=-10"
    assert (await ask(app)).text == "1"
    await until(lambda: ask(app), lambda reply: reply.text != "1")
    assert (await ask(app)).text == "2", "renewed by the GET"
    assert [call["method"] for call in origin.calls] == ["GET", "GET"]


async def test_cache_groups_are_tags(through: Through, cache: Cache, origin: Origin) -> None:
    origin.headers = {"cache-control": "max-age=60", "cache-groups": '"books", "book:1"'}
    app = through()
    await ask(app)
    await cache.tags("book:1").aflush()
    assert (await ask(app)).text == "/a 2"
    origin.headers = {"Cache-Group-Invalidation": '"books"'}
    await ask(app, "/elsewhere", "POST")
    assert (await ask(app)).text == "/a 4"


async def test_a_group_that_is_flushed_while_its_response_is_renewed_wins(
    through: Through, cache: Cache, origin: Origin, clock: Clock
) -> None:
    origin.headers = {"cache-control": "max-age=60", "etag": '"1"', "cache-groups": '"books"'}
    app = through()
    await ask(app)
    clock.pass_(61)
    origin.gate = asyncio.Event()
    reading = asyncio.create_task(ask(app))
    await origin.called(2)
    await cache.tags("books").aflush()
    origin.gate.set()
    assert (await reading).text == "/a 2"
    assert (await ask(app)).text == "/a 3"


async def test_a_group_that_is_flushed_while_its_first_response_is_computed_wins(
    through: Through, cache: Cache, origin: Origin
) -> None:
    origin.headers = {"cache-control": "max-age=60", "cache-groups": '"books"'}
    origin.gate = asyncio.Event()
    app = through()
    reading = asyncio.create_task(ask(app))
    await origin.called(1)
    await cache.tags("books").aflush()
    late = asyncio.create_task(ask(app))
    origin.gate.set()
    assert (await reading).text == "/a 1"
    assert (await late).text == "/a 2"
    assert [(await ask(app)).text for _ in range(2)] == ["/a 2", "/a 2"]


async def test_a_flushed_tag_empties_the_responses_that_a_rule_gave_it(cache: Cache, origin: Origin) -> None:
    rules = {"/a*": Policy(tags=["books"]), "/private*": None}
    app = CacheMiddleware(origin, cache=cache, rules=rules)
    for target in ("/a", "/b"):
        await ask(app, target)
    await cache.tags("books").aflush()
    assert [(await ask(app, target)).text for target in ("/a", "/b")] == ["/a 3", "/b 2"]
    assert [(await ask(app, "/private")).text for _ in range(2)] == ["/private 4", "/private 5"]


async def test_what_is_no_cache_or_no_policy_is_refused_where_it_is_said(cache: Cache, origin: Origin) -> None:
    url: Any = "redis://:secret@localhost:6379/0"
    ttl: Any = "1m"
    with pytest.raises(ConfigError, match="cache is a str: write cache=Cache") as refused:
        CacheMiddleware(origin, cache=url)
    assert "secret" not in str(refused.value)
    with pytest.raises(ConfigError, match=r"policy='1m': write a Policy"):
        CacheMiddleware(origin, cache=cache, policy=ttl)
    with pytest.raises(ConfigError, match=r"rules: '/a\*' has '1m'; write a Policy, .*, or None"):
        CacheMiddleware(origin, cache=cache, rules={"/a*": ttl})


async def test_tags_may_depend_on_the_request(through: Through, cache: Cache, origin: Origin) -> None:
    app = through(tags=lambda scope: [f"book:{scope['path'][-1]}"])
    for target in ("/1", "/2"):
        await ask(app, target)
    await cache.tags("book:1").aflush()
    assert [(await ask(app, target)).text for target in ("/1", "/2")] == ["/1 3", "/2 2"]


async def test_purging_by_url_by_namespace_and_by_tag(through: Through, origin: Origin) -> None:
    origin.headers = {"cache-control": "max-age=60", "vary": "accept"}
    app = through(namespace="shop", tags=["books"])
    responses = app.responses
    for purge in (
        lambda: responses.apurge(url="http://Shop.example/a"),
        lambda: responses.apurge(namespace="shop"),
        lambda: responses.apurge(tag="books"),
    ):
        before = (await ask(app)).text
        assert (await ask(app)).text == before
        assert await purge()
        assert (await ask(app)).text != before
    assert not await responses.apurge(url="http://shop.example/unknown")
    assert await asyncio.to_thread(responses.purge, tag="books")


@pytest.mark.parametrize("named", [{}, {"url": "http://a/b", "tag": "x"}, {"url": "/a"}, {"url": "http://a b/"}])
async def test_purging_nothing_in_particular_is_refused(through: Through, named: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"purge by one|whole URL"):
        await through().responses.apurge(**named)


@pytest.mark.parametrize("vary", [{}, {"vary": "accept"}])
async def test_a_response_that_was_expired_is_asked_about_and_may_stand_in(
    through: Through, origin: Origin, clock: Clock, vary: dict[str, str]
) -> None:
    origin.headers = {"cache-control": "max-age=60, stale-if-error=30", **vary}
    app = through()
    await ask(app)
    clock.pass_(1)
    assert await app.responses.aexpire("http://shop.example/a")
    kept, origin.answer = origin.answer, lambda scope: (500, {}, b"sorry")
    assert (await ask(app)).text == "/a 1"
    origin.answer = kept
    clock.pass_(1)
    assert (await ask(app)).text == "/a 3"
    assert (await ask(app)).text == "/a 3"


async def test_a_query_is_cached_by_its_body(through: Through, origin: Origin) -> None:
    app = through(methods=frozenset({"GET", "HEAD", "QUERY"}))
    told = [(await ask(app, method="QUERY", body=body)).text for body in (b"x", b"y", b"x", b"y")]
    assert told == ["/a 1", "/a 2", "/a 1", "/a 2"]
    assert (await ask(app, method="QUERY", body=b"x", content_type="text/sql")).text == "/a 3"
    assert (await ask(app)).text == "/a 4"
    await ask(app, method="DELETE")
    assert (await ask(app, method="QUERY", body=b"x")).text == "/a 6"


@pytest.mark.parametrize("shown", [{}, {"cookie": "session=alice"}])
async def test_nobody_gets_a_length_and_a_transfer_coding_too(
    through: Through, origin: Origin, shown: dict[str, str]
) -> None:
    origin.headers = {"cache-control": "public, max-age=60", "transfer-encoding": "chunked"}
    app = through()
    for reply in (await ask(app, **shown), await ask(app)):
        assert (reply.text, reply["content-length"], reply["transfer-encoding"]) == ("/a 1", "4", None)


@pytest.mark.parametrize("method", ["POST", "QUERY"])
async def test_conditions_of_other_methods_than_get_are_for_the_application_which_gets_none_of_ours(
    through: Through, origin: Origin, clock: Clock, method: str
) -> None:
    origin.headers = {"cache-control": "max-age=60", "etag": '"v"', "last-modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
    app = through(methods=frozenset({"POST", "QUERY"}))
    await ask(app, method=method, body=b"x")
    since = {"if_modified_since": "Fri, 01 Jan 2100 00:00:00 GMT", "range": "bytes=0-0"}
    assert (await ask(app, method=method, body=b"x", **since)).text == "/a 1"
    clock.pass_(61)
    assert (await ask(app, method=method, body=b"x")).text == "/a 2"
    assert origin.asked("if-none-match") is None  # an application that obeys would answer 412
    assert origin.asked("if-modified-since") is None
    origin.answer = lambda _: (412, {}, b"")
    assert (await ask(app, method=method, body=b"x", if_none_match='"v"')).status == 412
    assert origin.asked("if-none-match") == '"v"'


async def test_the_application_reads_the_body_that_was_part_of_the_key(through: Through, origin: Origin) -> None:
    read: list[bytes] = []

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        read.append((await receive())["body"])
        await respond(send, 200, {"cache-control": "max-age=60"}, read[-1])

    app = through(methods=frozenset({"POST"}), max_body_bytes=10)
    app._app = echo
    assert (await ask(app, method="POST", body=b"small")).text == "small"
    assert (await ask(app, method="POST", body=b"small")).text == "small"
    assert (await ask(app, method="POST", body=b"larger than that")).text == "larger than that"
    assert read == [b"small", b"larger than that"]


async def test_two_applications_share_what_is_stored(redis_url: str, origin: Origin, clock: Clock) -> None:
    caches = [Cache(redis_url, clock=clock) for _ in range(2)]
    apps = [CacheMiddleware(origin, cache=cache) for cache in caches]
    told: list[Reply] = [await ask(app) for app in (*apps, *apps)]
    assert {reply.text for reply in told} == {"/a 1"}
    await caches[1].tags("x").aflush()
    await apps[1].responses.apurge(url="http://shop.example/a")
    await until(lambda: ask(apps[0]), lambda reply: reply.text == "/a 2")
    for cache in caches:
        await cache.aclose()


async def until(attempt: Callable[[], Any], good: Callable[[Any], bool]) -> None:
    """Try until it is good; the test's time limit is the end."""
    while not good(await attempt()):  # noqa: ASYNC110  # what happens is in another process or task
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("vary", [False, True])
async def test_a_hit_from_the_server_costs_one_command_for_each_key_and_is_counted_and_told_as_the_servers(
    redis_url: str, origin: Origin, *, vary: bool
) -> None:
    cache = Cache(redis_url, l1=False, timeout=5)
    told: list[Event] = []
    cache.events.subscribe(told.append, Hit)
    if vary:
        origin.headers["vary"] = "accept-language"
    app = CacheMiddleware(origin, cache=cache)
    await ask(app)
    with redis.Redis.from_url(redis_url) as observer:
        observer.config_resetstat()
        for _ in range(3):
            assert (await ask(app)).status == 200
        asked = observer.info("commandstats")["cmdstat_get"]["calls"]
    assert asked == (6 if vary else 3)
    assert [event.tier for event in told if isinstance(event, Hit)] == ["server"] * 3
    assert cache.stats().tiers["server"].hits == 3
    assert len(origin.calls) == 1
    await cache.aclose()
