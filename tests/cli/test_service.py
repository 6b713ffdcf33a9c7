"""Keeping one program running: restarts with backoff, giving up, being ready, being stopped."""

import asyncio
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from backburner.cli import service as module
from backburner.cli.family import Family
from backburner.cli.service import Program, Service

pytestmark = pytest.mark.anyio


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, name: str, line: str) -> None:
        self.lines.append(line)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


async def until(predicate: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not predicate():  # noqa: ASYNC110  # nobody would set an event
            await asyncio.sleep(0.02)


@pytest.fixture
def family(tmp_path: Path) -> Family:
    return Family.of_directory(tmp_path).of_run()


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def start(tmp_path: Path, family: Family, log: Log) -> Callable[..., Service]:
    def start(source: str, **options: object) -> Service:
        program = Program("api", [sys.executable, "-u", "-c", source], **options)  # type: ignore[arg-type]
        return Service(program, tmp_path, {}, family, log)

    return start


async def test_a_program_that_crashes_is_restarted_five_times_and_then_given_up_with_its_last_words(
    start: Callable[..., Service], log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BACKOFF", 0.01)
    service = start("print('no luck today'); raise SystemExit(3)")
    await asyncio.wait_for(service.settled(), 20)
    assert service.given_up
    assert not service.running
    restarts = re.findall(r"it ended with exit code 3; starting it again in ([\d.]+) s", log.text)
    assert len(restarts) == 5
    assert log.lines.count("no luck today") == 6
    assert re.search(r"given up, the others go on. Its last words:\n +no luck today", log.text)


@pytest.mark.slow
async def test_the_pause_between_restarts_doubles(
    start: Callable[..., Service], log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BACKOFF", 0.1)
    service = start("raise SystemExit(1)")
    await asyncio.wait_for(service.settled(), 20)
    assert re.findall(r"again in ([\d.]+) s", log.text) == ["0.1", "0.2", "0.4", "0.8", "1.6"]


async def test_a_killed_program_is_restarted(start: Callable[..., Service], log: Log, family: Family) -> None:
    service = start("print('up'); import time; time.sleep(60)", ready_line=re.compile("up"))
    await asyncio.wait_for(service.settled(), 10)
    [process] = family.members()
    process.kill()
    await until(lambda: log.lines.count("up") == 2)
    assert "it was killed by SIGKILL; starting it again" in log.text
    service.kill()
    assert await service.ended(5)


async def test_a_stopped_program_is_not_restarted(start: Callable[..., Service], log: Log) -> None:
    service = start("print('up'); import time; time.sleep(60)", ready_line=re.compile("up"))
    await asyncio.wait_for(service.settled(), 10)
    service.stop()
    assert await service.ended(5)
    assert log.lines == ["up"]


async def test_stopping_a_program_that_waits_for_its_restart_ends_it(
    start: Callable[..., Service], log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BACKOFF", 60)
    monkeypatch.setattr(module, "_LONGEST_BACKOFF", 60)
    service = start("raise SystemExit(1)")
    await until(lambda: log.lines)
    service.stop()
    assert await service.ended(5)


async def test_what_a_dead_program_left_is_ended_before_it_starts_again(
    start: Callable[..., Service], log: Log, family: Family
) -> None:
    orphan = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']{})"
    service = start(orphan.format(", start_new_session=True"))
    await until(lambda: log.lines)
    assert not [process for process in family.members() if "sleep" in process.cmdline()[-1]]
    service.stop()
    assert await service.ended(5)


async def test_lines_without_an_end_do_not_fill_the_memory_or_stop_the_log(
    start: Callable[..., Service], log: Log
) -> None:
    service = start("print('x' * 300_000, end=''); print('after'); import time; time.sleep(60)")
    await until(lambda: "after" in log.text)
    assert max(map(len, log.lines)) < 200_000
    service.kill()
    assert await service.ended(5)
