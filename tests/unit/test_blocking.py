"""The blocking client: how threads share its connection, and that signals, forks and patience's end leave it usable."""

import contextlib
import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import redis

from backburner.redis import blocking, push
from backburner.redis.blocking import BlockingClient
from backburner.testing import FaultProxy
from tests.alarms import storm
from tests.conftest import Eventually


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[BlockingClient]:
    client = BlockingClient(proxy.url, timeout=5.0)
    client.execute_command("PING")
    yield client
    client.close()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(64) as threads:
        yield threads


def _ask(threads: ThreadPoolExecutor, client: BlockingClient, word: object) -> Future[Any]:
    return threads.submit(client.execute_command, "ECHO", word)


def test_threads_each_see_their_own_writes(client: BlockingClient, proxy: FaultProxy) -> None:
    def work(number: int) -> None:
        for step in range(100):
            assert client.execute_command("SET", f"key:{number}", f"{number}.{step}") == b"OK"
            assert client.execute_command("GET", f"key:{number}") == f"{number}.{step}".encode()

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(work, range(16))) == [None] * 16
    assert proxy.connections == 1


def test_what_is_asked_while_the_connection_is_busy_leaves_in_one_write(
    client: BlockingClient, proxy: FaultProxy, redis_url: str, threads: ThreadPoolExecutor, eventually: Eventually
) -> None:
    with redis.Redis.from_url(redis_url) as observer:
        before = observer.info("stats")["total_reads_processed"]
        proxy.stall()
        first = _ask(threads, client, "first")
        eventually(lambda: client._line._busy)
        others = [_ask(threads, client, number) for number in range(50)]
        eventually(lambda: len(client._line._waiting) == 50)
        proxy.pass_through()
        assert first.result() == b"first"
        assert [other.result() for other in others] == [b"%d" % number for number in range(50)]
        assert observer.info("stats")["total_reads_processed"] - before <= 4


@pytest.mark.parametrize("together", [True, False], ids=["read together", "one by one"])
def test_of_replies_that_come_together_each_caller_gets_its_own_and_errors_are_errors(
    client: BlockingClient,
    proxy: FaultProxy,
    threads: ThreadPoolExecutor,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
    *,
    together: bool,
) -> None:
    if not together:  # a redis-py that keeps its parser elsewhere
        monkeypatch.setattr(push, "parser_of", lambda _: None)
        client.close()
    client.execute_command("SET", "text", "no number")
    proxy.stall()
    first = _ask(threads, client, "first")
    eventually(lambda: client._line._busy)
    pipelines = []
    for number in range(30):
        pipeline = client.pipeline().execute_command("ECHO", number).execute_command("LRANGE", "absent", 0, -1)
        if number % 5 == 0:
            pipeline.execute_command("INCR", "text")
        pipelines.append(threads.submit(pipeline.execute))
    eventually(lambda: len(client._line._waiting) == 30)
    proxy.pass_through()
    assert first.result() == b"first"
    for number, one in enumerate(pipelines):
        if number % 5 == 0:
            with pytest.raises(redis.ResponseError, match="not an integer"):
                one.result()
        else:
            assert one.result() == [b"%d" % number, []]
    assert client.execute_command("ECHO", "in step") == b"in step"


def test_a_master_that_became_a_replica_is_left(client: BlockingClient, proxy: FaultProxy, redis_url: str) -> None:
    before = proxy.connections
    with redis.Redis.from_url(redis_url) as server:
        server.execute_command("REPLICAOF", "127.0.0.1", "1")
        try:
            with pytest.raises(redis.exceptions.ReadOnlyError):
                client.pipeline().execute_command("PING").execute_command("SET", "key", 1).execute()
        finally:
            server.execute_command("REPLICAOF", "NO", "ONE")
    assert client.execute_command("SET", "key", 1) == b"OK"
    assert proxy.connections == before + 1


def test_a_connection_lost_while_idle_costs_no_caller_an_error(
    client: BlockingClient, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocking, "_UNPROVEN", 0.0)
    for fault in (FaultProxy.refuse, FaultProxy.reset):
        before = proxy.connections
        fault(proxy)
        proxy.pass_through()
        assert client.execute_command("ECHO", "here") == b"here"
        assert client.execute_command("ECHO", "again") == b"again"
        assert proxy.connections == before + 1


@contextlib.contextmanager
def _interrupted_when(predicate: Any) -> Iterator[None]:
    """Ctrl-C, once that is so."""

    def interrupt() -> None:
        while not predicate():
            time.sleep(0.001)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    # Started in the background of a shell, a program ignores it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        yield
    thread.join()
    signal.signal(signal.SIGINT, before)


def test_an_interrupted_reader_leaves_no_reply_to_the_next_and_fails_at_once_whom_it_read_for(
    client: BlockingClient, proxy: FaultProxy, threads: ThreadPoolExecutor, eventually: Eventually
) -> None:
    client.execute_command("SET", "key", "old")
    proxy.stall()
    with _interrupted_when(lambda: client._line._busy):
        client.execute_command("GET", "key")
    blocked = _ask(threads, client, "blocked")
    eventually(lambda: client._line._busy)
    others = [_ask(threads, client, number) for number in range(3)]
    eventually(lambda: len(client._line._waiting) == 3)
    proxy.pass_through()  # the reply to GET comes too, to nobody
    assert [blocked.result(), *(other.result() for other in others)] == [b"blocked", b"0", b"1", b"2"]


def test_whoever_is_interrupted_while_waiting_harms_nobody(
    client: BlockingClient, proxy: FaultProxy, threads: ThreadPoolExecutor, eventually: Eventually
) -> None:
    proxy.stall()
    leader = _ask(threads, client, "leader")
    eventually(lambda: client._line._busy)
    with _interrupted_when(lambda: client._line._waiting):
        client.execute_command("ECHO", "interrupted")
    assert client._line._waiting == []
    last = _ask(threads, client, "last")
    proxy.pass_through()
    assert (leader.result(), last.result()) == (b"leader", b"last")
    assert proxy.connections == 1


@pytest.mark.parametrize("kind", [RuntimeError, SystemExit], ids=["an exception", "one that ends the program"])
def test_what_interrupts_one_thread_is_raised_in_no_other(
    client: BlockingClient, proxy: FaultProxy, threads: ThreadPoolExecutor, eventually: Eventually, kind: Any
) -> None:
    def interrupted(*_: object) -> None:
        others.extend(_ask(threads, client, number) for number in range(3))
        eventually(lambda: len(client._line._waiting) == 3)
        raise kind("this thread's")

    others: list[Future[Any]] = []
    client.execute_command("PING")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client._line._reader, "wait", interrupted)
        with pytest.raises(kind, match="this thread's"):
            client.execute_command("PING")
    assert [other.result() for other in others] == [b"0", b"1", b"2"]


# redis-py leaves sockets to the garbage collector whose connecting was interrupted.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_signals_that_strike_anywhere_leave_the_client_in_step_and_usable(
    redis_url: str, threads: ThreadPoolExecutor
) -> None:
    client = BlockingClient(redis_url, timeout=5.0)
    over = threading.Event()

    def work(number: int) -> int:
        count = 0
        while not over.is_set():
            # Whom the interrupted thread was reading for gets an error, never a wrong reply.
            with contextlib.suppress(redis.ConnectionError):
                assert client.execute_command("ECHO", f"{number}.{count}") == f"{number}.{count}".encode()
            count += 1
        return count

    def ask() -> None:
        for number in range(20):
            assert client.execute_command("ECHO", number) == b"%d" % number

    working = [threads.submit(work, number) for number in range(3)]
    try:
        assert storm(ask, 0.5) > 50
    finally:
        over.set()
    assert all(one.result(10) for one in working)
    assert client.execute_command("ECHO", "in step") == b"in step"
    assert not client._line._busy
    client.close()


def test_who_waits_for_a_thread_that_is_stuck_waits_two_budgets(
    redis_url: str, threads: ThreadPoolExecutor, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = BlockingClient(redis_url, timeout=0.1)
    resolved, connect = threading.Event(), redis.Connection.connect

    def resolve_and_connect(connection: Any) -> None:
        resolved.wait()  # as a name server may keep one waiting, whom no timeout bounds
        connect(connection)

    monkeypatch.setattr(redis.Connection, "connect", resolve_and_connect)
    stuck = _ask(threads, client, "stuck")
    eventually(lambda: client._line._busy)
    began = time.monotonic()
    with pytest.raises(redis.TimeoutError):
        client.execute_command("PING")
    assert time.monotonic() - began < 2
    assert client._line._waiting == []
    resolved.set()
    assert stuck.result() == b"stuck"
    assert client.execute_command("ECHO", "next") == b"next"
    client.close()


def _child(client: BlockingClient, answers: Any) -> None:
    answers.send([client.execute_command("CLIENT", "ID"), client.execute_command("ECHO", "child")])


def test_a_forked_child_has_a_connection_of_its_own_even_if_the_parents_is_busy(
    client: BlockingClient, proxy: FaultProxy, threads: ThreadPoolExecutor, eventually: Eventually
) -> None:
    mine_id = client.execute_command("CLIENT", "ID")
    proxy.stall()
    busy = _ask(threads, client, "parent")
    eventually(lambda: client._line._busy)
    fork = multiprocessing.get_context("fork")
    mine, theirs = fork.Pipe()
    child = fork.Process(target=_child, args=(client, theirs))
    child.start()
    proxy.pass_through()
    assert busy.result() == b"parent"
    assert mine.poll(10)
    child_id, echo = mine.recv()
    assert child_id != mine_id
    assert echo == b"child"
    child.join(10)
    assert child.exitcode == 0
    assert client.execute_command("CLIENT", "ID") == mine_id
    mine.close()
    theirs.close()


def test_no_thread_of_a_forked_child_takes_the_parents_connection(
    client: BlockingClient, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    parents = client.execute_command("CLIENT", "ID")
    line, others = blocking._Line, []

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(blocking, "_Line", line)
        others.append(threads.submit(client.execute_command, "CLIENT", "ID").result(5))
        return line(*arguments)

    monkeypatch.setattr(blocking, "_Line", overtaken)
    client._pid = 0  # as a child would find it
    assert parents not in {client.execute_command("CLIENT", "ID"), *others}
