"""`backburner dev`: everything a project needs during development, in one terminal, without installing services.

This is the command itself: its start, its screen, and its signals. `plan` says what runs, and `run` runs it.
"""

import asyncio
import platform
import signal
import sys
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from backburner.cli.home import Home
from backburner.cli.plan import Ports
from backburner.cli.project import Project
from backburner.cli.run import Run
from backburner.cli.screen import Screen
from backburner.errors import BackburnerError, ConfigError
from backburner.settings import Settings

_REAP_PATIENCE = 3.0  # seconds for processes left by a killed run to end by themselves
_SLOW_START = 10.0  # seconds before the screen says what it is waiting for


def dev(host: str, port: int, *, fresh: bool) -> int:
    """Run the project in the current directory until a signal comes. Returns the exit code."""
    screen = Screen()
    began = time.monotonic()
    with errors_told(screen) as outcome:
        project = Project.read(Path.cwd())
        settings = Settings()
        home = Home.of_project(project.directory)
        with home.claimed():
            if reaped := home.family.end(_REAP_PATIENCE):
                screen.say(f"ended {reaped} processes that a killed `backburner dev` had left", "yellow")
            if fresh:
                home.empty()
            run = Run(project, home, settings, Ports(host=host, api=port), screen.log)
            outcome.code = asyncio.run(until_signalled(screen, run, _work(run, screen, began)))
            screen.say("stopped")
    return outcome.code


async def _work(run: Run, screen: Screen, began: float) -> int:
    await run.reach_server()
    if not await run.prepare({}):
        screen.fail("the migrations failed, see above: nothing was left running")
        return 1
    await run.start_programs()
    screen.show(f"{run.project.directory.name}, Python {platform.python_version()}", run.rows, run.notes, run.hints)
    await _report_when_ready(run, screen, began)
    await asyncio.Event().wait()
    return 0


async def _report_when_ready(run: Run, screen: Screen, began: float) -> None:
    settled = asyncio.gather(*(service.settled() for service in run.services))
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.shield(settled), _SLOW_START)
    if not settled.done():
        waiting = ", ".join(service.name for service in run.services if not service.ready.is_set())
        screen.say(f"still waiting for {waiting}", "yellow")
    await settled
    lost = ", ".join(service.name for service in run.services if not service.ready.is_set())
    seconds = f"{time.monotonic() - began:.1f} s"
    if lost:
        screen.say(f"ready in {seconds}, without {lost}", "bold yellow")
    else:
        screen.say(f"ready in {seconds}", "bold green")


async def until_signalled(screen: Screen, run: Run, work: Coroutine[Any, Any, int]) -> int:
    """Do `work`, then stop the run in order. A signal ends the work early; one while stopping kills what is left."""
    working = asyncio.create_task(work)

    def on_signal() -> None:
        if working.done() or working.cancelling():
            run.kill()
        else:
            screen.say("stopping; once more, and all ends at once")
            working.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal)
    try:
        await asyncio.wait({working})
    finally:
        await run.stop()
    return 0 if working.cancelled() else working.result()


class Outcome:
    """Holds the exit code, which may change until the end."""

    code = 1


@contextmanager
def errors_told(screen: Screen) -> Iterator[Outcome]:
    """Turn one of Backburner's errors into one sentence and exit code 1."""
    outcome = Outcome()
    try:
        if sys.platform == "win32":
            raise ConfigError("`backburner dev` runs on Linux and macOS; on Windows, use it inside WSL")
        yield outcome
    except BackburnerError as error:
        screen.fail(str(error))
    except KeyboardInterrupt:
        outcome.code = 0  # before anything was started
