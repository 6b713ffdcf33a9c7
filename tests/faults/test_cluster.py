"""A cluster of real nodes: a cache follows its slot from one to another, and so do its copies."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot

from backburner import Cache
from backburner.errors import StoreUnavailable
from tests.conftest import Eventually
from tests.contract.conftest import Asynchronous, through
from tests.processes import free_port
from tests.servers import Cluster

pytestmark = pytest.mark.slow

PREFIX = "{clustered}:"
SLOT = key_slot(b"clustered")


@pytest.fixture(params=["blocking", "asyncio"])
def cache(request: pytest.FixtureRequest, cluster_url: str) -> Iterator[Any]:
    yield from through(request.param, Cache(cluster_url, prefix=PREFIX, timeout=1.0))


def test_all_of_a_cache_lies_on_one_node(cache: Any, cluster: Cluster) -> None:
    assert cache.tags("books").put_many({f"key:{number}": number for number in range(100)})
    assert cache.lock("import").acquire()
    sizes = [node.dbsize() for node in cluster.nodes]
    assert sorted(sizes) == [0, 0, 102]
    assert sizes[cluster.keeper(SLOT)] == 102
    cache.flush()
    assert cache.get("key:1") is None


def test_a_slot_that_moves_takes_the_cache_and_its_copies_along(
    cache: Any, cluster: Cluster, eventually: Eventually
) -> None:
    assert cache.put("key", "value")
    eventually(lambda: cache.stats().tracking == "tracking" and cache.get("key") and cache.stats().memory_items)
    before = cluster.keeper(SLOT)
    cluster.begin_moving(SLOT, (before + 1) % 3)
    cluster.flush()
    cluster.move(SLOT, (before + 1) % 3)
    with closing(Cache(cluster.url, prefix=PREFIX, l1=False)) as other:
        eventually(lambda: other.put("key", "elsewhere"))
        eventually(lambda: cache.get("key") == "elsewhere")
        assert cluster.keeper(SLOT) != before
        assert cluster.nodes[before].dbsize() == 0
        eventually(lambda: _hears(cache, other), timeout=15)


def test_while_a_slot_is_moved_key_by_key_nothing_breaks_and_nothing_removed_comes_back(
    cache: Any, cluster: Cluster, eventually: Eventually
) -> None:
    values = {f"key:{number}": number for number in range(40)}
    with closing(Cache(cluster.url, prefix=PREFIX, timeout=1.0)) as other:
        assert cache.put_many(values)
        assert cache.tags("books").put("tagged", "of before")
        eventually(lambda: cache.stats().tracking == "tracking" and other.many(values) == values)
        to = (cluster.keeper(SLOT) + 1) % 3
        cluster.begin_moving(SLOT, to)
        cluster.move_keys(SLOT, to, but=20)
        for key, value in values.items():  # half of them are here, half of them there
            assert cache.get(key) in (value, None)
            assert cache.remember(key, 60, lambda value=value: value) == value
        assert cache.many(values).items() <= values.items()
        for number in range(0, 40, 4):
            cache.forget(f"key:{number}")
            assert cache.get(f"key:{number}") is None
            cache.put(f"key:{number + 1}", "new")
            assert cache.get(f"key:{number + 1}") in ("new", None)
        cache.add("added", 1)
        cache.increment("counted")
        cache.touch("key:2", 60)
        cache.expire("key:3")
        cache.pull("key:3")
        cache.tags("books").flush()
        assert cache.get("tagged") is None
        cluster.move_keys(SLOT, to)
        cluster.move(SLOT, to)
        eventually(lambda: cache.put("after", 1), timeout=20)
        assert cache.get("tagged") is None
        for number in range(0, 40, 4):
            assert cache.get(f"key:{number}") is None
            assert cache.get(f"key:{number + 1}") in ("new", None)
            assert cache.get(f"key:{number + 2}") in (number + 2, None)
        eventually(lambda: other.get("after") == 1, timeout=20)
        eventually(lambda: not any(f"key:{number}" in other.many(values) for number in range(0, 40, 4)))
        assert other.get("tagged") is None
        eventually(lambda: _hears(cache, other), timeout=15)


def test_a_replica_that_takes_over_takes_the_cache_over(tmp_path: Path, eventually: Eventually) -> None:
    with ExitStack() as stack:
        cluster = Cluster(tmp_path, stack, eventually)  # one of its own, since it loses a node
        keeper = cluster.keeper(SLOT)
        cluster.add_replica(of=keeper)
        cache = stack.enter_context(closing(Cache(cluster.url, prefix=PREFIX, timeout=1.0)))
        other = stack.enter_context(closing(Cache(cluster.url, prefix=PREFIX, timeout=1.0)))
        loop = stack.enter_context(asyncio.Runner()).get_loop()
        asynchronous = Asynchronous(cache, loop)
        assert cache.put("key", "value")
        assert asynchronous.get("key") == "value"
        eventually(lambda: cache.stats().tracking == "tracking" and cache.get("key") and cache.stats().memory_items)
        eventually(lambda: cluster.has_all(replica=3, of=keeper))
        cluster.processes[keeper].kill()
        assert cache.remember("computed", 60, lambda: "without the server") == "without the server"
        cache.forget("key")  # which it is told as soon as there is somebody to tell
        assert cache.get("key") is None
        eventually(lambda: cache.put("after", 1), timeout=30)
        assert cluster.keeper(SLOT) == 3
        assert (cache.get("key"), other.get("key")) == (None, None)
        eventually(lambda: asynchronous.put("later", 2), timeout=10)
        assert asynchronous.get("after") == 1
        eventually(lambda: _hears(cache, other), timeout=15)
        loop.run_until_complete(cache.aclose())


def _hears(cache: Any, other: Cache) -> bool:
    """Whether a copy here is dropped when another process writes."""
    mark = str(time.monotonic())
    if not (other.put("heard", "old") and cache.get("heard") == "old" and other.put("heard", mark)):
        return False
    until = time.monotonic() + 1
    while time.monotonic() < until:
        if cache.get("heard") == mark:
            return bool(cache.stats().memory_items)
    return False


def test_a_node_that_is_away_does_not_matter_if_another_can_be_asked(cluster: Cluster) -> None:
    url = f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{cluster.ports[0]}"
    with closing(Cache(url, prefix=PREFIX, strict=True, l1=False)) as cache:
        assert cache.put("key", 1)


@pytest.mark.parametrize("verb", ["get", "aget"])
def test_where_no_node_answers_the_message_names_them(verb: str) -> None:
    port = free_port()
    cache = Cache(f"redis+cluster://:secret@127.0.0.1:{port}", prefix=PREFIX, strict=True, l1=False)

    async def call() -> None:
        if verb == "get":
            cache.get("key")
        await cache.aget("key")

    with pytest.raises(StoreUnavailable, match=rf"no node of the cluster at 127.0.0.1:{port} answers") as caught:
        asyncio.run(call())
    assert "secret" not in str(caught.value)


def test_a_slot_that_nobody_keeps_is_a_server_that_is_away(cluster: Cluster, eventually: Eventually) -> None:
    keeper = cluster.nodes[cluster.keeper(SLOT)]
    cluster.flush()
    with closing(Cache(cluster.url, prefix=PREFIX, l1=False)) as cache:
        assert cache.put("key", 1)
        keeper.flushall()
        keeper.execute_command("CLUSTER DELSLOTS", SLOT)
        try:
            eventually(lambda: not cache.put("key", 1))
            assert cache.remember("key", 60, lambda: "computed") == "computed"
        finally:
            keeper.execute_command("CLUSTER ADDSLOTS", SLOT)
        eventually(lambda: cache.put("key", 1), timeout=20)
