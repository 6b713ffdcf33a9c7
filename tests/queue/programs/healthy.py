"""The same worker, whose health check loses patience soon; its loop stands still while the file ``HANGS`` exists."""

import os
import time
from pathlib import Path
from typing import Any

from celery import bootsteps
from jobs import app

from backburner.queue import health

health.PATIENCE = 4.0  # two of the signs that it waits for


class Hanging(bootsteps.StartStopStep):
    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, parent: Any) -> None:
        parent.timer.call_repeatedly(0.1, self.hang)

    def hang(self) -> None:
        while Path(os.environ["HANGS"]).exists():
            time.sleep(0.02)


app.steps["consumer"].add(Hanging)
