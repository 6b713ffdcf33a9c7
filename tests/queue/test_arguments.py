"""Arguments are checked where the job is enqueued, and arrive as they were."""

import asyncio
import re
from decimal import Decimal
from typing import Any

import celery
import pytest
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
