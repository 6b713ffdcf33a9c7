"""FastAPI's dependencies in tasks: what they get, when they are closed, and which are refused."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from typing import Annotated, Any

import anyio
import celery
import pytest
from celery.exceptions import Retry
from fastapi import BackgroundTasks, Body, Depends, Header, Query, Request, Response, Security, WebSocket
from fastapi.security import HTTPBearer, SecurityScopes

from backburner.errors import ConfigError
from backburner.queue import INJECTED, Celery

told: list[Any] = []
speaks: ContextVar[str] = ContextVar("speaks", default="nobody")


@pytest.fixture(autouse=True)
def nothing_told() -> None:
    told.clear()


@pytest.fixture
def jobs() -> Celery:
    """An app whose tasks are run on the spot, by Celery's own tracer."""
    app = Celery("jobs", set_as_current=False, broker="memory://", backend="cache+memory://")
    app.task = partial(app.task, shared=False)  # other apps in this process know nothing of these
    return app


def run(task: Any, *args: Any, **kwargs: Any) -> Any:
    return task.apply(args, kwargs).get()


def get_db() -> Iterator[str]:
    told.append("open")
    try:
        yield "db"
    except BaseException as error:
        told.append(type(error).__name__)
        raise
    finally:
        told.append("closed")


async def get_client(db: Annotated[str, Depends(get_db)]) -> AsyncIterator[str]:
    told.append("client open")
    yield f"client of {db}"
    told.append("client closed")


def number() -> int:
    told.append("number")
    return len(told)


async def doubled(of: Annotated[int, Depends(number)]) -> int:
    return 2 * of


class Limits:
    def __init__(self, db: Annotated[str, Depends(get_db)], most: int = 10) -> None:
        self.text = f"{most} of {db}"


class Twice:
    def __call__(self, of: Annotated[int, Depends(number)]) -> int:
        return 2 * of


DB = Annotated[str, Depends(get_db)]


def test_functions_of_all_kinds_get_dependencies_of_all_kinds(jobs: Celery) -> None:
    @jobs.task
    def plain(
        key: str,
        db: DB,
        client: Annotated[str, Depends(get_client)],
        limits: Annotated[Limits, Depends()],
        count: int = 1,
        *,
        twice: Annotated[int, Depends(Twice())] = INJECTED,
        same: int = Depends(partial(number)),
        doubled: Annotated[int, Security(doubled)],
    ) -> list[Any]:
        told.append("run")
        return [key, db, client, limits.text, count, twice, same, doubled]

    @jobs.task(bind=True)
    async def coroutine(
        self: Any,
        key: str,
        db: DB,
        client: Annotated[str, Depends(get_client)],
        count: int = 1,
    ) -> list[Any]:
        told.append("run")
        await asyncio.sleep(0)
        return [key, db, client, count, self.request.id]

    assert run(plain, "x", 7) == ["x", "db", "client of db", "10 of db", 7, 6, 4, 6]
    assert told == ["open", "client open", "number", "number", "run", "client closed", "closed"]
    told.clear()
    done = coroutine.apply(("x",), {"count": 5})
    assert done.get() == ["x", "db", "client of db", 5, done.id]
    assert told == ["open", "client open", "run", "client closed", "closed"]


def traced(function: Callable[..., Any]) -> Any:
    """A decorator as many write them, which knows nothing of coroutines and generators."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


class Traced:
    @traced
    async def __call__(self) -> str:
        return "called"


@traced
async def answer() -> str:
    return "answer"


@contextmanager
def managed() -> Iterator[str]:
    yield "managed"


def test_decorated_ones_are_what_they_are_to_fastapi(jobs: Celery) -> None:
    @jobs.task
    def blocking(
        a: Annotated[str, Depends(answer)],
        b: Annotated[str, Depends(traced(get_db))],
        c: Annotated[str, Depends(traced(get_client))],
        d: Annotated[str, Depends(Traced())],
        e: Annotated[str, Depends(partial(answer))],
        f: Annotated[Any, Depends(managed)],
    ) -> list[str]:
        with f as inside:
            return [a, b, c, d, e, inside]

    @jobs.task
    async def awaiting(
        a: Annotated[str, Depends(answer)],
        b: Annotated[str, Depends(traced(get_db))],
        c: Annotated[str, Depends(traced(get_client))],
        d: Annotated[str, Depends(Traced())],
    ) -> list[str]:
        return [a, b, c, d]

    assert run(blocking) == ["answer", "db", "client of db", "called", "answer", "managed"]
    assert run(awaiting) == ["answer", "db", "client of db", "called"]
    assert told.count("closed") == told.count("open") == 4


def test_each_is_called_once_for_a_job_unless_it_says_otherwise(jobs: Celery) -> None:
    @jobs.task
    def task(
        first: Annotated[int, Depends(number)],
        again: Annotated[int, Depends(number)],
        anew: Annotated[int, Depends(number, use_cache=False)],
        through: Annotated[int, Depends(doubled)],
    ) -> list[int]:
        return [first, again, anew, through]

    assert run(task) == [1, 1, 2, 2]
    assert run(task) == [3, 3, 4, 6]


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_job_that_fails_closes_them_and_tells_them(jobs: Celery, kind: str) -> None:
    def plain(db: DB) -> None:
        raise ValueError("of the task")

    async def coroutine(db: DB) -> None:
        raise ValueError("of the task")

    task = jobs.task(plain if kind == "def" else coroutine)
    with pytest.raises(ValueError, match="of the task"):
        run(task)
    assert told == ["open", "ValueError", "closed"]


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_dependency_that_keeps_quiet_about_an_error_saves_no_job(jobs: Celery, kind: str) -> None:
    def quiet() -> Iterator[None]:
        try:
            yield
        except ValueError:
            told.append("quiet")

    def plain(db: Annotated[None, Depends(quiet)]) -> None:
        raise ValueError("of the task")

    async def coroutine(db: Annotated[None, Depends(quiet)]) -> None:
        raise ValueError("of the task")

    with pytest.raises(ValueError, match="of the task"):
        run(jobs.task(plain if kind == "def" else coroutine))
    assert told == ["quiet"]


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_what_a_dependency_raises_is_the_jobs_failure_before_it_and_after_it(jobs: Celery, kind: str) -> None:
    def broken(db: DB) -> Iterator[int]:
        raise OSError("no entrance")
        yield 1

    async def late(db: DB) -> AsyncIterator[int]:
        yield 1
        raise OSError("no way out")

    for dependency, message in ((broken, "no entrance"), (late, "no way out")):
        told.clear()

        def plain(value: Annotated[int, Depends(dependency)]) -> None:
            told.append("run")

        async def coroutine(value: Annotated[int, Depends(dependency)]) -> None:
            told.append("run")

        with pytest.raises(OSError, match=message):
            run(jobs.task(name=message)(plain if kind == "def" else coroutine))
        assert told[-1] == "closed"
        assert ("run" in told) is (dependency is late)
        assert "OSError" in told


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_what_one_tells_in_a_context_variable_the_others_and_the_job_know_until_it_is_closed(
    jobs: Celery, kind: str
) -> None:
    async def tenant() -> AsyncIterator[None]:
        token = speaks.set("tenant")
        yield
        told.append(speaks.get())
        speaks.reset(token)

    async def known(_: Annotated[None, Depends(tenant)]) -> str:
        before = speaks.get()
        speaks.set("known")
        return before

    def plain(before: Annotated[str, Depends(known)]) -> list[str]:
        return [before, speaks.get()]

    async def coroutine(before: Annotated[str, Depends(known)]) -> list[str]:
        return [before, speaks.get()]

    assert run(jobs.task(plain if kind == "def" else coroutine)) == ["tenant", "known"]
    assert told == ["known"]
    assert speaks.get() == "nobody"


def test_generators_of_functions_keep_their_context_too(jobs: Celery) -> None:
    def tenant() -> Iterator[None]:
        token = speaks.set("tenant")
        yield
        speaks.reset(token)

    async def known(_: Annotated[None, Depends(tenant)]) -> str:
        return speaks.get()

    @jobs.task
    def task(before: Annotated[str, Depends(known)]) -> list[str]:
        return [before, speaks.get()]

    assert run(task) == ["tenant", "tenant"]


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_one_task_of_the_loop_enters_and_exits_them(jobs: Celery, kind: str) -> None:
    async def group() -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            try:
                yield
            except ValueError as error:
                told.append(str(error))
                raise
            finally:
                group.cancel_scope.cancel()

    def plain(fails: bool, _: Annotated[None, Depends(group)] = None) -> None:
        if fails:
            raise ValueError("of the task")

    async def coroutine(fails: bool, _: Annotated[None, Depends(group)] = None) -> None:
        plain(fails)

    task = jobs.task(plain if kind == "def" else coroutine)
    run(task, fails=False)
    with pytest.raises((ValueError, ExceptionGroup)):  # anyio's group makes a group of it
        run(task, fails=True)
    assert told == ["of the task"]


def test_one_that_wants_to_end_the_process_does_not_end_the_loop_of_others(jobs: Celery) -> None:
    async def leaving() -> AsyncIterator[None]:
        yield
        raise SystemExit

    @jobs.task
    def task(_: Annotated[None, Depends(leaving)]) -> None: ...

    for _ in range(2):
        with pytest.raises(SystemExit):
            run(task)


def test_a_retry_is_seen_as_such(jobs: Celery) -> None:
    @jobs.task(bind=True)
    def task(self: Any, db: DB) -> None:
        raise self.retry(throw=True) if self.request.retries else Retry("later")

    task.apply()
    assert told == ["open", "Retry", "closed"]


def test_blocking_ones_of_a_coroutine_do_not_block_its_loop(jobs: Celery) -> None:
    async def loop_thread() -> int:
        return threading.get_ident()

    @jobs.task
    async def task(
        blocking: Annotated[int, Depends(threading.get_ident)], on_loop: Annotated[int, Depends(loop_thread)]
    ) -> bool:
        return blocking != on_loop == threading.get_ident()

    assert run(task)


def test_calls_leave_them_out(jobs: Celery) -> None:
    @jobs.task
    def task(key: int, db: DB, count: int = 1) -> list[Any]:
        return [key, db, count]

    assert run(task, "1", "2") == [1, "db", 2]
    for args, kwargs in [((1, 2, 3), {}), ((1,), {"db": "mine"}), ((), {}), (("x",), {})]:
        with pytest.raises(TypeError):
            task.apply_async(args, kwargs)


def test_annotations_may_be_text_and_some_of_it_mean_nothing_at_run_time(jobs: Celery) -> None:
    @jobs.task
    def task(key: "Nowhere", db: "DB", limits: "Annotated[Limits, Depends()]") -> list[Any]:  # noqa: F821
        return [key, db, limits.text]

    assert run(task, "1") == ["1", "db", "10 of db"]


def test_whoever_calls_the_function_itself_may_give_them(jobs: Celery) -> None:
    @jobs.task
    def task(key: int, db: DB, count: int = 1) -> list[Any]:
        return [key, db, count]

    @jobs.task(bind=True)
    async def coroutine(self: Any, key: int, db: str = Depends(get_db)) -> list[Any]:
        return [key, db]

    assert task(1, "mine", 3) == [1, "mine", 3]
    assert task(1, count=2) == [1, "db", 2]
    assert asyncio.run(coroutine(1, db="mine")) == [1, "mine"]
    assert told == ["open", "closed"]
    assert asyncio.run(coroutine(1)) == [1, "db"]


def test_tests_put_others_in_their_place(jobs: Celery) -> None:
    @jobs.task
    def task(client: Annotated[str, Depends(get_client)]) -> str:
        return client

    jobs.dependency_overrides[get_db] = lambda: "a double"
    assert run(task) == "client of a double"
    jobs.dependency_overrides.clear()
    assert run(task) == "client of db"


def test_a_lifespan_is_one_too(jobs: Celery) -> None:
    @jobs.lifespan
    async def resource() -> AsyncIterator[str]:
        yield "there"

    @jobs.task
    async def task(value: Annotated[str, Depends(resource)]) -> str:
        return value

    with pytest.raises(RuntimeError, match="has not been entered"):
        run(task)
    jobs.lifespans.enter()
    try:
        assert run(task) == "there"
    finally:
        jobs.lifespans.leave()


def of_a_header(x_token: Annotated[str | None, Header()] = None) -> None: ...
def of_the_query(page: int) -> None: ...
def of_a_marked_query(page: int = Query(1)) -> None: ...
def of_a_body(name: Annotated[str, Body()]) -> None: ...
def of_the_request(request: Request) -> None: ...
def of_a_socket(socket: WebSocket) -> None: ...
def of_the_response(response: Response) -> None: ...
def of_the_rest(tasks: BackgroundTasks) -> None: ...
def of_scopes(scopes: SecurityScopes) -> None: ...
def of_another(token: Annotated[None, Depends(of_a_header)]) -> None: ...


@pytest.mark.parametrize(
    ("dependency", "message"),
    [
        (of_a_header, r"task\(\) depends on of_a_header\(\), which needs x_token, from the header of a request"),
        (of_the_query, "page, from the query of a request"),
        (of_a_marked_query, "page, from the query of a request"),
        (of_a_body, "name, from the body of a request"),
        (of_the_request, r"of_the_request\(\), which needs request, the Request, and a job has no request"),
        (of_a_socket, "socket, the WebSocket"),
        (of_the_response, "response, the Response"),
        (of_the_rest, "tasks, the BackgroundTasks"),
        (of_scopes, "scopes, the SecurityScopes"),
        (HTTPBearer(), r"depends on HTTPBearer\(\), which needs request, the HTTPConnection"),
        (of_another, r"task\(\) depends on of_another\(\) depends on of_a_header\(\), which needs x_token"),
    ],
)
def test_one_that_needs_a_request_is_an_error_where_the_task_is_declared(
    jobs: Celery, dependency: Any, message: str
) -> None:
    def task(key: int, value: Any = Depends(dependency)) -> None:  # noqa: B008  # FastAPI's way
        """Never run."""

    for decorator in (jobs.task, jobs.task(name="named"), jobs.task(bind=True)):
        with pytest.raises(ConfigError, match=message):
            decorator(task)


def test_what_cannot_be_a_task_is_an_error_where_it_is_declared(jobs: Celery) -> None:
    def lines() -> Iterator[str]:
        yield ""

    async def alines() -> AsyncIterator[str]:
        yield ""

    class Job:
        """No function."""

    for decorator in (jobs.task, jobs.task(name="named")):
        for generator in (lines, alines):
            with pytest.raises(ConfigError, match=r"lines yields, and nobody"):
                decorator(generator)
        with pytest.raises(ConfigError, match="Job is a class"):
            decorator(Job)
    base = type("Lines", (celery.Task,), {"__module__": __name__})
    assert jobs.task(base=base)(lines), "its class may go through it"


def test_what_depends_on_itself_is_an_error(jobs: Celery) -> None:
    def first(value: Any = Depends(lambda: None)) -> None: ...  # noqa: B008  # as above

    def second(value: Annotated[None, Depends(first)]) -> None: ...

    first.__defaults__ = (Depends(second),)
    with pytest.raises(ConfigError, match="that has no end"):

        @jobs.task
        def task(value: Annotated[None, Depends(first)]) -> None: ...


def test_fastapi_is_not_needed() -> None:
    program = """
import sys
sys.modules["fastapi"] = sys.modules["starlette"] = None
from backburner.queue import Celery
app = Celery("plain", broker="memory://", backend="cache+memory://")
@app.task
async def add(a: int, b: int = 1) -> int:
    return a + b
print(add.apply((1,)).get())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.returncode) == ("2\n", 0), done.stderr
