"""The project. Loading Celery here makes every ``@shared_task`` belong to it, in the web processes too."""

from shop.celery import app as celery_app

__all__ = ["celery_app"]
