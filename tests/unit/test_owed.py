"""What the server could not be told: how much of it is told at a time, and by how many."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from backburner.cache.owed import MOST, Owed
from backburner.cache.runtime import run
from backburner.errors import StoreUnavailable


class Told:
    """In the place of a store: notes what it is told."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.most = 0
        self.meanwhile: Callable[[], object] = lambda: None

    async def forget(self, keys: Sequence[str]) -> int:
        self.meanwhile()
        self.names += keys
        self.most = max(self.most, len(keys))
        return len(keys)

    flush_tags = forget

    async def flush(self) -> None:
        self.meanwhile()


@pytest.fixture
def owed() -> Owed:
    owed = Owed()
    owed.add(keys=tuple(map(str, range(MOST - 10))), tags=("a", "b"))
    return owed


def test_much_is_told_in_pieces_and_none_of_it_again_where_that_fails_half_way(owed: Owed) -> None:
    store: Any = Told()

    def fail_after_some() -> None:
        if len(store.names) > MOST / 2:
            store.meanwhile = lambda: None
            raise StoreUnavailable

    store.meanwhile = fail_after_some
    with pytest.raises(StoreUnavailable):
        run(owed.pay(store))
    assert owed.some
    run(owed.pay(store))
    assert not owed.some
    assert store.most <= 1000
    assert sorted(store.names) == sorted(["a", "b", *map(str, range(MOST - 10))])


@pytest.mark.parametrize("everything", [False, True])
def test_while_one_tells_much_the_others_do_without(owed: Owed, everything: bool) -> None:
    store: Any = Told()
    refused = []
    if everything:
        owed.add()

    def ask() -> None:
        with pytest.raises(StoreUnavailable, match="is being told"):
            run(owed.pay(store))
        refused.append(True)

    store.meanwhile = ask
    run(owed.pay(store))
    assert refused
    assert not owed.some
    owed.add(keys=("key",))
    store.meanwhile = lambda: None
    run(owed.pay(store))
    assert not owed.some


@pytest.mark.parametrize("again", [{"keys": ("key",)}, {"tags": ("tag",)}, {}], ids=["key", "tag", "everything"])
def test_what_is_owed_once_more_while_it_is_told_is_told_again(again: dict[str, tuple[str, ...]]) -> None:
    store: Any = Told()
    owed = Owed()
    owed.add(**again)
    store.meanwhile = lambda: owed.add(**again)
    run(owed.pay(store))
    assert owed.some
    store.meanwhile = lambda: None
    run(owed.pay(store))
    assert not owed.some
