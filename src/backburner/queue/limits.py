"""Rate limits of tasks: however many jobs wait for one, there is one timer.

Celery sets a timer for each job that waits. kombu's event loop runs ten timers at a time and then may sleep for a
second, so that with more jobs waiting 100 a second became one.
"""

from typing import Any

from celery import bootsteps

_PAUSE = 1.0
"""Seconds before the next job's turn, after one that could not be begun."""


class Limited(bootsteps.StartStopStep):
    """A bootstep that has a job wait behind those that wait for the same limit already."""

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        schedule = consumer._schedule_bucket_request  # noqa: SLF001  # there is no public name

        def go_on(bucket: Any) -> None:
            try:
                schedule(bucket)
            except BaseException:
                if bucket.contents:  # the others must not wait for a timer that there is not
                    consumer.timer.call_after(_PAUSE, go_on, (bucket,))
                raise

        def limit(request: Any, bucket: Any, tokens: int) -> None:
            timed = bool(bucket.contents)
            bucket.add((request, tokens))
            if not timed:
                go_on(bucket)

        def limit_later(request: Any, bucket: Any, tokens: int) -> None:
            consumer.qos.decrement_eventually()
            limit(request, bucket, tokens)

        consumer._schedule_bucket_request = go_on  # noqa: SLF001  # as above; its timers call it by this name
        consumer._limit_task, consumer._limit_post_eta = limit, limit_later  # noqa: SLF001  # as above
