"""The command line itself: quick, and clear about what is missing."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from backburner.cli import main
from tests.cli.processes import Dev


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    program = "from backburner.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=30, check=False
    )


def test_the_version_is_printed() -> None:
    ran = run("version")
    assert ran.returncode == 0
    assert ran.stdout.startswith("backburner ")


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom backburner.cli import main\nsys.argv = ['backburner', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'rich', 'redis', 'celery', 'uvicorn', 'pydantic', 'psutil'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert "dev" in ran.stdout
    assert ran.stdout.splitlines()[-1] == "[]"


def test_a_missing_command_line_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "backburner.cli.commands", raising=False)
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit, match=r'pip install "backburner\[cli\]"'):
        main()


def test_missing_packages_of_dev_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "flower" else found(name))
    monkeypatch.setattr(sys, "argv", ["backburner", "dev"])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 1
    assert capsys.readouterr().err == '`backburner dev` needs flower: pip install "backburner[dev]"\n'


def test_fresh_forgets_what_was_kept(project: Path, dev: Callable[..., Dev]) -> None:
    first = dev()
    with redis.Redis.from_url(first.where("valkey")) as client:
        client.set("kept", "yes")
    (project / ".backburner" / "app.db").write_text("data")
    first.stop()
    second = dev("--fresh")
    with redis.Redis.from_url(second.where("valkey")) as client:
        assert client.get("kept") is None
    assert not (project / ".backburner" / "app.db").exists()
