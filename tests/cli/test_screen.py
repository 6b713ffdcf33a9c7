"""The log: one line for each line, without the programs' own decoration, and harmless."""

import io
import os

import pytest

from backburner.cli.screen import Row, Screen


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("[2026-11-21 08:47:09,833: INFO/MainProcess] Connected", "Connected"),
        ("[2026-11-21 08:47:09,833: WARNING/ForkPoolWorker-1] careful", "careful"),
        ("INFO:     Application startup complete.", "Application startup complete."),
        ("[W 261121 08:47:20 inspector:98] Inspect method conf failed", "Inspect method conf failed"),
        ("INFO  [alembic.runtime.migration] Running upgrade", "[alembic.runtime.migration] Running upgrade"),
        ("just a print", "just a print"),
        ("[bold]no markup[/bold]", "[bold]no markup[/bold]"),
        ("\x1b[2Jcleared \x1b]0;title\x07", "cleared "),
    ],
)
def test_a_line_is_shown_without_its_own_prefix_and_without_control_codes(
    capsys: pytest.CaptureFixture[str], written: str, shown: str
) -> None:
    Screen().log("api", written)
    line = capsys.readouterr().out
    assert line.split(" | ", 1)[1] == f"{shown}\n"
    assert line[9:15] == "api   "
    assert "\x1b" not in line


def test_a_traceback_has_the_colour_of_the_error_it_follows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen()
    for line in ("ERROR:    it broke", "Traceback (most recent call last):", '  File "x.py"', "INFO:     fine"):
        screen.log("api", line)
    lines = capsys.readouterr().out.splitlines()
    assert ["\x1b[31m" in line for line in lines] == [True, True, True, False]


def test_a_pipe_that_was_closed_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        monkeypatch.setattr("sys.stdout", closed)
        screen = Screen()
        screen.log("api", "INFO:     nobody reads this")
        screen.say("stopped")


def test_characters_that_a_terminal_lacks_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    Screen().log("worker", "sold: Händler")
    assert b"| sold: H\\xe4ndler" in written.getvalue()


def test_no_color_is_honoured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    Screen().log("api", "ERROR:    it broke")
    assert "\x1b[31m" not in capsys.readouterr().out


def test_the_screen_lines_up_and_is_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    where = "http://127.0.0.1:8000/" + "x" * 100
    rows = [Row("api", where, "an app"), Row("worker", "y", "jobs")]
    Screen().show("shop", rows, ["Port 8000 is busy."], ["Pin it."])
    out = capsys.readouterr().out
    api, worker = (line for line in out.splitlines() if line.startswith(("  api", "  worker")))
    assert where in api
    assert api.index("an app") == worker.index("jobs")
    assert "Port 8000 is busy." in out
    assert "Pin it." in out
