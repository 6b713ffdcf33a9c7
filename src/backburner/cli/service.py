"""One program that is kept running: started, watched for being ready, restarted when it crashes, stopped."""

import asyncio
import os
import re
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from backburner.cli.family import Family
from backburner.cli.probe import until_it_answers

_RESTARTS = 5
_WINDOW = 30.0  # seconds; after too many crashes within it, the program is given up
_BACKOFF = 0.2
_LONGEST_BACKOFF = 5.0
_LINES_KEPT = 20
_LONGEST_LINE = 64 * 1024
_LAST_WORDS = 1.0  # seconds to read the rest of a dead process's output

Log = Callable[[str, str], None]
"""Takes the name of a program and a line of its output."""


@dataclass(frozen=True, slots=True)
class Program:
    """What to run, and what shows that it is ready: an HTTP answer, or a line it writes."""

    name: str
    command: Sequence[str]
    ready_url: str | None = None
    ready_line: re.Pattern[str] | None = None
    hurry: signal.Signals = signal.SIGTERM
    """Sent after SIGTERM, to a program that takes too long to end."""


class Crashes:
    """Counts the crashes of a program, and says how long to wait before it is started again."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=_RESTARTS + 1)

    def pause_after(
        self, how: str, log: Callable[[str], None], last_words: Callable[[], Iterable[str]]
    ) -> float | None:
        """Note a crash now, and tell it. The seconds to wait; ``None``: it crashes too often, and is given up."""
        now = asyncio.get_running_loop().time()
        self._times.append(now)
        if len(self._times) > _RESTARTS and now - self._times[0] < _WINDOW:
            last = "\n".join(f"    {line}" for line in last_words())
            times = f"{_RESTARTS + 1} times within {_WINDOW:.0f} s"
            log(f"ERROR: it {how}, {times}: given up, the others go on. Its last words:\n{last}")
            return None
        recent = sum(crash > now - _WINDOW for crash in self._times)
        delay: float = min(_BACKOFF * 2 ** (recent - 1), _LONGEST_BACKOFF)
        log(f"ERROR: it {how}; starting it again in {delay:.1f} s ({recent} of {_RESTARTS})")
        return delay


class Service:
    """Runs a `Program` until it is stopped, or has crashed too often."""

    def __init__(
        self, program: Program, directory: Path, environment: Mapping[str, str], family: Family, log: Log
    ) -> None:
        self.name = program.name
        self.ready = asyncio.Event()
        self.given_up = False
        self.last_lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self._program = program
        self._directory = directory
        self._family = family.of_program(program.name)
        self._environment = self._family.marked(environment)
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._run = asyncio.create_task(self._keep_running())

    @property
    def running(self) -> bool:
        """Whether it is running, or about to run again."""
        return not self._run.done()

    async def settled(self) -> None:
        """Wait until it is ready, or has been given up or stopped."""
        ready = asyncio.create_task(self.ready.wait())
        await asyncio.wait({ready, self._run}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if self._run.done():
            self._run.result()

    async def ended(self, patience: float) -> bool:
        """Wait up to `patience` seconds for its end."""
        done, _ = await asyncio.wait({self._run}, timeout=max(patience, 0))
        return bool(done)

    def stop(self) -> None:
        """Ask it to end."""
        self._stopping.set()
        self._signal(signal.SIGTERM)

    def hurry(self) -> None:
        """Ask it to end now; unfinished jobs return to the queue."""
        self._signal(self._program.hurry)

    def kill(self) -> None:
        """End it at once, with everything it started."""
        self._stopping.set()
        self._family.kill()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _keep_running(self) -> None:
        crashes = Crashes()
        while True:
            how = await self._run_once()
            if self._stopping.is_set():
                return
            pause = crashes.pause_after(how, partial(self._log, self.name), lambda: self.last_lines)
            if pause is None:
                self.given_up = True
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
                return

    async def _run_once(self) -> str:
        """Start the process and wait for its end. Returns a description of how it ended."""
        async with _output() as (written, writing):
            self._process = process = await _spawn(self._program, self._directory, self._environment, writing)
            if self._stopping.is_set():  # `stop` was called while it was starting
                self._signal(signal.SIGTERM)
            watching = asyncio.create_task(self._watch_for_answer())
            reading = asyncio.create_task(self._read(written))
            code = await process.wait()
            watching.cancel()
            self._family.end(patience=0)  # a reloader may leave behind the process it reloads, which holds the port
            await asyncio.wait({reading}, timeout=_LAST_WORDS)
            reading.cancel()
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    async def _watch_for_answer(self) -> None:
        if self._program.ready_url is not None:
            await until_it_answers(self._program.ready_url)
            self.ready.set()

    async def _read(self, written: asyncio.StreamReader) -> None:
        async for line in _lines(written):
            self.last_lines.append(line)
            if self._program.ready_line is not None and self._program.ready_line.search(line):
                self.ready.set()
            self._log(self.name, line)


async def run_to_the_end(
    program: Program, directory: Path, environment: Mapping[str, str], family: Family, log: Log
) -> int:
    """Run a program that ends by itself, and return its exit code. Cancelling kills it."""
    family = family.of_program(program.name)
    async with _output() as (written, writing):
        process = await _spawn(program, directory, family.marked(environment), writing)
        try:
            async for line in _lines(written):
                log(program.name, line)
            return await process.wait()
        except asyncio.CancelledError:
            family.kill()
            await process.wait()
            raise


@asynccontextmanager
async def _output() -> AsyncIterator[tuple[asyncio.StreamReader, BinaryIO]]:
    """A pipe: the end to read from, and the end for a process to write to, which `_spawn` closes.

    With asyncio's own pipe, waiting for a process would wait for all that inherited the pipe from it.
    """
    reading, writing = os.pipe()
    written = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(written), os.fdopen(reading, "rb")
    )
    try:
        with os.fdopen(writing, "wb") as end:
            yield written, end
    finally:
        transport.close()


async def _spawn(
    program: Program, directory: Path, environment: Mapping[str, str], output: BinaryIO
) -> asyncio.subprocess.Process:
    with output:
        return await asyncio.create_subprocess_exec(
            *program.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            cwd=directory,
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal is for the parent, which ends things in order
        )


async def _lines(written: asyncio.StreamReader) -> AsyncIterator[str]:
    rest = b""
    while chunk := await written.read(_LONGEST_LINE):
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _LONGEST_LINE:
            lines, rest = [*lines, rest], b""
        for line in lines:
            yield line.decode("utf-8", "replace").rstrip()
    if rest:
        yield rest.decode("utf-8", "replace").rstrip()
