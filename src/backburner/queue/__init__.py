"""Background jobs: Celery, with the sharp edges off."""

from backburner.queue.app import Celery
from backburner.queue.reporting import log, progress
from backburner.queue.result import Job, JobGroup, JobSnapshot, Progress
from backburner.queue.stream import JobEvent

__all__ = ["Celery", "Job", "JobEvent", "JobGroup", "JobSnapshot", "Progress", "log", "progress"]
