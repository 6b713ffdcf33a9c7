"""Background jobs: Celery, with the sharp edges off."""

from backburner.queue.app import Celery
from backburner.queue.reporting import progress
from backburner.queue.result import Job, JobSnapshot, Progress

__all__ = ["Celery", "Job", "JobSnapshot", "Progress", "progress"]
