"""Programs that npm installs for slow tests: versions pinned by a folder's package.json, their content by its lock."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.servers import missing


def install(pinned: Path, workspace: Path) -> Path:
    """Install what the folder `pinned` names into the empty folder `workspace`; gives its ``node_modules``."""
    for program in ("node", "npm"):
        shutil.which(program) or missing(program)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(pinned / name, workspace)
    # The lock names versions and hashes but no host: that is npm's own setting.
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error"]
    try:
        subprocess.run(command, cwd=workspace, check=True, capture_output=True, text=True, timeout=120)
    except subprocess.CalledProcessError as error:
        pytest.fail(f"npm could not install what {pinned} names: {error.stderr}")
    return workspace / "node_modules"
