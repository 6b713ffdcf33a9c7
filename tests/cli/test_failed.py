"""`backburner failed`: what an operator types who was paged."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(with_celery: Path, redis_url: str) -> Run:
    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        program = "from backburner.cli import main; main()"
        return subprocess.run(
            [sys.executable, "-c", program, "failed", *arguments],
            cwd=with_celery,
            env=os.environ | {"REDIS_URL": redis_url},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    return run


@pytest.fixture
def kept(redis_url: str) -> list[str]:
    """Two of them, from a worker that found nothing to read."""
    with redis.Redis.from_url(redis_url) as client:
        for number, name in enumerate(("one", "two")):
            client.zadd("backburner:failed", {name: number})
            record = {
                "reason": "undecodable",
                "detail": "ValueError\n at 1",
                "list": "tea",
                "message": f"{number} secret",
            }
            client.hset(f"backburner:failed:{name}", mapping=record)
    return ["one", "two"]


def test_they_are_shown_in_a_line_each_without_arguments(run: Run, kept: list[str]) -> None:
    ran = run("list")
    assert ran.returncode == 0, ran.stderr
    assert [line.split()[0] for line in ran.stdout.splitlines()] == kept
    assert "in tea  undecodable: ValueError at 1" in ran.stdout
    assert "secret" not in ran.stdout


def test_as_json_they_are_shown_with_all_that_is_known(run: Run, kept: list[str]) -> None:
    found = [json.loads(line) for line in run("list", "--json").stdout.splitlines()]
    assert [each["name"] for each in found] == kept
    assert found[0]["message"] == "0 secret"
    assert found[0]["failed_at"] == "1970-01-01T00:00:00+00:00"


def test_they_are_tried_again_by_name_and_let_go_all(run: Run, kept: list[str], redis_url: str) -> None:
    ran = run("retry", "one", "three")
    assert (ran.returncode, ran.stdout) == (1, "one  back in its queue\nthree  is not among the failed ones\n")
    ran = run("forget", "--all")
    assert (ran.returncode, ran.stdout) == (0, "two  forgotten\n")
    with redis.Redis.from_url(redis_url) as client:
        assert client.lrange("tea", 0, -1) == [b"0 secret"]
    ran = run("list")
    assert (ran.returncode, ran.stdout) == (0, "")
    assert ran.stderr == "No jobs are kept that could not be done.\n"


def test_who_names_nothing_is_told_what_to_name(run: Run) -> None:
    for arguments in (("retry",), ("forget", "--all", "one")):
        ran = run(*arguments)
        assert (ran.returncode, ran.stderr) == (1, "Name jobs, as `backburner failed list` does, or say --all.\n")


def test_a_server_that_is_away_is_one_sentence(run: Run, monkeypatch: pytest.MonkeyPatch, with_celery: Path) -> None:
    program = with_celery / "main.py"
    program.write_text(
        program.read_text().replace('Celery("tiny")', 'Celery("tiny", broker="redis://:pw@127.0.0.1:1/0")')
    )
    ran = run("list")
    assert ran.returncode == 1
    assert ran.stderr.count("\n") == 1
    assert "redis://:***@127.0.0.1:1/0" in ran.stderr
