"""A plugin for the pytest that runs Celery's suite: its app, which is Celery's own, gets our result backend.

Our transport it gets by a setting.
"""

from typing import Any

import celery
import celery.contrib.testing.app

from backburner.queue.backend import OVERRIDES


class App(celery.Celery):
    def on_init(self) -> None:
        loader: Any = self.loader
        loader.override_backends = OVERRIDES


celery.contrib.testing.app.Celery = App  # type: ignore[attr-defined]  # the stubs leave it out
