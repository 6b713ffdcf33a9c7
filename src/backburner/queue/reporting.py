"""Progress of a running task, kept where its state is kept.

It is the meta data of the state STARTED. Stock Celery programs see it as ``AsyncResult.info["progress"]``.
"""

import logging
import os
import time
from typing import Any

import celery
import redis
from celery import states

from backburner.queue.deadline import OutOfTime, deadline

log = logging.getLogger("backburner.queue")

_INTERVAL = 0.2
_TIMEOUT = 1.0


def progress(done: float, total: float, message: str = "") -> None:
    """Tell how far the running task is. Call it as often as you like.

    About five calls a second are passed on, and always the one with ``done == total``. Outside of a worker
    (a test, a shell, an eager task) and in a task whose result is ignored nothing happens, so functions
    that report progress can be called from anywhere. A result backend that does not answer costs a second
    and a log line, never the task.
    """
    task: Any = celery.current_task
    if not task:
        return
    request = task.request
    if request.called_directly or request.is_eager or request.ignore_result:
        return
    now = time.monotonic()
    if done != total and now - getattr(request, "progress_at", -_INTERVAL) < _INTERVAL:
        return
    request.progress_at = now
    meta = {
        "pid": os.getpid(),
        "hostname": request.hostname,
        "progress": {"done": done, "total": total, "message": message},
    }
    try:
        with deadline(_TIMEOUT):
            task.backend.store_result(request.id, meta, states.STARTED, request=request)
    except (OutOfTime, redis.RedisError, OSError) as error:
        log.warning("progress of %s[%s] is lost: %s", task.name, request.id, str(error) or "no answer")
