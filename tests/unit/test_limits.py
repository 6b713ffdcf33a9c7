"""Jobs that wait for a rate limit."""

from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker.consumer.consumer import Consumer
from kombu.utils.limits import TokenBucket

from backburner.queue.limits import Limited


def test_a_job_that_cannot_be_begun_keeps_those_behind_it_waiting_for_no_longer_than_a_pause() -> None:
    timers: list[tuple[Any, ...]] = []
    begun: list[str] = []

    def begin(request: str) -> None:
        if request == "second":
            raise RuntimeError(request)
        begun.append(request)

    consumer: Any = SimpleNamespace(
        _limit_move_to_pool=begin,
        _limit_order=0,
        timer=SimpleNamespace(call_after=lambda *call, **_: timers.append(call)),
    )
    consumer._schedule_bucket_request = lambda bucket: Consumer._schedule_bucket_request(consumer, bucket)
    Limited(consumer)
    bucket = TokenBucket(1)
    for request in ("first", "second", "third"):
        consumer._limit_task(request, bucket, 1)
    [(_, go_on, arguments)] = timers
    bucket._tokens = 1  # the second's turn
    with pytest.raises(RuntimeError):
        go_on(*arguments)
    [_, (_, go_on, arguments)] = timers
    bucket._tokens = 1
    go_on(*arguments)
    assert (begun, len(timers)) == (["first", "third"], 2)
