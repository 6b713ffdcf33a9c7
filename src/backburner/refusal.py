"""The `celery` command says in one sentence which setting is wrong, where it would print two screens of traceback with
the sentence last. It imports the user's application, and prints what that raises."""

import sys
import traceback
from types import SimpleNamespace
from typing import Any

from backburner.errors import ConfigError


def install() -> None:
    """See above. Does nothing in other programs, and to other errors."""
    command: Any = sys.modules.get("celery.bin.celery")
    if command is not None:
        command.traceback = SimpleNamespace(**vars(traceback) | {"format_exc": _told})


def wrong_setting(error: BaseException | None) -> ConfigError | None:
    """The `ConfigError` that kept Celery from importing an application, if it was one."""
    found = error.__context__ if type(error) is ValueError else error  # kombu turns it into a ValueError
    return found if isinstance(found, ConfigError) else None


def _told() -> str:
    wrong = wrong_setting(sys.exception())
    return traceback.format_exc() if wrong is None else str(wrong)
