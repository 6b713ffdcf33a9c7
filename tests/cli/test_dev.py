"""`backburner dev` with real processes: what it starts, and that nothing of it is ever left."""

import json
import os
import re
import shutil
import signal
import smtplib
import socket
import time
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from backburner.cli.family import Family
from tests.cli.processes import Dev, get, processes_of
from tests.processes import free_port

Start = Callable[..., Dev]


def test_everything_runs_and_ctrl_c_ends_all_of_it_in_order(with_celery: Path, dev: Start) -> None:
    running = dev()
    running.wait_for("ready in")
    assert get(running.where("api")) == b'"hello"'
    assert b"OK" in get(f"{running.where('flower')}/healthcheck")
    assert 'app = "main:app"  celery = "main:celery"' in running.output
    with redis.Redis.from_url(running.where("valkey")) as client:
        assert client.ping()

    running.signal(signal.SIGINT)
    assert running.end() == 0
    assert not processes_of(with_celery)
    assert running.lines[-1].endswith("stopped")
    assert re.search(r"api .*Finished server process(.|\n)*worker .*Warm shutdown", running.output)
    assert (with_celery / ".backburner" / ".gitignore").read_text() == "*\n"


@pytest.mark.slow
def test_a_changed_schedule_is_followed_also_after_one_that_does_not_start(with_celery: Path, dev: Start) -> None:
    main = with_celery / "main.py"
    before = main.read_text()
    running = dev()
    running.wait_for("ready in")
    main.write_text(f"{before}\nraise RuntimeError('half a thought')\n")
    running.wait_for("beat .*half a thought")
    main.write_text(f"{before}\ncelery.add_periodic_task(0.1, brew.s('green'))\n")
    running.wait_for("beat .*Sending due task .*brew")
    running.signal(signal.SIGINT)
    assert running.end() == 0
    assert not processes_of(with_celery)


def test_what_is_mailed_can_be_read_at_a_url(dev: Start) -> None:
    running = dev()
    port = urlsplit(running.wait_for(r"smtp://\S+")[0]).port
    assert port
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "shop@example.com", "ada@example.com", "Grüße"
    message.set_content("Welcome, Ada")
    with smtplib.SMTP("127.0.0.1", port, timeout=5) as client:
        client.send_message(message)
    page = running.where("mail")
    [mail] = json.loads(get(f"{page}/api/messages"))
    assert (mail["subject"], mail["recipients"]) == ("Grüße", ["ada@example.com"])
    assert b"Welcome, Ada" in get(f"{page}/messages/{mail['id']}")


def freeze(project: Path) -> None:
    """Stop the programs in their tracks, so that they cannot end when they are asked to."""
    for process in Family.of_directory(project / ".backburner").members():
        process.suspend()


def test_a_second_ctrl_c_ends_all_at_once(project: Path, dev: Start) -> None:
    running = dev()
    running.wait_for("ready in")
    freeze(project)
    running.signal(signal.SIGINT)
    running.wait_for("stopping")
    began = time.monotonic()
    running.signal(signal.SIGINT)
    assert running.end() == 0
    assert time.monotonic() - began < 3.5, "sooner than after one"
    assert not processes_of(project)


@pytest.mark.slow
def test_what_does_not_end_is_killed_soon(project: Path, dev: Start) -> None:
    running = dev()
    running.wait_for("ready in")
    freeze(project)
    began = time.monotonic()
    running.signal(signal.SIGTERM)
    assert running.end() == 0
    assert time.monotonic() - began < 10, "five seconds, on a machine that has nothing else to do"
    assert not processes_of(project)


@pytest.mark.slow
def test_what_a_killed_parent_left_is_ended_and_its_server_taken_over(project: Path, dev: Start) -> None:
    first = dev()
    first.wait_for("ready in")
    with redis.Redis.from_url(first.where("valkey")) as client:
        client.set("kept", "yes")
    left = Family.of_directory(project / ".backburner").members()
    assert left
    freeze(project)
    first.signal(signal.SIGKILL)
    first.end()
    second = dev()
    second.wait_for("taken over")
    second.wait_for("ready in")
    with redis.Redis.from_url(second.where("valkey")) as client:
        assert client.get("kept") == b"yes"
    assert not {process.pid for process in left} & {process.pid for process in processes_of(project)}
    second.signal(signal.SIGTERM)
    assert second.end() == 0
    assert not processes_of(project)


@pytest.mark.slow
def test_a_server_that_crashes_is_started_again_with_what_it_kept(project: Path, dev: Start) -> None:
    running = dev()
    running.wait_for("ready in")
    with redis.Redis.from_url(running.where("valkey")) as client:
        client.set("kept", "yes")
        client.execute_command("WAITAOF", 1, 0, 2000)
        pid = client.info("server")["process_id"]
    os.kill(pid, signal.SIGKILL)
    running.wait_for("it ended; starting it again")
    running.wait_for("it runs again")
    with redis.Redis.from_url(running.where("valkey")) as client:
        assert client.get("kept") == b"yes"
    running.signal(signal.SIGTERM)
    assert running.end() == 0
    assert not processes_of(project)


@pytest.mark.slow
def test_a_guard_ends_what_a_killed_parent_left_even_if_nobody_starts_again(
    project: Path, dev: Start, eventually: Callable[..., object]
) -> None:
    running = dev()
    running.wait_for("ready in")
    running.signal(signal.SIGKILL)
    eventually(lambda: len(processes_of(project)) == 1)
    assert [process.name() for process in processes_of(project)] == ["valkey-server"]


@pytest.mark.slow
def test_a_second_one_in_the_same_project_is_refused_and_the_first_goes_on(project: Path, dev: Start) -> None:
    first = dev()
    first.wait_for("ready in")
    second = dev()
    assert second.end() == 1
    assert f"as process {first.pid}" in second.output
    assert get(first.where("api")) == b"hello"


def test_a_busy_port_means_the_next_one_and_is_said(dev: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        running = dev("--port", str(port))
        said = running.wait_for(rf"Port {port} is busy: the API is at (\d+)")
        assert int(said[1]) > port  # the next one, if that is not taken by somebody else


def test_a_named_server_that_does_not_answer_is_said_in_one_sentence_and_nothing_starts(
    project: Path, dev: Start
) -> None:
    running = dev(REDIS_URL=f"redis://:secret@127.0.0.1:{free_port()}/0")
    assert running.end() == 1
    assert "does not answer" in running.output
    assert len(running.lines) == 1
    assert "secret" not in running.output
    assert not processes_of(project)


def test_a_named_server_is_used(redis_url: str, dev: Start, project: Path) -> None:
    running = dev(REDIS_URL=redis_url)
    running.wait_for("yours, named in the settings")
    assert "valkey-server" not in {process.name() for process in processes_of(project)}


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("REDIS_PORT", "soon", "REDIS_PORT='soon':"),
        ("CACHE_SERIALIZER", "pickle", "CACHE_SERIALIZER=pickle needs CACHE_SIGNING_KEY"),
    ],
)
def test_a_wrong_setting_is_said_and_nothing_starts(dev: Start, name: str, value: str, says: str) -> None:
    running = dev(**{name: value})
    assert running.end() == 1
    assert running.lines[0].startswith(says)


@pytest.mark.slow
def test_of_two_projects_that_start_at_once_each_has_its_own_ports(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other") / "with spaces"
    shutil.copytree(project, other)
    (other / "main.py").write_text((project / "main.py").read_text().replace("hello", "other"))
    port = str(free_port())
    started = [Dev(directory, "--port", port, REDIS_PORT=str(free_port())) for directory in (project, other)]
    try:
        for running in started:
            running.wait_for("ready in")
        assert {get(running.where("api")) for running in started} == {b"hello", b"other"}
    finally:
        for running in started:
            running.stop()


@pytest.mark.slow
@pytest.mark.parametrize("host", ["::1", "::"])
def test_the_api_listens_at_addresses_of_the_newer_kind(dev: Start, host: str) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    running = dev("--host", host)
    running.wait_for("ready in")
    assert running.where("api").startswith("http://[::1]:")
    assert get(running.where("api")) == b"hello"


def test_an_address_of_another_machine_is_said_and_nothing_starts(dev: Start) -> None:
    running = dev("--host", "192.0.2.1")
    assert running.end() == 1
    assert running.lines[-1].startswith("nothing can listen at '192.0.2.1': ")


def test_failing_migrations_are_shown_and_end_the_start(project: Path, dev: Start) -> None:
    (project / "alembic.ini").write_text("[alembic]\nscript_location = nowhere\n")
    running = dev()
    assert running.end(20) == 1
    assert "nowhere" in running.output
    assert "migrations failed" in running.output
    assert not processes_of(project)


@pytest.mark.slow
def test_a_closed_terminal_ends_all(project: Path, dev: Start) -> None:
    running = dev()
    running.wait_for("smtp://")
    running.signal(signal.SIGHUP)
    assert running.end() == 0
    assert not processes_of(project)


def test_a_directory_with_nothing_to_run_is_told_how_to_name_it(project: Path, dev: Start) -> None:
    (project / "main.py").unlink()
    (project / "pyproject.toml").unlink()
    running = dev()
    assert running.end() == 1
    assert "under [tool.backburner]: app = " in running.output


@pytest.mark.slow
@pytest.mark.parametrize(
    "with_server", [pytest.param(False, id="embedded"), pytest.param(True, id="named", marks=pytest.mark.slow)]
)
def test_the_check_has_a_job_done_and_leaves_nothing(
    with_celery: Path, dev: Start, request: pytest.FixtureRequest, with_server: bool
) -> None:
    environment = {"REDIS_URL": request.getfixturevalue("redis_url")} if with_server else {}
    running = dev("--check", **environment)
    assert running.end(30) == 0, running.output
    assert all(line.startswith("ok ") for line in running.lines)
    assert "answered 'pong'" in running.output
    assert not processes_of(with_celery)


@pytest.mark.slow
def test_the_check_migrates_a_database_of_yours_only_when_it_is_told_to(project: Path, dev: Start) -> None:
    (project / "alembic.ini").write_text("[alembic]\nscript_location = nowhere\n")
    yours = "postgresql://tests@127.0.0.1:9/yours"
    careful = dev("--check", DATABASE_URL=yours)
    assert careful.end(20) == 0, careful.output
    assert "DATABASE_URL is left as it is; --migrate brings" in careful.output
    told = dev("--check", "--migrate", DATABASE_URL=yours)
    assert told.end(20) == 1
    assert "the migrations failed" in told.output


def test_the_check_fails_with_the_reason(project: Path, dev: Start) -> None:
    (project / "pyproject.toml").write_text('[tool.backburner]\napp = "main:app"\ncheck = "/nowhere"\n')
    main = (project / "main.py").read_text().replace("200", "404")
    (project / "main.py").write_text(main)
    running = dev("--check")
    assert running.end(20) == 1
    assert "GET /nowhere answers 404" in running.output
    assert not processes_of(project)
