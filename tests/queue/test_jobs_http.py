"""Jobs as an HTTP resource, over a real connection, with a real worker."""

import asyncio
import json
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import anyio
import httpx2
import psutil
import pytest
import uvicorn
from celery import signals
from fastapi import Depends, FastAPI, Header, HTTPException
from fastapi.testclient import TestClient

from backburner.errors import ConfigError, PublishError
from backburner.queue import Celery
from backburner.queue.http import JobAccepted, Submission, jobs_router
from backburner.redis.embedded import EmbeddedServer
from backburner.testing import FaultProxy
from tests.conftest import Eventually
from tests.processes import Program, free_port
from tests.queue.conftest import MakeApp, runs
from tests.queue.programs.jobs import Order

ADA, BOB = {"X-User": "ada"}, {"X-User": "bob"}


def user(x_user: Annotated[str | None, Header()] = None) -> str:
    if x_user is None:
        raise HTTPException(401)
    return x_user


@pytest.fixture
def api(app: Celery) -> FastAPI:
    @app.task(name="typed", shared=False)
    def typed() -> dict[str, int]:
        return {}

    jobs = jobs_router(app, auth=user, tasks=[typed])
    api = FastAPI()
    api.include_router(jobs)

    @api.post("/divisions/{a}/{b}", status_code=202)
    def divide(a: int, b: int, submission: Annotated[Submission, Depends(jobs.submission)]) -> JobAccepted:
        return submission.accept(app.tasks["divide"], (a, b), retries=1)

    @api.post("/waits", status_code=202)
    async def wait(
        path: str, submission: Annotated[Submission, Depends(jobs.submission)], steps: int = 0, public: bool = False
    ) -> JobAccepted:
        return await submission.aaccept(app.tasks["wait_for"], (path,), {"steps": steps}, public=public)

    @api.post("/orders", status_code=202)
    async def order(order: Order, submission: Annotated[Submission, Depends(jobs.submission)]) -> JobAccepted:
        return await submission.aaccept(app.tasks["aplace_order"], (order,))

    @api.get("/census")
    async def count() -> dict[str, int]:
        process = psutil.Process()
        return {
            "coroutines": len(asyncio.all_tasks()),
            "subscriptions": app.backend.listener.subscriptions,
            "connections": len(app.backend.client.client_list()),
            "files": process.num_fds(),
            "threads": process.num_threads(),
        }

    @api.post("/tales", status_code=202)
    async def tell(path: str, lines: int, submission: Annotated[Submission, Depends(jobs.submission)]) -> JobAccepted:
        return await submission.aaccept(app.tasks["tell"], (path, lines))

    @api.post("/notes", status_code=202)
    def note(submission: Annotated[Submission, Depends(jobs.submission)]) -> JobAccepted:
        return submission.accept(app.tasks["add"], (1, 2), queue="nobodys", ignore_result=True)

    return api


@pytest.fixture
def client(api: FastAPI, eventually: Eventually) -> Iterator[httpx2.Client]:
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(api, port=port, log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    eventually(lambda: server.started)
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, headers=ADA) as client:
        yield client
    server.should_exit = True
    thread.join()


def events(response: httpx2.Response) -> Iterator[dict[str, Any]]:
    event: dict[str, Any] = {}
    for line in response.iter_lines():
        name, _, value = line.partition(": ")
        if not line and event:
            yield event
            event = {}
        elif name in {"id", "event", "data"}:
            event[name] = json.loads(value) if name == "data" else value


def submit(client: httpx2.Client, to: str, headers: dict[str, str] | None = None, **params: Any) -> httpx2.Response:
    answer = client.post(to, params=params, headers=headers or {})
    assert answer.status_code == 202, answer.text
    return answer


def test_a_job_is_accepted_read_and_done(client: httpx2.Client, worker: Program) -> None:
    accepted = submit(client, "/divisions/6/3")
    assert accepted.headers["location"] == f"/jobs/{accepted.json()['id']}" == accepted.json()["url"]
    assert accepted.headers["retry-after"] == "1"
    done = client.get(accepted.headers["location"], headers={"Prefer": "wait=10"})
    assert done.headers["preference-applied"] == "wait=10"
    assert "retry-after" not in done.headers
    job = done.json()
    assert (job["state"], job["result"], job["name"]) == ("SUCCESS", 2.0, "divide")
    again = client.get(accepted.headers["location"], headers={"If-None-Match": done.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_a_job_lies_where_its_application_is_mounted(api: FastAPI) -> None:
    site = FastAPI()
    site.mount("/v1", api)
    with TestClient(site, headers=ADA, root_path="/shop") as client:
        accepted = client.post("/shop/v1/divisions/6/3")
        assert accepted.headers["location"] == f"/shop/v1/jobs/{accepted.json()['id']}" == accepted.json()["url"]
        assert client.get(accepted.headers["location"]).status_code == 200


def test_a_job_whose_result_is_ignored_is_neither_followed_nor_waited_for(client: httpx2.Client) -> None:
    url = submit(client, "/notes").headers["location"]
    refused = client.get(f"{url}/events")
    assert (refused.status_code, refused.json()["detail"]) == (
        409,
        "The result of this job is ignored, so it cannot be followed.",
    )
    began = time.monotonic()
    assert client.get(url, headers={"Prefer": "wait=15"}).json()["state"] == "PENDING"
    assert time.monotonic() - began < 15


def test_a_failed_job_tells_its_error(client: httpx2.Client, worker: Program) -> None:
    job = client.get(submit(client, "/divisions/1/0").headers["location"], headers={"Prefer": "wait=10"}).json()
    assert (job["state"], job["error"]) == ("FAILURE", "ZeroDivisionError: division by zero")


@pytest.mark.parametrize(
    ("stored", "told"),
    [(b"\xff\x00text", "_wB0ZXh0"), ({"in": ["\ud800", b"\xff"]}, {"in": ["\ud800", "_w=="]})],
    ids=["bytes", "half a character"],
)
def test_every_result_can_be_read(client: httpx2.Client, app: Celery, stored: Any, told: Any, released: Path) -> None:
    place = submit(client, "/waits", path=str(released)).headers["location"]
    app.backend.store_result(place.rpartition("/")[2], stored, "SUCCESS")
    released.touch()
    answer = client.get(place)
    assert answer.status_code == 200, answer.text
    assert answer.json()["result"] == told


def test_every_error_can_be_read_and_whatever_is_known_is_not_told_again(
    client: httpx2.Client, app: Celery, worker: Program, released: Path, eventually: Eventually
) -> None:
    place = submit(client, "/waits", path=str(released)).headers["location"]
    eventually(lambda: runs(released) == 1)
    app.backend.store_result(place.rpartition("/")[2], ValueError("\ud800"), "FAILURE")
    released.touch()
    assert client.get(place).json()["error"] == "ValueError: \ud800"
    assert client.get(place, headers={"If-None-Match": "*"}).status_code == 304


def test_a_long_poll_ends_with_a_change_or_with_the_time_asked_for(
    client: httpx2.Client, worker: Program, released: Path, eventually: Eventually
) -> None:
    url = submit(client, "/waits", path=str(released)).headers["location"]
    eventually(lambda: client.get(url).json()["state"] == "STARTED")
    tag = client.get(url).headers["etag"]
    waiting = {"If-None-Match": tag, "Prefer": "wait=1"}
    assert client.get(url, headers=waiting).status_code == 304
    threading.Timer(0.2, released.touch).start()
    changed = client.get(url, headers=waiting | {"Prefer": "wait=20"})
    assert changed.json()["state"] == "SUCCESS"
    forever = client.get(url, headers={"Prefer": f"wait={'9' * 5000}"})
    assert (forever.status_code, forever.headers["preference-applied"]) == (200, "wait=60")


def test_events_are_streamed_and_resumed_and_end(client: httpx2.Client, worker: Program, released: Path) -> None:
    url = submit(client, "/tales", path=str(released), lines=30).json()["events"]
    with client.stream("GET", url) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        heard = events(response)
        seen = next(event for event in heard if event["data"].get("number") == 20)
    released.touch()
    with client.stream("GET", url, headers={"Last-Event-ID": seen["id"]}) as response:
        rest = list(events(response))
    told = [event["data"]["message"] for event in rest if event["event"] == "log"]
    assert told == [*(f"line {number}" for number in range(21, 30)), "the last"]
    assert rest[-1]["event"] == "state"
    assert rest[-1]["data"] == {"state": "SUCCESS"}
    assert client.get(url, headers={"Last-Event-ID": rest[-1]["id"]}).status_code == 204
    assert client.get(url, headers={"Last-Event-ID": "nonsense"}).status_code == 422


def test_a_silent_stream_gives_signs_of_life_and_leaves_nothing_behind_when_its_client_goes(
    client: httpx2.Client, app: Celery, released: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backburner.queue.http.HEARTBEAT", 0.05)
    app.conf.task_default_queue = "nobodys"
    url = submit(client, "/waits", path=str(released)).json()["events"]
    with client.stream("GET", url) as response:
        lines = response.iter_lines()
        assert next(line for line in lines if line.startswith(": still"))
        assert app.backend.listener.subscriptions == 2
    eventually(lambda: app.backend.listener.subscriptions == 0)


@pytest.mark.slow
def test_a_thousand_clients_that_come_and_go_leave_nothing_behind(
    client: httpx2.Client, app: Celery, released: Path, eventually: Eventually
) -> None:
    app.conf.task_default_queue = "nobodys"
    url = submit(client, "/waits", path=str(released)).json()["events"]

    def come_and_go() -> None:
        with client.stream("GET", url) as response:
            lines = response.iter_lines()
            next(line for line in lines if line.startswith("event: state"))

    def census() -> dict[str, int]:
        eventually(lambda: app.backend.listener.subscriptions == 0)
        counted: dict[str, int] = client.get("/census").json()
        return counted

    for _ in range(100):
        come_and_go()
    before = census()
    for _ in range(1000):
        come_and_go()
    # A few more threads, each with a connection of its own, may have been needed meanwhile.
    assert eventually(lambda: all(now <= before[name] + 10 for name, now in census().items()))
    assert census()["coroutines"] <= before["coroutines"]


def test_deleting_cancels(client: httpx2.Client, app: Celery, released: Path) -> None:
    app.conf.task_default_queue = "nobodys"
    url = submit(client, "/waits", path=str(released)).headers["location"]
    assert client.delete(url).status_code == 204
    assert client.get(url).json()["state"] == "REVOKED"
    assert client.delete(url).status_code == 204


def test_a_job_belongs_to_who_submitted_it(client: httpx2.Client, app: Celery, released: Path) -> None:
    url = submit(client, "/waits", path=str(released)).headers["location"]
    elsewhere = app.tasks["add"].apply_async((1, 1), countdown=60).id
    for path, headers, status in [
        (url, ADA, 200),
        (url, BOB, 404),
        (f"{url}/events", BOB, 404),
        (f"/jobs/{elsewhere}", ADA, 404),
        (f"/jobs/{uuid.uuid4()}", ADA, 404),
    ]:
        assert client.get(path, headers=headers).status_code == status, (path, headers)
    assert client.delete(url, headers=BOB).status_code == 404
    del client.headers["X-User"]
    assert client.get(url).status_code == 401
    shared = submit(client, "/waits", headers=ADA, path=str(released), public=True).headers["location"]
    assert client.get(shared, headers=BOB).status_code == 200
    released.touch()


def test_the_same_idempotency_key_gives_the_same_job_once(
    client: httpx2.Client, app: Celery, worker: Program, released: Path, eventually: Eventually
) -> None:
    key = {"Idempotency-Key": "from-a-double-click"}
    released.touch()
    first = submit(client, "/waits", headers=key, path=str(released))
    second = submit(client, "/waits", headers=key, path=str(released))
    assert first.json() == second.json()
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"
    client.get(first.headers["location"], headers={"Prefer": "wait=10"})
    assert Path(f"{released}.runs").read_text() == "x"
    other = client.post("/waits", params={"path": "another"}, headers=key)
    assert (other.status_code, "another request" in other.text) == (422, True)
    assert submit(client, "/waits", headers=key | BOB, path=str(released)).json()["id"] != first.json()["id"]


def test_arguments_may_be_all_that_tasks_take(client: httpx2.Client, worker: Program) -> None:
    key = {"Idempotency-Key": "an order"}
    order = {"book": 42, "colours": ["red"], "at": "2026-01-02T03:04:05"}
    first, second = (client.post("/orders", json=order, headers=key) for _ in range(2))
    assert (first.status_code, second.status_code) == (202, 202)
    assert second.headers["idempotency-replayed"] == "true"
    assert client.post("/orders", json=order | {"book": 43}, headers=key).status_code == 422
    job = client.get(first.headers["location"], headers={"Prefer": "wait=10"}).json()
    assert job["result"] == order


def test_a_key_whose_first_request_is_under_way_is_a_conflict_and_one_that_failed_is_free(
    client: httpx2.Client, app: Celery, worker: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = {"Idempotency-Key": "k"}
    answers: list[int] = []
    divide = app.tasks["divide"]

    def ask_again(*args: Any, **options: Any) -> None:
        answers.append(httpx2.post(f"{client.base_url}/divisions/4/2", headers=key | ADA).status_code)
        raise RuntimeError("the process is in trouble")

    with monkeypatch.context() as patch:
        patch.setattr(divide, "apply_async", ask_again)
        assert httpx2.post(f"{client.base_url}/divisions/4/2", headers=key | ADA).status_code == 500
    assert answers == [409]
    url = submit(client, "/divisions/4/2", headers=key).headers["location"]
    assert client.get(url, headers={"Prefer": "wait=10"}).json()["result"] == 2.0


@pytest.mark.slow
def test_a_hanging_server_is_a_503_in_time_and_a_job_that_it_did_not_take_a_publish_error(
    make_app: MakeApp, server: EmbeddedServer, url: str
) -> None:
    with FaultProxy("127.0.0.1", server.port) as proxy:
        app = make_app(proxy.url, timeout=0.3)
        task = app.tasks["add"]
        jobs = jobs_router(app, auth=lambda: "ada")
        api = FastAPI()
        api.include_router(jobs)

        @api.post("/sums", status_code=202)
        def add(submission: Annotated[Submission, Depends(jobs.submission)]) -> JobAccepted:
            return submission.accept(task, (1, 2))

        client = TestClient(api)
        url = client.post("/sums").headers["location"]
        signals.before_task_publish.connect(hang := lambda **_: proxy.stall(), weak=False)
        try:
            with pytest.raises(PublishError):
                client.post("/sums")
        finally:
            signals.before_task_publish.disconnect(hang)
        began = time.monotonic()
        assert [client.post("/sums").status_code, client.get(url).status_code] == [503, 503]
        assert time.monotonic() - began < 2 * 2 + 1.5
        proxy.pass_through()


def test_reading_a_job_needs_none_of_the_threads_of_other_routes(app: Celery) -> None:
    async def nobody() -> str:
        return "nobody"

    jobs = jobs_router(app, auth=nobody)
    api = FastAPI()
    api.include_router(jobs)

    async def main() -> None:
        job = await app.tasks["add"].aapply_async((1, 2), queue="nobodys")
        await asyncio.to_thread(jobs.claim, job.id, {"owner": "nobody", "asked": ""}, lasting=True)
        limiter = anyio.to_thread.current_default_thread_limiter()
        limiter.total_tokens = 1
        limiter.acquire_on_behalf_of_nowait("another route")
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(api), base_url="http://api") as client:
            assert (await client.get(f"/jobs/{job.id}")).json()["state"] == "PENDING"

    asyncio.run(asyncio.wait_for(main(), 10))


def test_the_openapi_document_has_the_tasks_return_type(client: httpx2.Client) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    (resource,) = (schema for name, schema in schemas.items() if name.startswith("JobResource"))
    assert {"type": "object", "additionalProperties": {"type": "integer"}} in resource["properties"]["result"]["anyOf"]


class Foreign:
    """Of which pydantic knows nothing."""


@pytest.mark.parametrize("annotation", ["Nowhere", Foreign])
def test_a_result_whose_type_means_nothing_may_be_anything(app: Celery, annotation: Any) -> None:
    def odd() -> Any: ...

    odd.__annotations__["return"] = annotation
    api = FastAPI()
    api.include_router(jobs_router(app, auth=lambda: "ada", tasks=[app.task(odd, name="odd", shared=False)]))
    assert "JobResource" in str(api.openapi())


def test_routes_without_an_auth_are_refused_in_words(app: Celery) -> None:
    with pytest.raises(ConfigError, match="give a dependency that says who asks"):
        jobs_router(app, auth=None)  # type: ignore[arg-type]


def test_an_auth_that_names_nobody_is_an_error_that_says_so(app: Celery) -> None:
    jobs = jobs_router(app, auth=lambda: None)
    with pytest.raises(TypeError, match="names who asks"):
        jobs.submission(None, None, None)
