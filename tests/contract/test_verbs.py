"""What every verb does, on every store, blocking and asyncio."""

import datetime as dt
from typing import Any

import pytest

from backburner.errors import CodecError
from tests.contract.conftest import Clock


class Callback:
    """Gives 1, 2, 3, … and so tells how often it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        return self.calls


def fail() -> None:
    raise LookupError("the database is gone")


def test_a_value_that_was_put_is_got(cache: Any) -> None:
    assert cache.put("key", {"title": "Emma", "when": dt.date(1815, 12, 23)}) is True
    assert cache.get("key") == {"title": "Emma", "when": dt.date(1815, 12, 23)}


def test_a_key_without_a_value_gives_the_default(cache: Any) -> None:
    assert cache.get("key") is None
    assert cache.get("key", "default") == "default"
    assert cache.get("key", default=0) == 0


def test_none_is_a_value_and_not_missing(cache: Any) -> None:
    cache.put("key", None)
    assert cache.has("key")
    assert not cache.missing("key")
    assert cache.get("key", "default") is None
    assert cache.remember("key", 60, fail) is None


@pytest.mark.parametrize("ttl", [60, 60.0, dt.timedelta(minutes=1), "60s", "1m", "0.5m 30s"])
def test_an_entry_ends_with_its_ttl(cache: Any, clock: Clock, ttl: Any) -> None:
    cache.put("key", "value", ttl)
    clock.advance(59.9)
    assert cache.get("key") == "value"
    clock.advance(0.2)
    assert cache.missing("key")
    assert cache.get("key") is None


def test_without_a_ttl_the_default_counts(cache: Any, clock: Clock) -> None:
    cache.put("key", "value")
    clock.advance(3599)
    assert cache.has("key")
    clock.advance(2)
    assert cache.missing("key")


def test_forever_has_no_end(cache: Any, clock: Clock) -> None:
    assert cache.forever("key", "value") is True
    clock.advance(10 * 365 * 86_400)
    assert cache.get("key") == "value"


@pytest.mark.parametrize("ttl", [0, -1, dt.timedelta(0), "0s"])
def test_a_ttl_of_nothing_removes(cache: Any, ttl: Any) -> None:
    cache.put("key", "value")
    assert cache.put("key", "other", ttl) is True
    assert cache.missing("key")
    cache.put("key", "value")
    assert cache.touch("key", ttl) is True
    assert cache.missing("key")


@pytest.mark.parametrize(
    "ttl", ["soon", "", "10", "5 parsecs", True, float("nan"), [60], 1e14, pytest.param(10**400, id="huge")]
)
def test_a_ttl_that_makes_no_sense_is_refused_before_anything_is_written(cache: Any, ttl: Any) -> None:
    with pytest.raises(ValueError, match="no length of time"):
        cache.put("key", "value", ttl)
    assert cache.missing("key")


def test_the_longest_ttl_is_a_ttl(cache: Any) -> None:
    assert cache.tags("tag").put("key", "value", dt.timedelta.max) is True
    assert cache.touch("key", dt.timedelta.max) is True
    assert cache.tags("tag").remember("other", dt.timedelta.max, lambda: 1, grace=dt.timedelta.max) == 1
    assert cache.many(["key", "other"]) == {"key": "value", "other": 1}


@pytest.mark.parametrize("value", ["\ud800", ("a", "\ud800"), frozenset({"\udc00"}), ["\ud800"]], ids=ascii)
def test_text_that_is_no_unicode_is_refused_wherever_it_would_lie(cache: Any, value: Any) -> None:
    with pytest.raises(CodecError, match="not valid Unicode"):
        cache.put("key", value)
    assert cache.put("key", ("é", "日本")) is True
    assert cache.get("key") == ("é", "日本")


def test_more_tags_than_an_entry_holds_are_refused_before_anything_is_computed(cache: Any) -> None:
    tags = [f"{number}{'é' * 500}" for number in range(66)]
    with pytest.raises(ValueError, match="66 tags of one entry take 66,"):
        cache.tags(*tags).remember("key", 60, lambda: pytest.fail("was computed"))
    assert cache.tags(*tags[:60]).put("key", "value") is True
    assert cache.get("key") == "value"


def test_a_context_takes_no_more_tags_either(cache: Any) -> None:
    def compute(context: Any) -> str:
        for number in range(66):
            context.tags.append(f"{number}{'é' * 500}")
        return "value"

    with pytest.raises(ValueError, match="66 tags of one entry"):
        cache.remember("key", 60, compute)
    assert cache.missing("key")


def test_put_replaces_value_and_ttl(cache: Any, clock: Clock) -> None:
    cache.put("key", "old", 1000)
    cache.put("key", "new", 10)
    assert cache.get("key") == "new"
    clock.advance(11)
    assert cache.missing("key")


def test_what_was_got_can_be_changed_without_changing_the_cache(cache: Any) -> None:
    value = {"authors": ["Austen"]}
    cache.put("key", value)
    value["authors"].append("Brontë")
    first = cache.get("key")
    first["authors"].append("Eliot")
    assert cache.get("key") == {"authors": ["Austen"]}


def test_add_stores_only_where_there_is_nothing(cache: Any, clock: Clock) -> None:
    assert cache.add("key", "first", 60) is True
    assert cache.add("key", "second", 60) is False
    assert cache.get("key") == "first"
    clock.advance(61)
    assert cache.add("key", "third", 60) is True
    assert cache.get("key") == "third"


def test_add_may_replace_what_a_flushed_tag_killed(cache: Any) -> None:
    cache.tags("books").put("key", "dead")
    cache.tags("books").flush()
    assert cache.add("key", "alive") is True
    assert cache.get("key") == "alive"


def test_add_may_replace_what_was_made_stale(cache: Any) -> None:
    cache.put("key", "stale")
    cache.expire("key")
    assert cache.add("key", "fresh") is True
    assert cache.get("key") == "fresh"


def test_pull_gives_a_value_once(cache: Any) -> None:
    cache.put("key", [1, 2])
    assert cache.pull("key") == [1, 2]
    assert cache.pull("key") is None
    assert cache.pull("key", "default") == "default"


def test_pull_does_not_give_what_a_flushed_tag_killed(cache: Any) -> None:
    cache.tags("books").put("key", "dead")
    cache.tags("books").flush()
    assert cache.pull("key", "default") == "default"


def test_forget_removes_one_key(cache: Any) -> None:
    cache.put("key", 1)
    cache.put("other", 2)
    assert cache.forget("key") is True
    assert cache.forget("key") is False
    assert cache.missing("key")
    assert cache.get("other") == 2


def test_many_gives_only_the_keys_that_have_values(cache: Any) -> None:
    assert cache.put_many({"a": 1, "b": [2], "c": None}, ttl=60) is True
    assert cache.many(["a", "b", "c", "d"]) == {"a": 1, "b": [2], "c": None}
    assert cache.many([]) == {}
    assert cache.put_many({}) is True


def test_many_sees_flushed_tags_and_ended_ttls(cache: Any, clock: Clock) -> None:
    cache.tags("books").put("tagged", 1)
    cache.put("short", 2, 10)
    cache.put("long", 3, 100)
    cache.tags("books").flush()
    clock.advance(11)
    assert cache.many(["tagged", "short", "long"]) == {"long": 3}


def test_one_text_is_not_taken_for_the_keys_that_its_letters_would_be(cache: Any) -> None:
    cache.put_many({"u": 1, "user:1": 2})
    for verb in (cache.many, cache.forget_many, lambda key: cache.remember_many(key, 60, dict.fromkeys)):
        with pytest.raises(ValueError, match="keys must be several texts, not the text 'user:1'"):
            verb("user:1")
    with pytest.raises(ValueError, match="values must be a dict from keys to values, not list"):
        cache.put_many(["user:1"])
    assert cache.many(["u", "user:1"]) == {"u": 1, "user:1": 2}


def test_forget_many_says_how_many_there_were(cache: Any) -> None:
    cache.put_many({"a": 1, "b": 2})
    assert cache.forget_many(["a", "b", "c"]) == 2
    assert cache.forget_many([]) == 0
    assert cache.many(["a", "b"]) == {}


def test_increment_begins_at_zero_and_gives_the_sum(cache: Any) -> None:
    assert cache.increment("visits") == 1
    assert cache.increment("visits", 10) == 11
    assert cache.increment("visits", amount=-3) == 8
    assert cache.decrement("visits") == 7
    assert cache.decrement("visits", amount=10) == -3
    assert cache.get("visits") == -3


def test_increment_adds_to_a_number_that_was_put(cache: Any) -> None:
    cache.put("stock", 40)
    assert cache.increment("stock", 2) == 42
    assert cache.get("stock") == 42


def test_increment_is_exact_over_all_64_bits(cache: Any) -> None:
    cache.put("big", 2**62)
    assert cache.increment("big", 2**62 - 1) == 2**63 - 1
    with pytest.raises(OverflowError, match="64 bits"):
        cache.increment("big")
    assert cache.get("big") == 2**63 - 1
    cache.put("small", -(2**63))
    with pytest.raises(OverflowError, match="64 bits"):
        cache.decrement("small")
    with pytest.raises(OverflowError, match="64 bits"):
        cache.increment("small", 2**64)


@pytest.mark.parametrize("value", ["5", 5.0, True, None, [5], {"n": 5}, 2**70])
def test_increment_refuses_what_is_no_whole_number(cache: Any, value: Any) -> None:
    cache.put("key", value)
    with pytest.raises(TypeError, match="'key' cannot be incremented"):
        cache.increment("key")
    assert cache.get("key") == value


@pytest.mark.parametrize("amount", [1.5, "1", None, True])
def test_increment_refuses_an_amount_that_is_no_whole_number(cache: Any, amount: Any) -> None:
    with pytest.raises(TypeError, match="whole number"):
        cache.increment("key", amount)
    assert cache.missing("key")


def test_increment_keeps_the_end_of_the_number(cache: Any, clock: Clock) -> None:
    cache.increment("window", ttl=60)
    clock.advance(50)
    assert cache.increment("window", ttl=60) == 2
    clock.advance(11)
    assert cache.increment("window", ttl=60) == 1


def test_increment_keeps_tags_and_begins_anew_when_they_are_flushed(cache: Any) -> None:
    tagged = cache.tags("statistics")
    assert tagged.increment("visits", 5) == 5
    assert cache.increment("visits") == 6
    assert tagged.increment("visits") == 7
    cache.tags("statistics").flush()
    assert cache.missing("visits")
    assert cache.increment("visits") == 1


def test_touch_moves_the_end(cache: Any, clock: Clock) -> None:
    cache.put("session", {"user": 1}, 60)
    clock.advance(50)
    assert cache.touch("session", 60) is True
    clock.advance(50)
    assert cache.get("session") == {"user": 1}
    clock.advance(11)
    assert cache.touch("session", 60) is False
    assert cache.missing("session")


def test_touch_keeps_tags(cache: Any, clock: Clock) -> None:
    cache.tags("user:1").put("session", 1, 60)
    assert cache.touch("session", 600) is True
    clock.advance(500)
    assert cache.get("session") == 1
    cache.tags("user:1").flush()
    assert cache.touch("session", 600) is False


def test_remember_calls_back_once_and_then_remembers(cache: Any, clock: Clock) -> None:
    callback = Callback()
    assert cache.remember("key", 60, callback) == 1
    assert cache.remember("key", ttl=60, callback=callback) == 1
    clock.advance(61)
    assert cache.remember("key", ttl=60, callback=callback) == 2


def test_remember_forever_has_no_end(cache: Any, clock: Clock) -> None:
    callback = Callback()
    assert cache.remember_forever("key", callback) == 1
    clock.advance(10 * 365 * 86_400)
    assert cache.remember_forever("key", callback=callback) == 1


def test_remember_without_a_callback_says_so(cache: Any) -> None:
    with pytest.raises(TypeError, match="needs a callback"):
        cache.remember("key", 60)


def test_remember_of_a_value_in_place_of_a_callback_says_what_to_give(cache: Any) -> None:
    with pytest.raises(TypeError, match=r"is a list, not a function: give load itself, not load\(\)"):
        cache.remember("key", 60, ["a value"])


def test_remember_lets_the_callbacks_error_through_and_stores_nothing(cache: Any) -> None:
    with pytest.raises(LookupError, match="the database is gone"):
        cache.remember("key", 60, fail)
    assert cache.missing("key")
    assert cache.remember("key", 60, lambda: "better") == "better"


def test_remember_with_a_ttl_of_nothing_computes_and_does_not_store(cache: Any) -> None:
    callback = Callback()
    assert cache.remember("key", 0, callback) == 1
    assert cache.remember("key", 0, callback) == 2


def test_remember_refuses_a_value_that_cannot_be_stored(cache: Any) -> None:
    with pytest.raises(CodecError):
        cache.remember("key", 60, object)
    assert cache.missing("key")


def test_a_callback_that_takes_a_context_decides_about_its_entry(cache: Any, clock: Clock) -> None:
    def load(context: Any) -> str:
        context.ttl = 10
        context.tags.append("authors")
        return f"value of {context.key}"

    assert cache.remember("key", 60, load) == "value of key"
    clock.advance(9)
    assert cache.remember("key", 60, fail) == "value of key"
    clock.advance(2)
    assert cache.missing("key")

    cache.remember("key", 60, load)
    cache.tags("authors").flush()
    assert cache.missing("key")


def test_a_callback_can_keep_its_value_out_of_the_cache(cache: Any) -> None:
    def load(context: Any) -> str:
        context.skip()
        return "not yet"

    assert cache.remember("key", 60, load) == "not yet"
    assert cache.missing("key")


def test_an_expired_entry_is_given_only_where_the_callback_fails(cache: Any) -> None:
    cache.put("key", "old", 60)
    assert cache.expire("key") is True
    assert cache.get("key") is None
    assert cache.missing("key")
    assert cache.many(["key"]) == {}
    assert cache.remember("key", 60, fail) == "old"
    assert cache.remember("key", 60, lambda: "new", throttle=0) == "new"
    assert cache.get("key") == "new"
    assert cache.expire("nothing") is False


def test_a_flushed_tag_leaves_nothing_to_fall_back_on(cache: Any) -> None:
    cache.tags("books").put("key", "wrong")
    cache.tags("books").flush()
    with pytest.raises(LookupError):
        cache.remember("key", 60, fail)


def test_a_tagged_entry_is_one_entry_with_or_without_its_tags(cache: Any) -> None:
    cache.tags("users", "profile").put("user:1", "Ada")
    assert cache.get("user:1") == "Ada"
    assert cache.tags("profile").get("user:1") == "Ada"
    assert cache.tags("other").get("user:1") == "Ada"


@pytest.mark.parametrize("tags", [("users",), ("profile",), ("users", "profile"), ("profile", "other")])
def test_flushing_any_tag_of_an_entry_kills_it(cache: Any, tags: tuple[str, ...]) -> None:
    cache.tags("users", "profile").put("user:1", "Ada")
    cache.tags("books").put("book:1", "Emma")
    cache.put("plain", "value")
    assert cache.tags(*tags).flush() is True
    assert cache.missing("user:1")
    assert cache.get("user:1", "default") == "default"
    assert cache.get("book:1") == "Emma"
    assert cache.get("plain") == "value"


def test_a_tag_can_be_used_again_after_it_was_flushed(cache: Any) -> None:
    tagged = cache.tags("users")
    tagged.put("user:1", "Ada")
    tagged.flush()
    tagged.put("user:2", "Grace")
    assert cache.missing("user:1")
    assert cache.get("user:2") == "Grace"
    tagged.flush()
    assert cache.missing("user:2")


def test_putting_without_tags_takes_the_tags_off(cache: Any) -> None:
    cache.tags("users").put("user:1", "Ada")
    cache.put("user:1", "Grace")
    cache.tags("users").flush()
    assert cache.get("user:1") == "Grace"


def test_tags_can_be_added_to_tags(cache: Any) -> None:
    cache.tags("users").tags("profile").put("user:1", "Ada")
    cache.tags("profile").flush()
    assert cache.missing("user:1")


def test_every_writing_verb_tags(cache: Any) -> None:
    tagged = cache.tags("books")
    tagged.add("add", 1)
    tagged.forever("forever", 1)
    tagged.put_many({"many:1": 1, "many:2": 1})
    tagged.remember("remember", 60, lambda: 1)
    tagged.remember_forever("remember_forever", lambda: 1)
    tagged.increment("increment")
    keys = ["add", "forever", "many:1", "many:2", "remember", "remember_forever", "increment"]
    assert sorted(cache.many(keys)) == sorted(keys)
    tagged.flush()
    assert cache.many(keys) == {}


def test_a_tag_flushed_while_the_value_is_computed_wins(cache: Any) -> None:
    tagged = cache.tags("books")

    def load() -> str:
        # As another process would: through a cache that knows nothing of this computation.
        other = type(self_cache)(self_cache._url, prefix=self_cache.prefix) if not memory else self_cache
        other.tags("books").flush()
        if not memory:
            other.close()
        return "of before the flush"

    self_cache = getattr(cache, "_cache", cache)
    memory = self_cache._memory is not None
    assert tagged.remember("key", 60, load) == "of before the flush"
    assert cache.missing("key")


@pytest.mark.parametrize("interfere", ["forget", "put", "flush", "expire", "pull"])
def test_a_key_written_or_removed_while_the_value_is_computed_wins(cache: Any, interfere: str) -> None:
    blocking = getattr(cache, "_cache", cache)  # a blocking verb works inside a running event loop too
    cache.put("key", "stale")
    cache.expire("key")

    def load() -> str:
        match interfere:
            case "put":
                blocking.put("key", "newer")
            case "flush":
                blocking.flush()
            case verb:
                getattr(blocking, verb)("key")
        return "of before"

    assert cache.remember("key", 60, load) == "of before"
    assert cache.get("key") == ("newer" if interfere == "put" else None)


def test_a_callback_that_asks_for_its_own_key_is_told_instead_of_hanging(cache: Any) -> None:
    blocking = getattr(cache, "_cache", cache)

    with pytest.raises(RuntimeError, match="would wait for itself"):
        cache.remember("key", 60, lambda: blocking.remember("key", 60, lambda: 1))
    assert cache.remember("key", 60, lambda: 2) == 2


def test_a_callback_may_ask_for_other_keys(cache: Any) -> None:
    blocking = getattr(cache, "_cache", cache)
    assert cache.remember("outer", 60, lambda: blocking.remember("inner", 60, lambda: 1) + 1) == 2
    assert cache.many(["outer", "inner"]) == {"outer": 2, "inner": 1}


def test_flush_empties_the_cache(cache: Any) -> None:
    cache.put_many({f"key:{n}": n for n in range(50)})
    cache.tags("books").put("tagged", 1)
    assert cache.flush() is True
    assert cache.many([f"key:{n}" for n in range(50)]) == {}
    assert cache.missing("tagged")


@pytest.mark.parametrize(
    "key", ["", "new\nline", "nul\x00", "\x01tag:books", "x" * 65_537, 5, None, b"key", ["list"], "\ud800"]
)
def test_a_key_that_makes_no_sense_is_refused(cache: Any, key: Any) -> None:
    for call in (
        lambda: cache.put(key, 1),
        lambda: cache.get(key),
        lambda: cache.remember(key, 60, lambda: 1),
        lambda: cache.many([key]),
        lambda: cache.increment(key),
    ):
        with pytest.raises(ValueError, match=r"a key (must|has)"):
            call()


@pytest.mark.parametrize("key", ["user:1", "ключ", "with space", "{braces}", "*", "a/b?c=d", "💶"])
def test_other_keys_are_fine(cache: Any, key: str) -> None:
    cache.tags(key).put(key, "value")
    assert cache.get(key) == "value"
    cache.tags(key).flush()
    assert cache.missing(key)


@pytest.mark.parametrize("length", [200, 201, 1025, 65_536])
def test_keys_may_be_long(cache: Any, length: int) -> None:
    key, other = "x" * length, "x" * (length - 1) + "y"
    cache.put_many({key: 1, other: 2})
    assert cache.many([key, other, key[:-1]]) == {key: 1, other: 2}
    assert cache.increment(key) == 2
    assert cache.remember_many([key, key[:-1]], 60, lambda keys: dict.fromkeys(keys, 3)) == {key: 2, key[:-1]: 3}
    cache.forget(key)
    assert cache.missing(key)
    assert cache.remember(key, 60, lambda context: context.key) == key
    assert cache.get(key) == key
    assert cache.get(other) == 2


@pytest.mark.parametrize("tags", [(), ("",), ("a\tb",), (5,), ("x" * 1025,)])
def test_a_tag_that_makes_no_sense_is_refused(cache: Any, tags: Any) -> None:
    with pytest.raises(ValueError, match="tag"):
        cache.tags(*tags)


def test_a_value_that_cannot_be_stored_is_refused_and_the_old_one_stays(cache: Any) -> None:
    cache.put("key", "old")
    with pytest.raises(CodecError):
        cache.put("key", object())
    with pytest.raises(CodecError):
        cache.put_many({"key": 1, "other": object()})
    assert cache.many(["key", "other"]) == {"key": "old"}


def test_stats_tell_what_happened(cache: Any) -> None:
    cache.put("key", 1)
    cache.get("key")
    cache.get("nothing")
    cache.remember("key", 60, fail)
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.stored, stats.degraded) == (2, 1, 1, 0)
    assert stats.hit_ratio == pytest.approx(2 / 3)
    assert stats.available
