"""`@cached` on every store: on functions and methods, blocking and asyncio; its keys, and what it refuses."""

import asyncio
import datetime as dt
import inspect
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretBytes, SecretStr

from backburner import Cache, cached
from backburner.cache.keys import check_key, fit
from backburner.errors import CodecError, ConfigError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cache(plain_cache: Cache) -> Cache:
    return plain_cache


@pytest.fixture
def memory() -> Cache:
    """Where the store does not matter."""
    return Cache("memory://")


class Counted:
    """Counts calls, and gives its arguments and how often it was called with any."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        self.calls += 1
        return (*args, *kwargs.values(), self.calls)


def test_a_function_is_called_once_for_the_same_arguments(cache: Cache) -> None:
    counted = Counted()

    @cached(ttl=60, cache=cache)
    def load(user_id: int, page: int = 1, *, full: bool = False) -> tuple[Any, ...]:
        return counted(user_id, page, full)

    assert load(5) == (5, 1, False, 1)
    assert load(5, 1) == load(user_id=5) == load(page=1, user_id=5) == load(5, full=False) == (5, 1, False, 1)
    assert load(5, 2) == (5, 2, False, 2)
    assert load(5, full=True) == (5, 1, True, 3)
    assert counted.calls == 3


def test_a_coroutine_function_is_called_once_for_the_same_arguments(cache: Cache) -> None:
    counted = Counted()

    @cached(ttl=60, key="user:{user_id}", cache=cache)
    async def load(user_id: int) -> tuple[Any, ...]:
        await asyncio.sleep(0)
        return counted(user_id)

    async def main() -> None:
        assert await asyncio.gather(*[load(5) for _ in range(20)]) == [(5, 1)] * 20
        assert await load(user_id=5) == (5, 1)
        assert await load.refresh(5) == (5, 2)
        assert await load.forget(5) is True
        assert await load.forget(5) is False
        assert await load(5) == (5, 3)
        assert load.key(5) == "user:5"
        await cache.aclose()

    asyncio.run(main())


def test_threads_that_miss_together_compute_once(cache: Cache) -> None:
    counted = Counted()

    @cached(cache=cache)
    def load(number: int) -> tuple[Any, ...]:
        return counted(number)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(load, [7] * 50)) == {(7, 1)}


def test_forget_refresh_and_key_take_the_same_arguments(cache: Cache) -> None:
    counted = Counted()

    @cached(key="user:{user_id}:{page}", cache=cache)
    def load(user_id: int, page: int = 1) -> tuple[Any, ...]:
        return counted(user_id)

    assert load.key(5) == load.key(user_id=5, page=1) == "user:5:1"
    assert load(5) == (5, 1)
    assert cache.get("user:5:1") == (5, 1)
    assert load.refresh(user_id=5) == (5, 2)
    assert load(5) == (5, 2)
    assert load.forget(5, page=1) is True
    assert load.forget(5) is False
    assert load(5) == (5, 3)


def test_a_flushed_tag_kills_the_results_that_carry_it(cache: Cache) -> None:
    counted = Counted()

    @cached(tags=["users", "user:{user.id}"], key="user:{user.id}", cache=cache)
    def load(user: Any) -> tuple[Any, ...]:
        return counted(user.id)

    ada, grace = (type("User", (), {"id": number})() for number in (1, 2))
    assert (load(ada), load(grace)) == ((1, 1), (2, 2))
    cache.tags("user:1").flush()
    assert (load(ada), load(grace)) == ((1, 3), (2, 2))
    cache.tags("users").flush()
    assert (load(ada), load(grace)) == ((1, 4), (2, 5))


def test_what_the_function_raises_passes_through_and_is_not_kept(cache: Cache) -> None:
    @cached(cache=cache)
    def load(ok: bool) -> str:
        if not ok:
            raise LookupError("no such user")
        return "value"

    with pytest.raises(LookupError, match="no such user"):
        load(False)
    assert load(True) == "value"


def test_none_is_remembered(cache: Cache) -> None:
    counted = Counted()

    @cached(cache=cache)
    def load() -> None:
        counted()

    load()
    load()
    assert counted.calls == 1


def test_refresh_that_fails_leaves_nothing_old_behind(cache: Cache) -> None:
    broken = False

    @cached(cache=cache)
    def load() -> str:
        if broken:
            raise LookupError("gone")
        return "old"

    load()
    broken = True
    with pytest.raises(LookupError):
        load.refresh()
    with pytest.raises(LookupError):
        load()


def test_results_end_with_their_ttl_and_are_kept_for_grace() -> None:
    now = 1_700_000_000.0
    cache = Cache("memory://", clock=lambda: now)
    broken = False

    @cached(ttl="10s", grace="1h", cache=cache)
    def load() -> float:
        if broken:
            raise LookupError("gone")
        return now

    first = load()
    now += 11
    assert load() == now != first
    last = now
    now += 11
    broken = True
    assert load() == last
    now += 3601
    with pytest.raises(LookupError):
        load()


def test_a_pair_as_ttl_gives_a_late_value_at_once() -> None:
    now = 1_700_000_000.0
    cache = Cache("memory://", clock=lambda: now)
    computed: list[float] = []

    @cached(ttl=(60, 600), key="late", cache=cache)
    async def load() -> float:
        computed.append(now)
        return now

    async def main() -> None:
        nonlocal now
        first = await load()
        now += 61
        assert await load() == first
        while len(computed) < 2:  # noqa: ASYNC110  # nobody says when it is done
            await asyncio.sleep(0)

    asyncio.run(main())
    assert cache.get("late") == now


def test_the_options_of_remember_are_passed_on(cache: Cache) -> None:
    counted = Counted()

    @cached(none_ttl=0, cache=cache)
    def load() -> None:
        counted()

    load()
    load()
    assert counted.calls == 2


# Methods


class Shop:
    """A class whose methods are cached; each test gives it a cache."""

    cache: Cache
    calls = 0

    def __init__(self, name: str = "") -> None:
        self.name = name

    @cached(key="price:{self.name}:{book}", cache=lambda: Shop.cache)
    def price(self, book: int) -> tuple[str, int]:
        Shop.calls += 1
        return self.name, book

    @cached(cache=lambda: Shop.cache)
    async def stock(self, book: int) -> tuple[str, int]:
        Shop.calls += 1
        return type(self).__name__, book

    @cached(cache=lambda: Shop.cache)
    @classmethod
    def find(cls, book: int) -> tuple[str, int]:
        Shop.calls += 1
        return cls.__name__, book

    @classmethod
    @cached(cache=lambda: Shop.cache)
    def find_too(cls, book: int) -> tuple[str, int]:
        return cls.__name__, book

    @cached(cache=lambda: Shop.cache)
    @staticmethod
    def tax(book: int) -> int:
        Shop.calls += 1
        return book * 2

    @staticmethod
    @cached(cache=lambda: Shop.cache)
    def tax_too(book: int) -> int:
        return book * 2


class BookShop(Shop):
    """What it inherits is cached apart."""


@pytest.fixture
def shops(cache: Cache) -> type[Shop]:
    Shop.cache = cache
    Shop.calls = 0
    return Shop


def test_a_method_may_use_its_object_in_the_key(shops: type[Shop]) -> None:
    one, other = Shop("one"), Shop("other")
    assert one.price(5) == one.price(book=5) == Shop("one").price(5) == ("one", 5)
    assert other.price(5) == ("other", 5)
    assert shops.calls == 2
    assert one.price.key(5) == Shop.price.key(one, 5) == "price:one:5"
    assert one.price.forget(5) is True
    assert other.price.forget(6) is False
    one.price(5)
    assert shops.calls == 3
    one.price.refresh(5)
    assert shops.calls == 4


def test_without_a_key_the_class_of_a_methods_object_counts_and_the_object_does_not(shops: type[Shop]) -> None:
    async def main() -> None:
        assert await Shop("one").stock(5) == await Shop("other").stock(5) == ("Shop", 5)
        assert await BookShop().stock(5) == ("BookShop", 5)
        assert await Shop().stock.forget(5) is True
        await shops.cache.aclose()

    asyncio.run(main())
    assert shops.calls == 2


def test_class_methods_of_subclasses_are_cached_apart(shops: type[Shop]) -> None:
    assert Shop.find(5) == Shop().find(5) == ("Shop", 5)
    assert BookShop.find(5) == BookShop().find(5) == ("BookShop", 5)
    assert shops.calls == 2
    assert Shop.find.key(5) != BookShop.find.key(5)
    assert Shop.find.forget(5) is True
    assert BookShop.find_too(5) == ("BookShop", 5)
    assert Shop.find_too(5) == ("Shop", 5)


def test_static_methods_are_cached(shops: type[Shop]) -> None:
    assert Shop.tax(5) == Shop().tax(5) == BookShop.tax(book=5) == 10
    assert shops.calls == 1
    assert Shop().tax.forget(5) is True
    assert Shop.tax_too(5) == Shop().tax_too(5) == 10
    assert Shop.tax_too.key(5) == Shop().tax_too.key(5)


# Keys


def test_a_key_without_a_template_is_the_name_and_all_arguments(memory: Cache) -> None:
    @cached(cache=memory, namespace="books")
    def search(words: str, page: int = 1, *more: int, **filters: str) -> None: ...

    name = f"books:{search.__module__}.{search.__qualname__}"
    assert search.key("ada") == search.key(words="ada", page=1)
    assert search.key("ada").startswith(f"{name}('ada',1,")
    assert search.key("ada", a="1", b="2") == search.key("ada", b="2", a="1")
    keys = {
        search.key(*arguments)
        for arguments in [("ada",), ("ada", 2), ("ada", 1, 2), ("ada", 1, 2, 3), ("ada,1",), ("ada", "1")]  # type: ignore[arg-type]
    }
    assert len(keys) == 6
    assert len(search.key("x" * 10_000)) <= 250
    assert search.key("x" * 10_000) != search.key("x" * 9_999)


@dataclass
class Query:
    words: str
    secret: str = field(default="", repr=False)


DIFFERENT = [
    1, "1", 1.0, True, None, b"1", Decimal(1), (1,), [1], {1}, {"1": 1}, {1: 1}, "None", "", (), [], ((1,), ()), 2**70,
    UUID(int=1), dt.date(2026, 1, 1), dt.datetime(2026, 1, 1), "2026-01-01", float("inf"), -0.5,
    Query("a"), Query("b"), Query("a", secret="s"), {"words": "a", "secret": ""}, "\n", "\\n", "💶",
]  # fmt: skip


def test_arguments_that_differ_in_value_or_type_have_different_keys(memory: Cache) -> None:
    @cached(cache=memory)
    def load(argument: Any) -> None: ...

    keys = [load.key(argument) for argument in DIFFERENT]
    assert len(set(keys)) == len(DIFFERENT)
    assert all(check_key(key) for key in keys)
    assert load.key({"a", "b", "c"}) == load.key({"c", "b", "a"}) == load.key(frozenset("abc"))


@cached
def pair(one: str, other: str) -> None: ...


@given(st.lists(st.tuples(st.text(), st.text()), min_size=2, max_size=2, unique=True))
def test_no_two_texts_have_the_same_key(pairs: list[tuple[str, str]]) -> None:
    first, second = (pair.key(*texts) for texts in pairs)
    assert first != second
    check_key(first)


TEXTS = st.text("aw:%-h#/ \n", max_size=4)


@pytest.mark.parametrize("separator", [":", "-", "h", " ", "#", "::", "a:", "/%"])
@pytest.mark.parametrize("conversion", ["", "!r"])
def test_no_argument_can_pass_for_a_part_of_another_key(separator: str, conversion: str) -> None:
    cache = Cache("memory://")

    @cached(key=f"w{{one{conversion}}}{separator}{{other{conversion}}}", cache=cache)
    def load(one: Any, other: Any) -> list[Any]:
        return [one, other]

    @given(TEXTS, TEXTS, TEXTS)
    @example("a", "a", "a")
    def wherever_the_text_is_divided(begin: str, middle: str, end: str) -> None:
        for one, other in [(f"{begin}{separator}{middle}", end), (begin, f"{middle}{separator}{end}")]:
            assert load(one, other) == [one, other]
            assert cache.has(load.key(one, other))

    wherever_the_text_is_divided()


def test_no_argument_can_pass_for_the_hash_of_longer_ones(memory: Cache) -> None:
    @cached(key="{words}#{page}", cache=memory)
    def search(words: str, page: str) -> str:
        return page

    assert search("a" * 2000, "1") == "1"
    begin, _, digest = search.key("a" * 2000, "1").rpartition("#")
    assert search(begin, digest) == digest


@given(st.one_of(st.integers(), st.floats(), st.dates(), st.datetimes(), st.text("-5:", max_size=3)), st.integers())
def test_negative_numbers_and_dates_do_not_run_into_each_other(one: Any, other: int) -> None:
    assert dashed(one, "", other) == [one, "", other]
    assert dashed("", one, other) == ["", one, other]


@cached(key="{one}-{two}-{three}", cache=Cache("memory://"))
def dashed(one: Any, two: Any, three: Any) -> list[Any]:
    return [one, two, three]


def test_a_colon_in_an_argument_does_not_lead_into_another_template(memory: Cache) -> None:
    @cached(key="user:{user_id}", cache=memory)
    def user(user_id: str) -> str:
        return "user"

    @cached(key="user:{user_id}:posts", cache=memory)
    def posts(user_id: str) -> str:
        return "posts"

    assert posts("5") == "posts"
    assert user("5:posts") == "user"
    assert user.key("5:posts") == "user:5%3Aposts"
    assert user.key("ada@example.org") == "user:ada@example.org"


@pytest.mark.parametrize("template", ["{one}{other}", "{one}0{other}", "{one}%{other}"])
def test_a_template_that_cannot_tell_its_fields_apart_is_refused(memory: Cache, template: str) -> None:
    with pytest.raises(ConfigError, match=r"nothing tells two of its fields apart.*put a colon"):

        @cached(key=template, cache=memory)
        def load(one: int, other: int) -> None: ...


@given(st.text(min_size=1, max_size=40), st.integers(10, 60))
def test_fitting_a_text_gives_a_key_and_no_text_can_pass_for_another_one(text: str, longest: int) -> None:
    longest += 33
    fitted = fit(text, longest)
    assert len(check_key(fitted)) <= longest
    assert fitted == text or fit(fitted, longest) != fitted


def test_templates_take_attributes_items_conversions_and_formats(memory: Cache) -> None:
    @cached(key="{day:%Y-%m}:{user.name}:{words!r}:{row[0]}:{row[b]}:{{}}", namespace="n", cache=memory)
    def load(day: dt.date, user: Any, words: str, row: Any = {0: "x", "b": "y"}) -> None: ...  # noqa: B006

    user = type("User", (), {"name": "Ada"})()
    assert load.key(dt.date(2026, 11, 21), user, "it's") == """n:2026-11:Ada:"it's":x:y:{}"""


def test_what_a_user_typed_can_always_be_part_of_a_key(cache: Cache) -> None:
    counted = Counted()

    @cached(key="search:{words}", cache=cache)
    def search(words: str) -> tuple[Any, ...]:
        return counted()

    for words in ("a\nb", "\x00", "x" * 5000, "\x01tag:books", "\ud800", "no\u00a0break"):
        assert search(words) == search(words)
    assert counted.calls == 6


class Session:
    """Shows as a memory address."""


def test_an_argument_that_shows_as_a_memory_address_is_refused_with_advice(memory: Cache) -> None:
    @cached(cache=memory)
    def all_arguments(db: Any, user_id: int) -> int:
        return user_id

    @cached(key="{db}:{user_id}", cache=memory)
    def template(db: Any, user_id: int) -> int:
        return user_id

    @cached(key="user:{user_id}", cache=memory)
    def left_out(db: Any, user_id: int) -> int:
        return user_id

    with pytest.raises(
        TypeError, match=r"all_arguments\(\): the argument 'db' is a Session.*@cached\(key='…\{db\.id\}'"
    ):
        all_arguments(Session(), 5)
    with pytest.raises(TypeError, match=r"template\(\): \{db\} is a Session.*memory address.*\{db\.id\}"):
        template(Session(), 5)
    with pytest.raises(TypeError, match="memory address"):
        template([Session()], 5)
    assert left_out(Session(), 5) == left_out(Session(), 5) == 5


def test_a_secret_whose_text_hides_it_is_refused_in_a_template(memory: Cache) -> None:
    @cached(key="session:{token}", cache=memory)
    def load_session(token: object) -> str:
        return "of one user"

    for secret in (SecretStr("alice's"), SecretBytes(b"alice's"), (1, SecretStr("alice's"))):
        with pytest.raises(TypeError, match=r"load_session\(\): \{token\} is a .*would share a key"):
            load_session(secret)


def test_an_argument_may_have_any_name(memory: Cache) -> None:
    @cached(cache=memory)
    def search(**filters: str) -> dict[str, str]:
        return filters

    names = dict.fromkeys(("self", "key", "cache", "made", "hit", "name"), "x")
    assert search(**names) == search(**names) == search.refresh(**names) == names
    assert search.forget(**names) is True


def test_missing_arguments_are_python_s_own_error(memory: Cache) -> None:
    @cached(key="user:{user_id}", cache=memory)
    def load(user_id: int) -> int:
        return user_id

    with pytest.raises(TypeError, match=r"load\(\) missing 1 required positional argument: 'user_id'"):
        load()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"load\(\) got an unexpected keyword argument 'name'"):
        load(5, name="x")  # type: ignore[call-arg]


# What is refused when decorating


def _load(user_id: int) -> int:
    return user_id


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": "user:{usr_id}"}, r"_load\(\) has no argument 'usr_id', which key=.* asks for; it has user_id"),
        ({"tags": ["user:{usr_id}"]}, r"no argument 'usr_id', which a tag='user:\{usr_id\}'"),
        ({"key": "user:{}"}, "must name an argument"),
        ({"key": "user:{0}"}, "must name an argument"),
        ({"key": "user:{user_id"}, "cannot be read"),
        ({"key": "user:{user_id!x}"}, "conversions"),
        ({"key": "user:{user_id:{user_id}}"}, "another field"),
        ({"key": "{__import__('os')}"}, "must name an argument"),
        ({"key": ""}, "must not be empty"),
        ({"key": 5}, "cannot be read"),
        ({"tags": "users"}, "several texts"),
        ({"ttl": "soon"}, "no length of time"),
        ({"ttl": (60, "soon")}, "no length of time"),
        ({"ttl": (60, 10)}, "too old to be fresh"),
        ({"ttl": (60, 600, 6000)}, "how long it may be given"),
        ({"ttl": (60, 600), "grace": 5}, "with it there is no grace"),
        ({"soft_timeout": "soon"}, "no length of time"),
        ({"hard_timeout": 0}, "needs some time"),
        ({"namespace": "a\nb"}, "control characters"),
        ({"cache": "redis://localhost"}, "give a Cache"),
    ],
    ids=str,
)  # fmt: skip
def test_options_that_make_no_sense_are_refused_at_once(memory: Cache, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cached(**{"cache": memory, **options})(_load)


def _generator() -> Iterator[int]:
    yield 1


async def _asynchronous_generator() -> Any:
    yield 1


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (_generator, "one by one.*a list"),
        (_asynchronous_generator, "one by one.*a list"),
        (cached(_load), "cached already"),
        (Session, "functions and methods"),
    ],
    ids=["generator", "asynchronous generator", "cached", "class"],
)
def test_what_cannot_be_cached_is_refused_at_once(function: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        cached(function)


@pytest.mark.parametrize(
    "nameless", [lambda: 5, partial(_load, 5), Counted().__call__], ids=["lambda", "partial", "bound method"]
)
def test_what_has_no_name_of_its_own_needs_a_key(memory: Cache, nameless: Any) -> None:
    with pytest.raises(ConfigError, match=r"no name that is its own.*give @cached a key"):
        cached(nameless)
    assert cached(key="given", cache=memory)(nameless).key() == "given"


def test_a_result_that_cannot_be_stored_is_an_error(memory: Cache) -> None:
    @cached(cache=memory)
    def load() -> object:
        return object()

    with pytest.raises(CodecError):
        load()


# What it looks like from outside


@cached(key="module:{number}")
def of_the_module(number: int) -> int:
    """Doubles a number."""
    return 2 * number


def test_it_looks_like_the_function_it_wraps(memory: Cache) -> None:
    assert of_the_module.__name__ == "of_the_module"
    assert of_the_module.__doc__ == "Doubles a number."
    assert list(inspect.signature(of_the_module).parameters) == ["number"]
    assert list(inspect.signature(Shop("one").price).parameters) == ["book"]
    assert Shop("one").price.__name__ == "price"
    assert "of_the_module" in repr(of_the_module)
    assert "Shop.price" in repr(Shop("one").price)
    with pytest.raises(AttributeError, match=r"Shop\.price.*no attribute 'forgot'"):
        Shop("one").price.forgot  # type: ignore[attr-defined]  # noqa: B018


def test_frameworks_see_whether_it_is_to_be_awaited() -> None:
    shop = Shop("one")
    assert all(map(inspect.iscoroutinefunction, [Shop.stock, shop.stock]))
    assert not any(map(inspect.iscoroutinefunction, [of_the_module, shop.price]))


def test_it_is_pickled_by_its_name(shops: type[Shop]) -> None:
    assert pickle.loads(pickle.dumps(Shop.price)) is Shop.price
    assert pickle.loads(pickle.dumps(Shop("one").price)).key(5) == "price:one:5"


def test_a_function_that_gives_the_cache_is_asked_with_each_call() -> None:
    caches = [Cache("memory://"), Cache("memory://")]
    counted = Counted()

    @cached(cache=lambda: caches[0])
    def load() -> tuple[Any, ...]:
        return counted()

    assert load() == (1,)
    caches.reverse()
    assert load() == (2,)
    caches.reverse()
    assert load() == (1,)


@pytest.mark.slow
@pytest.mark.parametrize("checked", ["decorated", "reads"])
def test_a_type_checker_sees_the_functions_own_types(checked: str) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", f"tests/typing/{checked}.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert told.stdout + told.stderr == ""
