"""Arguments are checked where the job is enqueued, and arrive as they were."""

import asyncio
import math
import re
from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import celery
import kombu
import pytest
from kombu.exceptions import EncodeError
from pydantic import BaseModel

from backburner.queue import Celery, JobGroup
from tests.processes import Program
from tests.queue.conftest import MakeApp
from tests.queue.programs.jobs import Colour, Order


def test_models_enums_and_sets_arrive_as_they_were_and_come_back(app: Celery, worker: Program) -> None:
    order = Order(book=7, colours={Colour.RED}, at="2026-11-21T12:00:00Z")
    job = app.tasks["place_order"].delay(order, {1, 2}, colour=Colour.BLUE)
    placed = {"order": order.model_copy(update={"book": 8}), "kind": "Order {1, 2} BLUE"}
    assert job.get(timeout=5) == placed
    assert app.AsyncResult(job.id).get(timeout=5)["order"] == placed["order"].model_dump(mode="json")
    plain = app.tasks["place_order"].delay({"book": "7", "colours": ["red"], "at": order.at}, [1, 2], colour="blue")
    assert plain.get(timeout=5) == placed

    async def main() -> Any:
        return await (await app.tasks["aplace_order"].adelay(order)).aget(timeout=5)

    assert asyncio.run(main()) == order


def test_keys_that_are_no_text_arrive_as_they_were_and_come_back(app: Celery, worker: Program) -> None:
    copies = {7: b"\xff"}
    job = app.tasks["count_copies"].delay(copies, {date(2026, 11, 21): [{1.5: True}]})
    assert job.get(timeout=5) == copies


def test_eager_jobs_give_what_the_task_returned_and_hand_on_what_is_sent(app: Celery) -> None:
    app.conf.task_always_eager = True
    order = Order(book=7, colours={Colour.RED}, at="2026-11-21T12:00:00Z")
    task = app.tasks["aplace_order"]
    assert task.delay(order).get() == task.delay(order).snapshot().result == order
    assert asyncio.run(task.adelay(order)).get() == order

    @app.task(shared=False)
    def book_of(order: dict[str, Any]) -> int:
        return order["book"]

    assert celery.chain(task.s(order), book_of.s()).delay().get() == 7


def test_where_types_have_no_say_arguments_and_results_are_left_as_they_are(
    app: Celery, make_app: MakeApp, url: str
) -> None:
    class Untyped(celery.Task):
        typing = False

    async def kinds(order: Order, colour: Colour) -> set[int]:
        return [type(order).__name__, type(colour).__name__, 1]

    lax = make_app(url, strict_typing=False)
    for name, task in (
        ("by the option", app.task(name="by the option", shared=False, typing=False)(kinds)),
        ("by the base", app.task(name="by the base", shared=False, base=Untyped)(kinds)),
        ("by the app", lax.task(name="by the app", shared=False)(kinds)),
    ):
        assert task.apply(({"book": 7}, "red")).get() == ["dict", "str", 1], name
        task.delay("anything", "at all")


def test_pydantics_options_of_celerys_hold(app: Celery) -> None:
    class Stamp(BaseModel):
        book: int
        note: str = ""

    @app.task(pydantic=True, pydantic_dump_kwargs={"exclude_unset": True}, shared=False)
    def stamp(stamp: Stamp, copies: set[int]) -> Stamp:
        assert (type(stamp), type(copies)) == (Stamp, list)
        return stamp

    @app.task(pydantic=True, pydantic_dump_kwargs={"exclude_unset": True}, shared=False)
    async def astamp(stamp: Stamp) -> Stamp:
        return stamp

    assert stamp.apply(({"book": 7}, [1])).get() == {"book": 7}
    assert astamp.apply(({"book": 7},)).get() == {"book": 7}


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        (({"book": 7},), {}, r"place_order\(\) got a wrong argument: order.colours: Field required"),
        ((None, []), {}, "order: Input should be"),
        ((), {"order": {"book": 1, "colours": [], "at": 0}, "copies": "many"}, "copies: Input should be a valid set"),
        ((), {}, "missing"),
    ],
)
def test_a_wrong_call_is_a_type_error_of_the_caller(
    app: Celery, args: tuple[Any, ...], kwargs: dict[str, Any], message: str
) -> None:
    task = app.tasks["place_order"]
    with pytest.raises(TypeError, match=message):
        task.delay(*args, **kwargs)
    with pytest.raises(TypeError, match=message):
        asyncio.run(task.adelay(*args, **kwargs))
    with pytest.raises(TypeError, match=message):
        task.delay_many([args or kwargs])
    with pytest.raises(TypeError, match=message):
        task.apply_async(args, kwargs, headers={"celery's": "own path"})


def test_positional_only_arguments_are_not_given_by_name(app: Celery) -> None:
    @app.task(shared=False, bind=True)
    def halve(self: Any, number: float, times: int = 1, /, **names: int) -> float:
        return number / 2**times

    with pytest.raises(TypeError, match=r"halve\(\) got a wrong call: .*number"):
        halve.apply_async(kwargs={"number": 4})
    assert halve.apply_async((4,), {"number": 1, "times": 1}).id  # these are among the names


@pytest.mark.parametrize("seconds", ["5s", Decimal(5), 5j], ids=repr)
def test_seconds_that_are_none_are_named(app: Celery, seconds: Any) -> None:
    says = re.escape(f"={seconds!r}: write a number, of seconds")
    add = app.tasks["add"]
    for enqueue in (
        lambda: add.apply_async((1, 2), countdown=seconds),
        lambda: asyncio.run(add.aapply_async((1, 2), countdown=seconds)),
        lambda: add.delay_many([(1, 2)], countdown=seconds),
    ):
        with pytest.raises(TypeError, match="countdown" + says):
            enqueue()
    job = add.apply_async((1, 2), countdown=60)
    for wait in (
        lambda: job.get(timeout=seconds),
        lambda: asyncio.run(job.aget(timeout=seconds)),
        lambda: asyncio.run(JobGroup([job]).aget(timeout=seconds)),
    ):
        with pytest.raises(TypeError, match="timeout" + says):
            wait()


WAYS: list[Callable[..., Any]] = [
    lambda task, *call, **options: task.apply_async(*call, **options),
    lambda task, *call, **options: asyncio.run(task.aapply_async(*call, **options)),
    lambda task, *call, **options: task.apply_async(*call, **{"headers": {"shop": "ours"}} | options),
    lambda task, *call, **options: asyncio.run(task.aapply_async(*call, **{"headers": {"shop": "ours"}} | options)),
]
"""Ours and Celery's, blocking and awaited."""


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"eta": 5}, "eta=5: write a datetime; seconds from now are a countdown"),
        ({"eta": 0}, "eta=0: write a datetime"),
        ({"eta": "tomorrow"}, "eta='tomorrow': write a datetime, or its text"),
        ({"countdown": math.nan}, "countdown=nan: no date is so many seconds from now"),
        ({"countdown": 1e15}, "countdown=1000000000000000.0: no date"),
        ({"expires": "tomorrow"}, "expires='tomorrow': write a datetime, or its text"),
        ({"expires": timedelta(1)}, "expires=datetime.timedelta(days=1): write a datetime or seconds"),
        ({"expires": date(2030, 12, 31)}, "expires=datetime.date(2030, 12, 31): write a datetime or seconds"),
        ({"expires": -math.inf}, "expires=-inf: no date"),
        ({"time_limit": "5"}, "time_limit='5': write a number, of seconds"),
        ({"priority": "high"}, "priority='high': write a number from 0 to 9"),
        ({"queue": 5}, "queue=5: write the queue's name, or a kombu.Queue"),
        ({"task_id": 5}, "task_id=5: write a text, as in task_id='5'"),
        ({"headers": 5}, "headers=5: write a dict"),
        ({"link": "add"}, "link='add': write a signature, as in link=task.s(), or a list of them"),
        ({"link_error": [5]}, "link_error=5: write a signature"),
        ({"retry_policy": 5}, "retry_policy=5: write a dict"),
        ({"retry_policy": {"max_tries": 5}}, "retry_policy knows no 'max_tries', only errback, interval_max"),
        ({"retry_policy": {"max_retries": "5"}}, "retry_policy['max_retries']='5': write a number"),
        ({"compression": "rar"}, "compression='rar' is none that is known here: application/x-"),
    ],
    ids=repr,
)
def test_options_that_mean_nothing_are_told_in_one_sentence_whichever_way_a_job_goes(
    app: Celery, options: dict[str, Any], told: str
) -> None:
    add = app.tasks["add"]
    ways = [partial(way, add, (1, 2)) for way in WAYS]
    ways += [partial(app.send_task, "add", (1, 2)), lambda **options: add.s(1, 2).set(**options).apply_async()]
    if "task_id" not in options:  # it is one job's
        ways.append(partial(add.delay_many, [(1, 2)]))
    for enqueue in ways:
        with pytest.raises((TypeError, ValueError), match="^" + re.escape(told)):
            enqueue(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"eta": "2030-12-31T18:00:00Z"},
        {"eta": date(2030, 12, 31)},
        {"countdown": -3},
        {"expires": -1},
        {"expires": "2030-12-31T18:00:00"},
        {"priority": 11},
        {"priority": "3"},
        {"queue": kombu.Queue("tea")},
        {"link": []},
        {"link": {"task": "add", "args": [1]}},
        {"compression": "gzip"},
        {"retry_policy": {"max_retries": None, "interval_step": 0.1}},
        {"retries": 1, "link": ["add"]},
    ],
    ids=repr,
)
def test_options_that_celery_takes_are_taken(app: Celery, options: dict[str, Any]) -> None:
    for way in WAYS:
        assert way(app.tasks["add"], (1, 2), **options).id


def test_what_cannot_be_sent_is_named_whichever_way_a_job_goes(app: Celery) -> None:
    add = app.tasks["add"]
    for way in WAYS:
        with pytest.raises(EncodeError) as refused:
            way(add, (1, object()))
        assert refused.value.__notes__[0].startswith("The argument 2 of the task add, of type object, cannot be sent.")
        with pytest.raises(EncodeError) as refused:
            way(add, (1,), {"b": {"c": object()}})
        assert refused.value.__notes__[0].startswith("The argument 'b' of the task add, of type dict, cannot be sent.")
        with pytest.raises(TypeError, match="task args must be a list or tuple; those of add are a str"):
            way(add, "ab")
        with pytest.raises(TypeError, match="task keyword arguments must be a mapping; those of add are a list"):
            way(add, (1, 2), [3])


@pytest.mark.parametrize("wrong", [(1,), (1, object()), {"a": 1, "c": 2}, 5], ids=range(4))
@pytest.mark.parametrize("options", [{}, {"headers": {"shop": "ours"}}], ids=["the producer's", "Celery's own path"])
def test_of_many_calls_the_wrong_one_is_named(app: Celery, wrong: Any, options: dict[str, Any]) -> None:
    add, calls = app.tasks["add"], [(1, 2)] * 450 + [wrong, (1, 2)]
    for enqueue in (add.delay_many, lambda *args, **options: asyncio.run(add.adelay_many(*args, **options))):
        with pytest.raises((TypeError, EncodeError)) as refused:
            enqueue(calls, **options)
        assert refused.value.__notes__[-1] == "That is about calls[450]. No job was enqueued."


def test_text_that_is_a_number_becomes_one_and_a_number_stays_what_it_is(app: Celery) -> None:
    encode = app.tasks["count"].arguments.encode
    assert encode(("42", 1), None) == ((42, 1), {})
    assert isinstance(encode((1, 1), {})[0][1], int)


def test_the_message_does_not_show_what_was_wrong(app: Celery) -> None:
    with pytest.raises(TypeError) as wrong:
        app.tasks["place_order"].delay("secret")
    assert "secret" not in str(wrong.value)


def test_annotations_that_mean_nothing_at_run_time_check_nothing(app: Celery) -> None:
    @app.task(shared=False)
    def odd(a: "Nowhere", b: threading_lock_factory = None) -> None:  # noqa: F821
        """Never run."""

    assert odd.delay("x", 1).id


def test_a_task_whose_base_is_celerys_is_one_of_ours(app: Celery) -> None:
    assert app.task(base=celery.Task, shared=False)(threading_lock_factory).delay().enqueued


def test_a_task_called_directly_is_the_function(app: Celery) -> None:
    order = Order(book=1, colours=set(), at=0)
    assert asyncio.run(app.tasks["aplace_order"](order)) is order


def threading_lock_factory() -> None:
    """No type."""
