"""The output of `backburner dev`: a summary of what runs where, then one log with a prefix for each program.

rich decides about colours: none without a terminal or with NO_COLOR. Nothing here knows about processes.
"""

import re
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from io import TextIOWrapper

from rich.console import Console
from rich.text import Text

_COLOURS = {"api": "cyan", "worker": "green", "beat": "magenta", "flower": "yellow", "mail": "blue"}
_LEVELS = {"W": "yellow", "E": "red", "C": "bold red", "D": "dim", "T": "dim"}
_OWN_PREFIX = (
    re.compile(r"\[\d{4}-\d\d-\d\d [\d:,.]+: (?P<level>[A-Z])[A-Z]+/[^\]]+\] ?"),  # Celery
    re.compile(r"(?P<level>[A-Z])(?:NFO|ARNING|RROR|RITICAL|EBUG|RACE): +"),  # uvicorn, and logging.basicConfig
    re.compile(r"\[(?P<level>[IWECD]) \d{6} [\d:]+ [\w.]+:\d+\] "),  # Flower
    re.compile(r"(?P<level>[A-Z])[A-Z]+ +(?=\[[\w.]+\])"),  # Alembic
)
_CONTROLS = re.compile(r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b\[[0-?]*[ -/]*[@-~]|\x1b?[\x00-\x08\x0b-\x1f\x7f]")
_WIDTH = max(map(len, _COLOURS))


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the screen."""

    name: str
    where: str
    what: str


class Screen:
    """Writes to standard output. It is no error if a terminal or a pipe has gone away, or lacks a character."""

    def __init__(self) -> None:
        if isinstance(sys.stdout, TextIOWrapper):  # as it is for standard error
            sys.stdout.reconfigure(errors="backslashreplace")
        self._console = Console(highlight=False, soft_wrap=True)
        self._errors = Console(highlight=False, soft_wrap=True, stderr=True)
        self._styles: dict[str, str] = {}

    def show(self, title: str, rows: Iterable[Row], notes: Iterable[str], hints: Iterable[str]) -> None:
        """Show what runs where. Notes say what the user should know, hints what the user may like to know."""
        rows = list(rows)
        name_width = max((len(row.name) for row in rows), default=0)
        where_width = max((len(row.where) for row in rows), default=0)
        self._print(Text.assemble("\n  ", ("backburner dev", "bold"), f"   {title}\n"))
        for row in rows:
            name = (f"  {row.name:<{name_width}}   ", _COLOURS.get(row.name, "bold"))
            self._print(Text.assemble(name, f"{row.where:<{where_width}}   ", (row.what, "dim")))
        for note in notes:
            self._print(Text(f"\n  {note}", "yellow"))
        for hint in (*hints, "Ctrl-C stops everything."):
            self._print(Text(f"\n  {hint}", "dim"))
        self._print(Text())

    def log(self, name: str, written: str) -> None:
        """Show one or more lines that a program wrote."""
        for line in filter(None, written.splitlines()):
            level, text = _tidy(line)
            # A traceback gets the colour of the line before it.
            style = self._styles.get(name, "") if level is None else _LEVELS.get(level, "")
            if level is not None or not line.startswith((" ", "Traceback")):
                self._styles[name] = style
            self._line(name, Text(text), style)

    def say(self, text: str, style: str = "bold") -> None:
        """Show a line of `backburner dev` itself in the log."""
        self._styles.pop("dev", None)
        self._line("dev", Text(text), style)

    def fail(self, text: str) -> None:
        """Write an error that ends the command to standard error."""
        self._print(Text(text, "bold red" if "\n" not in text else ""), self._errors)

    def step(self, name: str, text: str, seconds: float, *, good: bool) -> None:
        """Show one step of a check."""
        line = Text.assemble(
            ("ok    " if good else "FAIL  ", "green" if good else "bold red"),
            (f"{name:<11}", _COLOURS.get(name, "bold")),
            f"{seconds:5.2f} s  ",
            text,
        )
        self._print(line)

    def _line(self, name: str, text: Text, style: str) -> None:
        text.style = style
        prefix = Text.assemble(
            (time.strftime("%H:%M:%S "), "dim"), (f"{name:<{_WIDTH}}", _COLOURS.get(name, "bold")), (" | ", "dim")
        )
        self._print(prefix + text)

    def _print(self, what: Text, console: Console | None = None) -> None:
        # The terminal was closed, or the pipe, at which rich would exit; what runs must still be stopped in order.
        with suppress(OSError, SystemExit):
            (console or self._console).print(what)


def _tidy(line: str) -> tuple[str | None, str]:
    """The level of a line, as its first letter, and the line without its own time and level."""
    line = _CONTROLS.sub("", line)  # a log must not steer the terminal
    for pattern in _OWN_PREFIX:
        if match := pattern.match(line):
            return match["level"], line[match.end() :]
    return None, line
