"""Workers that scale by themselves (``--autoscale``), where their pool can."""

from typing import Any

from celery import bootsteps
from celery.concurrency import thread
from celery.worker.components import Pool

from backburner.errors import ConfigError


class Scaling(bootsteps.StartStopStep):
    """Has a worker not begin if it would end with its first need to scale, as Celery's of threads does."""

    requires = (Pool,)

    def include_if(self, worker: Any) -> bool:
        """Only with ``--autoscale`` and threads."""
        return bool(worker.autoscale) and isinstance(worker.pool, thread.TaskPool)

    def start(self, worker: Any) -> None:
        """Refuse.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "--autoscale does not work with --pool=threads, for Celery's pool of threads can neither grow nor shrink: "
            f"leave it out, and say --concurrency {worker.max_concurrency}, as threads are made when they are needed"
        )
