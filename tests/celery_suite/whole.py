"""A plugin for the pytest that runs Celery's suite: its app is ours."""

import celery.contrib.testing.app

from backburner.queue import Celery

celery.contrib.testing.app.Celery = Celery  # type: ignore[attr-defined]  # the stubs leave it out
