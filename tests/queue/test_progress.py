"""What a running task tells, and who hears it."""

import asyncio
import math
from contextlib import aclosing
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
import redis
from celery.app.task import Context

from backburner.errors import QueueError, UnknownJob
from backburner.queue import Celery, Job, JobEvent, log, reporting
from backburner.queue.stream import _Reader, stream_key
from tests.conftest import Eventually
from tests.processes import Program


async def followed(job: Job, after: str = "0-0") -> list[JobEvent]:
    return [event async for event in job.aevents(after)]


def told(events: list[JobEvent]) -> list[str]:
    return [event.data["message"] for event in events if event.kind == "log"]


def states(events: list[JobEvent]) -> list[str]:
    return [event.data["state"] for event in events if event.kind == "state"]


def test_events_come_in_order_and_end_with_the_job(app: Celery, worker: Program, released: Path) -> None:
    async def main() -> list[JobEvent]:
        job = await app.tasks["tell"].adelay(str(released), 100)
        events = []
        async for event in job.aevents():
            events.append(event)
            if event.data.get("number") == 99:
                await asyncio.to_thread(released.touch)
        return events

    events = asyncio.run(main())
    assert told(events) == [*(f"line {number}" for number in range(100)), "the last"]
    assert events[-1].kind == "state"
    assert states(events)[-2:] == ["STARTED", "SUCCESS"]
    assert [event.id for event in events] == sorted((event.id for event in events), key=_place)


def test_the_final_state_is_told_however_slowly_the_thread_that_hears_of_it_tells_it(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = _Reader.put

    def put_slowly(self: _Reader, *args: Any) -> None:
        asyncio.run_coroutine_threadsafe(look(self), self._loop).result()
        put(self, *args)

    async def look(reader: _Reader) -> None:
        """Have the reader look for news once more."""
        reader.news.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    monkeypatch.setattr(_Reader, "put", put_slowly)
    app.backend.store_result("the-id", 1, "SUCCESS")
    assert states(asyncio.run(followed(app.AsyncResult("the-id")))) == ["SUCCESS"]


@pytest.mark.parametrize("options", [{}, {"headers": {"shop": "ours"}}], ids=["the producer's", "Celery's own path"])
def test_a_job_whose_result_is_ignored_cannot_be_followed_and_says_so_at_once(
    app: Celery, options: dict[str, Any]
) -> None:
    job = app.tasks["add"].apply_async((1, 2), queue="nobodys", ignore_result=True, **options)
    for same in (job, app.AsyncResult(job.id)):
        with pytest.raises(QueueError, match=f"the job {job.id} cannot be followed: with ignore_result, .*=False"):
            asyncio.run(asyncio.wait_for(followed(same), 10))
    assert app.AsyncResult(job.id).snapshot().name == "add"
    job.cancel()
    for same in (job, app.AsyncResult(job.id)):
        assert states(asyncio.run(asyncio.wait_for(followed(same), 10))) == ["REVOKED"]


def test_following_resumes_where_it_stopped(app: Celery, worker: Program, released: Path) -> None:
    async def main() -> None:
        job = await app.tasks["tell"].adelay(str(released), 100)
        async with aclosing(job.aevents()) as events:
            async for event in events:
                if event.data.get("number") == 42:
                    break
        await asyncio.to_thread(released.touch)
        await job.aget(timeout=10)
        rest = await followed(job, after=event.id)
        assert told(rest) == [*(f"line {number}" for number in range(43, 100)), "the last"]
        assert states(rest) == ["SUCCESS"]
        assert states(await followed(job, after=rest[-1].id)) == ["SUCCESS"]

    asyncio.run(main())


def test_many_reports_of_progress_are_few_writes(app: Celery, worker: Program, released: Path) -> None:
    job = app.tasks["wait_for"].delay(str(released), steps=500)
    released.touch()
    job.get(timeout=5)
    events = [event for event in asyncio.run(followed(job)) if event.kind == "progress"]
    assert len(events) < 50
    assert events, worker.output[-3000:]
    assert events[-1].data == {"done": 499, "total": 500, "message": "step 499"}


def test_a_coroutine_and_the_threads_it_starts_report_for_the_same_job(app: Celery, worker: Program) -> None:
    job = app.tasks["tell_from_thread"].delay()
    assert told(asyncio.run(followed(job))) == ["from another thread", "from the coroutine"]


def test_events_are_kept_for_a_while_only(app: Celery, worker: Program) -> None:
    job = app.tasks["tell_from_thread"].delay()
    job.get(timeout=5)
    assert 0 < app.backend.client.ttl(f"celery-task-meta-{job.id}:events") <= 86_400


def test_who_follows_no_more_leaves_nothing_behind(app: Celery, worker: Program, eventually: Eventually) -> None:
    async def main() -> None:
        job = await app.tasks["add"].aapply_async((1, 2), countdown=60)
        async with aclosing(job.aevents()) as events:
            first = await anext(events)
        assert (first.kind, first.data) == ("state", {"state": "PENDING"})

    asyncio.run(main())
    eventually(lambda: app.backend.listener.subscriptions == 0)


def test_events_of_what_nobody_enqueued_are_an_error(app: Celery) -> None:
    with pytest.raises(UnknownJob):
        asyncio.run(followed(app.AsyncResult("no-such-job")))
    with pytest.raises(ValueError, match="no event's id"):
        asyncio.run(followed(app.AsyncResult("no-such-job"), after="yesterday"))


def test_what_cannot_be_told_is_told_as_well_as_it_can_be_and_ends_no_task(
    app: Celery, worker: Program, released: Path, eventually: Eventually
) -> None:
    job = app.tasks["tell_oddly"].delay(str(released))
    seen = eventually(lambda: job.snapshot().progress)
    assert (seen.done, math.isnan(seen.total), seen.message) == (1.5, True, "?")
    released.touch()
    assert job.get(timeout=5) == "done"
    told, progress = (event.data for event in asyncio.run(followed(job)) if event.kind != "state")
    assert told == {"message": "half: ?", "level": "info", "big": 2.0**70, "price": 1.5, "state": "SUCCESS"}
    assert progress == {"done": 1.5, "total": None, "message": "?"}


def test_progress_that_comes_late_leaves_a_failure_as_it_is_whatever_it_says(url: str) -> None:
    failed = b'{"status": "FAILURE", "result": {"exc_message": ["half: \\ud800"]}}'
    with redis.Redis.from_url(url) as client:
        for before, after in ((failed, failed), (b'{"status": "STARTED"}', b"late"), (None, b"late")):
            client.delete("result")
            if before is not None:
                client.set("result", before)
            client.eval(reporting._REPORT.text, 2, "stream", "result", 10, 60, "late", "{}")
            assert client.get("result") == after


def test_whatever_the_sending_of_reports_raises_those_that_follow_are_sent(
    app: Celery, eventually: Eventually, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def tell(job_id: str) -> None:
        reporting.attach(app.tasks["add"], Context(id=job_id, called_directly=False))
        log("here")

    def refuse(*_: Any) -> None:
        raise KeyError("AccessToken")  # of a provider of logins

    with monkeypatch.context() as patch:
        patch.setattr(app.backend.client, "eval", refuse)
        copy_context().run(tell, "first")
        eventually(lambda: "1 events of add[first] are lost" in caplog.text)
    copy_context().run(tell, "second")
    eventually(lambda: app.backend.client.xlen(stream_key(app.backend, "second")) == 1)


def test_what_is_told_after_a_job_has_ended_stays_only_until_it_is_sent(app: Celery, eventually: Eventually) -> None:
    def tell(number: int) -> None:
        reporting.attach(app.tasks["add"], Context(id=f"job-{number}", called_directly=False))
        log("late")

    def kept() -> int:
        copy_context().run(tell, 0)
        return len(reporting._reports)

    for number in range(20):
        copy_context().run(tell, number)
    eventually(lambda: kept() == 1)
    assert all(len(app.backend.client.xrange(stream_key(app.backend, f"job-{each}"))) for each in range(20))


def test_outside_of_a_worker_nothing_happens(app: Celery) -> None:
    log("in a shell", number=1)

    @app.task(shared=False)
    def tell() -> str:
        log("eager")
        return "done"

    assert tell.apply().get() == "done"


def _place(event_id: str) -> tuple[int, ...]:
    return tuple(map(int, event_id.split("-")))
