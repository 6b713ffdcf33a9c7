"""Background jobs: Celery, with the sharp edges off."""

from backburner.extras import extra

with extra("celery", needed_by="backburner.queue"):
    from backburner.queue.app import Celery
    from backburner.queue.dependencies import INJECTED
    from backburner.queue.failed import FailedJob, FailedJobs
    from backburner.queue.lifespan import Lifespan
    from backburner.queue.reporting import log, progress
    from backburner.queue.result import Job, JobGroup, JobSnapshot, Progress
    from backburner.queue.stream import JobEvent

__all__ = [
    "INJECTED",
    "Celery",
    "FailedJob",
    "FailedJobs",
    "Job",
    "JobEvent",
    "JobGroup",
    "JobSnapshot",
    "Lifespan",
    "Progress",
    "log",
    "progress",
]
