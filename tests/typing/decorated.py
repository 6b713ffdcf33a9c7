"""Checked by type checkers, not run: what `@cached` and `@cached_response` make of a function's types. Each `ignore`
stands for an error that there must be, since an ignore without one is an error itself."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from typing import assert_type

from backburner import Cache, cached, cached_response

cache = Cache("memory://")


@cached(ttl=60, key="user:{user_id}", cache=cache)
def load(user_id: int, page: int = 1) -> list[str]:
    return [str(user_id), str(page)]


@cached
async def aload(user_id: int) -> dict[str, int]:
    return {"id": user_id}


@cached(ttl=60, typed=True, cache=cache)
async def typed(user_id: int) -> list[int]:
    return [user_id]


@cached(ttl=("1m", "10m"), soft_timeout=0.1, cache=cache.memo())
def once_per_request(user_id: int) -> bytes:
    return b""


@cached_response(ttl="1m", tags=["book:{book_id}"], vary_on="accept-language", cache=cache)
async def show(book_id: int) -> list[str]:
    return [str(book_id)]


@cached_response
def show_all(page: int = 1) -> str:
    return str(page)


class Shop:
    @cached(key="price:{book}", tags=["book:{book}"])
    def price(self, book: int) -> float:
        return book / 2

    @cached()
    async def stock(self, book: int) -> int:
        return book

    @staticmethod
    @cached()
    def tax(book: int) -> int:
        return book

    @cached()
    @staticmethod
    def rounded(price: float) -> int:
        return round(price)


async def main() -> None:
    assert_type(load(5), list[str])
    assert_type(load(5, page=2), list[str])
    assert_type(load.refresh(user_id=5), list[str])
    assert_type(load.forget(5), bool)
    assert_type(load.key(5), str)
    load("5")  # type: ignore[arg-type]
    load.forget()  # type: ignore[call-arg]
    load.key(5, nothing=1)  # type: ignore[call-arg]
    load.forgot(5)  # type: ignore[attr-defined]

    assert_type(await aload(5), dict[str, int])
    assert_type(await aload.refresh(5), dict[str, int])
    assert_type(await aload.forget(5), bool)
    assert_type(aload.key(5), str)
    await aload("5")  # type: ignore[arg-type]

    assert_type(once_per_request(5), bytes)
    assert_type(await typed(5), list[int])
    assert_type(cached(key="given", cache=lambda: cache)(load)(5), list[str])
    cached(grase="1h")  # type: ignore[call-overload]
    cached(hard_timeout=[])  # type: ignore[call-overload]

    assert_type(await show(5), list[str])
    assert_type(show_all(page=2), str)
    await show("5")  # type: ignore[arg-type]
    cached_response(ttl=[])  # type: ignore[call-overload]
    cached_response(tll="1m")  # type: ignore[call-overload]

    shop = Shop()
    assert_type(shop.price(5), float)
    assert_type(shop.price.forget(5), bool)
    assert_type(Shop.price(shop, 5), float)
    shop.price("5")  # type: ignore[arg-type]
    assert_type(await shop.stock(book=5), int)
    assert_type(await shop.stock.refresh(5), int)
    assert_type(Shop.tax(5), int)
    assert_type(Shop.rounded(5), int)
    assert_type(Shop.tax.key(5), str)
    cached(5)  # type: ignore[call-overload]
