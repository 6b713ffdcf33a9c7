"""Celery, set up as its documentation says for Django.

Where the server is, Backburner reads from REDIS_URL (or REDIS_HOST …); CELERY_… in settings.py wins.
"""

import os

from backburner import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")

app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
