"""Real servers besides the embedded one, for slow tests: Redis 7, PostgreSQL and RabbitMQ, as the machine has them.

Each is started on a free port, in a folder of its own, and is gone after the tests. One that is not installed
skips the test on a developer's machine; in CI (the variable CI is set) it fails it, for there it must be.
"""

import os
import pwd
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import kombu
import psycopg
import pytest
import redis
from psycopg import sql

from tests.processes import free_port

_DATABASE_NUMBERS = count(1)
_SLOTS = 16384


def missing(server: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"{server} is not installed, and in CI it must be")
    pytest.skip(f"{server} is not installed")


@contextmanager
def _server(
    command: Sequence[str], log: Path, *, stop: signal.Signals = signal.SIGINT, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, **options) as process,
    ):
        try:
            yield process
        except BaseException as error:
            error.add_note(f"$ {shlex.join(map(str, command))}\n{log.read_text(errors='replace')[-2000:]}")
            raise
        finally:
            process.send_signal(stop)  # SIGINT to PostgreSQL: do not wait for clients; to Redis: as SIGTERM
            process.wait(20)


@contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Redis server with these options of its command line, and its files in that folder."""
    program = shutil.which("redis-server") or missing("Redis")
    folder.mkdir(parents=True, exist_ok=True)
    common = ["--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    with _server([program, *options, *common], folder / "log") as process:
        yield process


@pytest.fixture(scope="session")
def redis7(tmp_path_factory: pytest.TempPathFactory, eventually: Any) -> Iterator[str]:
    """The URL of one Redis server for all tests. Take `redis7_url` instead."""
    port = free_port()
    with redis_server(tmp_path_factory.mktemp("redis7"), "--port", str(port)), redis.Redis(port=port) as client:
        eventually(lambda: answers(client), timeout=20)
        if (version := client.info("server")["redis_version"]) < "7":
            pytest.skip(f"Redis {version} is older than 7.0")
        yield f"redis://127.0.0.1:{port}/0"


@pytest.fixture
def redis7_url(redis7: str) -> str:
    """The URL of a Redis server, version 7 or newer, that holds nothing."""
    with redis.Redis.from_url(redis7) as client:
        client.flushall()
    return redis7


class Cluster:
    """Three nodes that share the slots among themselves."""

    def __init__(self, folder: Path, stack: ExitStack, eventually: Any) -> None:
        self._folder, self._stack, self._eventually = folder, stack, eventually
        self.ports: list[int] = []
        self.nodes: list[Any] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        for number in range(3):
            node = self._start()
            node.execute_command("CLUSTER ADDSLOTSRANGE", number * _SLOTS // 3, (number + 1) * _SLOTS // 3 - 1)
        self._introduce(1, 2)

    def _start(self) -> Any:
        port, gossip = free_port(), free_port()
        # Gossip goes over a second port; the usual one, 10,000 higher, may not exist or be taken.
        options = ["--cluster-enabled", "yes", "--cluster-port", str(gossip), "--cluster-node-timeout", "2000"]
        server = redis_server(self._folder / str(port), "--port", str(port), *options)
        self.processes.append(self._stack.enter_context(server))
        node = self._stack.enter_context(redis.Redis(port=port, decode_responses=True))
        self._eventually(lambda: answers(node), timeout=20)
        # Else all have the same, and settle that among themselves at some moment: a replica may ask for votes by an
        # epoch that the others know to be over, for ever.
        node.execute_command("CLUSTER SET-CONFIG-EPOCH", len(self.nodes) + 1)
        self.ports.append(port)
        self.nodes.append(node)
        return node

    def _introduce(self, *numbers: int) -> None:
        for number in numbers:
            gossip = self.nodes[number].config_get("cluster-port")["cluster-port"]
            self.nodes[0].execute_command("CLUSTER MEET", "127.0.0.1", self.ports[number], gossip)
        for node in self.nodes:
            self._eventually(lambda node=node: self._agrees(node), timeout=30)

    def add_replica(self, of: int) -> None:
        """Begin another node, which takes over from one if it dies."""
        replica = self._start()
        self._introduce(len(self.nodes) - 1)
        replica.execute_command("CLUSTER REPLICATE", self.nodes[of].execute_command("CLUSTER MYID"))
        self._eventually(lambda: replica.info("replication").get("master_link_status") == "up", timeout=30)

    @property
    def url(self) -> str:
        """Of all nodes."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in self.ports)

    def flush(self) -> None:
        """Remove everything."""
        for node in self.nodes:
            node.flushall()

    def keeper(self, slot: int) -> int:
        """The number of the node that keeps a slot, by its own account."""
        return next(n for n, node in enumerate(self.nodes) if answers(node) and slot in self._own(node))

    def begin_moving(self, slot: int, to: int) -> None:
        """Open a slot for a move to another node, key by key."""
        source, target = self.nodes[self.keeper(slot)], self.nodes[to]
        target.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", source.execute_command("CLUSTER MYID"))
        source.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", target.execute_command("CLUSTER MYID"))

    def move_keys(self, slot: int, to: int, *, but: int = 0) -> None:
        """Move what lies there, save some keys."""
        source = self.nodes[self.keeper(slot)]
        keys = source.execute_command("CLUSTER GETKEYSINSLOT", slot, 100_000)
        if moved := sorted(keys)[but:]:
            source.execute_command("MIGRATE", "127.0.0.1", self.ports[to], "", 0, 5000, "REPLACE", "KEYS", *moved)

    def move(self, slot: int, to: int) -> None:
        """Give a slot, empty by now, to the node that `begin_moving` was told.

        That node's epoch becomes the highest by it, so that no late gossip of the former keeper takes the slot back.
        """
        target = self.nodes[to].execute_command("CLUSTER MYID")
        for node in (self.nodes[to], *self.nodes):
            node.execute_command("CLUSTER SETSLOT", slot, "NODE", target)

    def has_all(self, replica: int, of: int) -> bool:
        """Whether a replica has everything that its master had when this was asked."""
        wanted = self.nodes[of].info("replication")["master_repl_offset"]
        return bool(self.nodes[replica].info("replication")["slave_repl_offset"] >= wanted)

    def _agrees(self, node: Any) -> bool:
        state = node.execute_command("CLUSTER INFO")
        return bool(state["cluster_state"] == "ok" and state["cluster_known_nodes"] == str(len(self.nodes)))

    def _own(self, node: Any) -> list[int]:
        [mine] = [told for told in node.execute_command("CLUSTER NODES").values() if "myself" in told["flags"]]
        return [slot for first, *last in mine["slots"] for slot in range(int(first), int((last or [first])[0]) + 1)]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, eventually: Any) -> Iterator[Cluster]:
    """One cluster for all tests. Take `cluster_url` instead, unless you need its nodes."""
    with ExitStack() as stack:
        yield Cluster(tmp_path_factory.mktemp("cluster"), stack, eventually)


@pytest.fixture
def cluster_url(cluster: Cluster) -> str:
    """The URL of a cluster that holds nothing."""
    cluster.flush()
    return cluster.url


def answers(client: Any) -> bool:
    """Whether a server is there and lets us in."""
    try:
        return bool(client.ping())
    except (redis.ConnectionError, redis.TimeoutError):
        return False


@pytest.fixture(scope="session")
def postgres(eventually: Any) -> Iterator[str]:
    """The URL of one PostgreSQL server for all tests. Take `postgres_url` instead."""
    programs = _postgres_programs() or missing("PostgreSQL")
    # It refuses to run as root, and its user may not enter pytest's own directories.
    account: dict[str, Any] = {}
    if os.geteuid() == 0:
        account = {"user": "postgres", "group": "postgres", "extra_groups": []}
    with tempfile.TemporaryDirectory(prefix="backburner-postgres-") as name:
        folder, port = Path(name), free_port()
        if account:
            owner = pwd.getpwnam("postgres")
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        subprocess.run(
            [programs / "initdb", "--pgdata", folder / "data", "--username", "tests", "--auth", "trust"],
            cwd=folder,
            capture_output=True,
            check=True,
            **account,
        )
        options = ["-D", str(folder / "data"), "-h", "127.0.0.1", "-p", str(port), "-k", name, "-F"]
        url = f"postgresql://tests@127.0.0.1:{port}"
        with _server([str(programs / "postgres"), *options], folder / "log", cwd=folder, **account):
            eventually(lambda: _accepts(f"{url}/postgres"), timeout=30)
            yield url


@pytest.fixture
def postgres_url(postgres: str) -> Iterator[str]:
    """The URL of a PostgreSQL database of its own that holds nothing."""
    name = f"test_{next(_DATABASE_NUMBERS)}"
    with psycopg.connect(f"{postgres}/postgres", autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield f"{postgres}/{name}"
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


class RabbitMQ:
    """A broker that speaks AMQP, for as long as the block lasts."""

    def __init__(self, folder: Path, stack: ExitStack, eventually: Any) -> None:
        # Debian's command on the PATH gives up root's rights and forgets the environment; this one does not.
        home = Path("/usr/lib/rabbitmq/bin")
        server = shutil.which("rabbitmq-server", path=f"{home}:{os.environ['PATH']}") or missing("RabbitMQ")
        epmd = shutil.which("epmd") or missing("Erlang")
        port, names = free_port(), free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{port}//"
        environment = os.environ | {
            "HOME": str(folder),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(names),
            "RABBITMQ_NODENAME": f"tests-{port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": str(folder / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none",
        }
        # SIGINT would be ignored by what does not ask for it, if the tests run in a shell's background.
        options: dict[str, Any] = {"cwd": folder, "env": environment, "stop": signal.SIGTERM}
        # Its name server is ours too: RabbitMQ would start one that outlives it.
        stack.enter_context(_server([epmd, "-port", str(names)], folder / "names.log", **options))
        self.process = stack.enter_context(_server([server], folder / "server.log", **options))
        eventually(lambda: _takes_clients(self.url), timeout=60)


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory, eventually: Any) -> Iterator[str]:
    """The URL of one RabbitMQ for all tests."""
    with ExitStack() as stack:
        yield RabbitMQ(tmp_path_factory.mktemp("rabbitmq"), stack, eventually).url


def _takes_clients(url: str) -> bool:
    try:
        with kombu.Connection(url, connect_timeout=2) as connection:
            connection.connect()
    except OSError:
        return False
    return True


def _postgres_programs() -> Path | None:
    # Debian keeps several versions side by side, and none of them on the PATH.
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda home: int(home.parent.name))
    on_path = [Path(found).resolve().parent for found in [shutil.which("initdb")] if found]
    return next((home for home in [*on_path, *reversed(debian)] if (home / "postgres").exists()), None)


def _accepts(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True
