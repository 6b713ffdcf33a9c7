"""The queue. ``celery -A app.core.celery_app worker`` (or beat, or flower) finds it here."""

from app.core.config import settings
from backburner import Celery

celery_app = Celery("app", settings=settings, include=["app.workers.tasks"])

celery_app.conf.beat_schedule = {
    "clear-uploads": {"task": "clear_uploads", "schedule": 24 * 3600.0},
}
