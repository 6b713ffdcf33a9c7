"""Make ``.venv`` hold exactly the pinned packages, and this project in editable form. Run by ``make``.

Does nothing when the pins, the project's metadata and the interpreter are those of the last time. Everything
installed is named in ``requirements/dev.txt`` with its hash, the build backend included. ``sync.py bench`` does the
same for ``.venv-bench`` and ``requirements/bench.txt``, which hold what the benchmarks compare with, too. With any
other name it makes one more like ``.venv``: ``python3.14 requirements/sync.py another`` fills ``.venv-another``.
Uses the standard library only.
"""

import fcntl
import hashlib
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAMES = sys.argv[1:2]
VENV = ROOT / "-".join([".venv", *NAMES])
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".synced"
PINS = ROOT / "requirements" / ("bench.txt" if NAMES == ["bench"] else "dev.txt")
PROJECT = ROOT / "pyproject.toml"


def main() -> None:
    with PINS.open("rb") as pins:
        # Two `make` at once: the second waits here, then finds the work done.
        fcntl.flock(pins, fcntl.LOCK_EX)
        sync()


def sync() -> None:
    packages = f"{interpreter()} {digest(PINS)}"
    project = f"{ROOT} {digest(PROJECT)}"
    found = STAMP.read_text().splitlines() if STAMP.exists() and PYTHON.exists() else []
    if found == [packages, project]:
        return
    if found[:1] != [packages]:
        build()
    say(f"Installing the project into {VENV.name}, editable")
    pip("--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    STAMP.write_text(f"{packages}\n{project}\n")


def build() -> None:
    if find_spec("venv") is None or find_spec("ensurepip") is None:
        version = "{}.{}".format(*sys.version_info)
        sys.exit(
            f"{sys.executable} has no venv module. On Debian and Ubuntu: apt install python{version}-venv. "
            "Or name another Python: make PYTHON=/path/to/python3.11"
        )
    count = sum(1 for line in PINS.read_text().splitlines() if "==" in line)
    say(f"Making {VENV.name} with Python {sys.version.split()[0]} ({base_executable()})")
    run(base_executable(), "-I", "-m", "venv", "--clear", str(VENV))
    say(f"Installing {count} pinned packages into {VENV.name}; the first time takes a minute")
    pip("--require-hashes", "--requirement", str(PINS))


def pip(*arguments: str) -> None:
    run(str(PYTHON), "-I", "-m", "pip", "--quiet", "--disable-pip-version-check", "install", *arguments)


def run(*command: str) -> None:
    # Where a developer's own settings send packages elsewhere, pip refuses to work in a virtual environment.
    elsewhere = {"PIP_USER", "PIP_TARGET", "PIP_PREFIX"}
    environment = {name: value for name, value in os.environ.items() if name not in elsewhere}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\nFailed, with the output above: {' '.join(command)}")


def base_executable() -> str:
    """The interpreter itself, also when run by the virtual environment that is about to be replaced."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def interpreter() -> str:
    return f"{base_executable()} {sys.version.split()[0]}"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
