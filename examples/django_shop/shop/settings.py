"""Only what this example needs: no database, no templates, no sessions."""

import os

SECRET_KEY = os.environ.get("DJANGO_SECRET_KEY", "for this example only: nothing here is signed")
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
INSTALLED_APPS = ["orders"]
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
ROOT_URLCONF = "shop.urls"
USE_TZ = True

CELERY_TASK_TIME_LIMIT = 60
