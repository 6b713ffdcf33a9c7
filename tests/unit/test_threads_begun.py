"""Threads that the first caller begins: if he is interrupted just then, the next one begins it again."""

from collections.abc import Callable, Sequence
from threading import Thread
from typing import Any

import pytest

from backburner.queue import reporting
from backburner.queue.starting import Starts
from tests.alarms import Alarm
from tests.conftest import Eventually


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Calls something that is interrupted as it begins a thread."""

    def interrupt(_: Thread) -> None:
        raise Alarm

    def call(function: Callable[[], object]) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Thread, "start", interrupt)
            with pytest.raises(Alarm):
                function()

    return call


def test_that_which_tells_of_starts(
    interrupted: Callable[[Callable[[], object]], None], eventually: Eventually
) -> None:
    told: list[Sequence[Any]] = []
    starts, state = Starts(told.append), object()

    def add() -> None:
        starts.add("job", "now", lambda: state)  # type: ignore[arg-type,return-value]

    interrupted(add)
    add()
    eventually(lambda: told == [[state]])


def test_that_which_sends_reports(
    interrupted: Callable[[Callable[[], object]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Thread] = []

    def begin(thread: Thread) -> None:
        begun.append(thread)

    sender = reporting._Sender()
    with reporting._lock:
        interrupted(sender.wake)
        monkeypatch.setattr(Thread, "start", begin)
        sender.wake()
        sender.wake()
    assert [thread.name for thread in begun] == ["backburner-reporting"]
