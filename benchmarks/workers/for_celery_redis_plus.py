"""Stock Celery with the transport celery-redis-plus, which takes Python 3.13 or newer."""

import celery_redis_plus  # noqa: F401  # which gives the scheme below its meaning
from for_celery import app, enqueue, send_stamp, start, waits
from job import URL

__all__ = ["app", "enqueue", "send_stamp", "start", "waits"]

app.conf.broker_url = URL.replace("redis://", "valkey://", 1)
