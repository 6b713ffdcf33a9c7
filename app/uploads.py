"""Uploaded files on disk, from their arrival to the end of their import."""

import time
from pathlib import Path

from app.core.config import settings

RETENTION = 7 * 86_400
"""Seconds that the file of a failed import is kept, so that the import can be tried again."""


def path_of(import_id: str) -> Path:
    """The path of an import's file. Its directory exists; the file may not."""
    settings.upload_dir.mkdir(parents=True, exist_ok=True)
    return settings.upload_dir / f"{import_id}.csv"


def rename(import_id: str, new_id: str) -> None:
    """Make the file belong to another import."""
    path_of(import_id).rename(path_of(new_id))


def clear() -> int:
    """Remove files older than `RETENTION`; returns their number."""
    outdated = [path for path in settings.upload_dir.glob("*.csv") if path.stat().st_mtime < time.time() - RETENTION]
    for path in outdated:
        path.unlink(missing_ok=True)
    return len(outdated)


def discard(import_id: str) -> None:
    """Remove the file of an import, if it is there."""
    path_of(import_id).unlink(missing_ok=True)
