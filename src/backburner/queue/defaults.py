"""Our defaults where they differ from Celery's. What the user configures, in any of Celery's ways, wins.

    setting                              ours       Celery's   why
    task_serializer, result_serializer,  json       json       said aloud: a pickle is code the sender runs in
    accept_content                                             the worker
    task_track_started                   on         off        a job that runs is not PENDING
    task_acks_late                       on         off        a worker that dies must not take its job along
    task_reject_on_worker_lost           on         off        … nor may a child of a prefork pool
    worker_prefetch_multiplier           1          4          a short job must not wait behind a long one; while
                                                               all are short, more are taken (decision 18)
    broker_connection_retry_on_startup   on         unset      start in any order; unset is a warning
    broker_connection_max_retries        no limit   100        a worker tries each second, and waits for its broker
    worker_soft_shutdown_timeout         5 s        off        after SIGQUIT running jobs get 5 s, then return
    worker_proc_alive_timeout            60 s       4 s        a process enters its lifespan before it is up
    worker_send_task_events,             on         off        Flower shows nothing without them
    task_send_sent_event
    enable_utc, timezone                 UTC        UTC        said aloud: naive etas are UTC
    result_expires                       settings   1 day      CELERY_RESULT_EXPIRES
    task_publish_retry_policy            1 retry    3 retries  within CELERY_PUBLISH_TIMEOUT in any case
    broker_pool_acquire_timeout          settings   none       waiting for a connection counts as publishing
    result_backend_thread_safe           on         off        one for all threads, so that there is one listener
    redis_socket_timeout,                5 s        120 s      a silent backend is not worth two minutes
    redis_socket_connect_timeout         2 s        none

Messages are leased by our own transport (`backburner.queue.transport`), not lent for a visibility timeout: the jobs of
a killed worker are with another one in half a minute. ``broker_transport="redis"`` goes back to kombu's.
"""

import math
from typing import Any

from backburner.redis.url import ServerURL
from backburner.settings import Settings

READ_OPTIONS = {
    # Longer than BRPOP, which blocks for a second; short enough to notice soon that the broker's host is gone.
    "socket_timeout": 4.0,
    "socket_connect_timeout": 2.0,
    "socket_keepalive": True,
}
"""Transport options of connections that consume."""

WRITE_OPTIONS = {
    # Publishing has its own, shorter deadline; these bound remote control and events.
    "socket_timeout": 2.0,
    "socket_connect_timeout": 2.0,
    "socket_keepalive": True,
}
"""Transport options of connections that publish."""

_DAY = 86_400
"""Seconds for which the rest about a job is kept where results never expire."""


def defaults(settings: Settings) -> dict[str, Any]:
    """Celery's configuration, except for the servers."""
    return {
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "task_track_started": True,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "worker_soft_shutdown_timeout": 5.0,
        "worker_proc_alive_timeout": 60.0,
        "worker_send_task_events": True,
        "task_send_sent_event": True,
        "enable_utc": True,
        "timezone": "UTC",
        "result_expires": math.ceil(settings.celery_result_expires),
        "task_publish_retry_policy": {
            "max_retries": 1,
            "interval_start": 0.05,
            "interval_step": 0.05,
            "interval_max": 0.2,
        },
        "broker_pool_acquire_timeout": settings.celery_publish_timeout,
        "result_backend_thread_safe": True,
        "redis_socket_timeout": 5.0,
        "redis_socket_connect_timeout": 2.0,
    }


def results_kept(conf: Any) -> int:
    """Seconds that a job's result, and whatever else is on record about it, is kept: ``result_expires``, rounded up."""
    expires = conf.result_expires or _DAY
    return math.ceil(getattr(expires, "total_seconds", lambda: expires)())


def servers(settings: Settings) -> dict[str, Any]:
    """Broker and result backend."""
    main = ServerURL.parse(settings.redis_url)

    def options(url: str) -> dict[str, object]:
        # Celery's Sentinel URLs cannot hold the name of the master.
        return main.celery_options if main.celery_options and url == main.celery_url else {}

    return {
        "broker_url": settings.celery_broker_url,
        "broker_transport_options": options(settings.celery_broker_url),
        "result_backend": settings.celery_result_backend,
        "result_backend_transport_options": options(settings.celery_result_backend),
    }
