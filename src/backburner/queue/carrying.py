"""Results on their way from a process of the prefork pool to the worker's main process, which stores them.

It does so together with the acknowledgements and for many jobs at once; each process by itself would wait for an answer
after each job. They travel with what Celery sends there anyway: how the result reads in the log. The main process
offers it with each message; what it cannot store as agreed, it stores at once. While nothing waits for a process, it
has the time: then it tells the server by itself, and the result is there sooner.
"""

from contextvars import ContextVar
from typing import Any, Final

from celery import current_app, signals

from backburner.queue.settlement import Offer, Stored

OFFER: Final = "backburner_stores"
"""In the request of a job: an `Offer`, or none."""
_LONGEST: Final = 65_536
"""Bytes of a result that are worth the way through the pipe."""


class Carried(str):
    """How a result reads in the log, and the result."""

    __slots__ = ("state",)

    state: Stored | None
    """``None`` if the server has it already, and the message is acknowledged."""


_carried: ContextVar[list[tuple[Stored, Offer]] | None] = ContextVar("backburner_carried", default=None)
"""What the job came to; ``None`` where nothing would take it along."""


def carry(request: Any, server: tuple[Any, ...], state: Stored) -> bool:
    """Have a result stored by the main process, if it has offered that. To be called by the job, at its end."""
    offer: Offer | None = getattr(request, OFFER, None)
    if offer is None or offer.server != server or getattr(request, "chord", None) or len(state.json) > _LONGEST:
        return False  # a chord counts its parts when they are stored
    here = _carried.get()
    if here is None:
        return False
    here[:] = [(state, offer)]
    return True


@signals.worker_process_init.connect(weak=False)
def _begin(**_: Any) -> None:
    for task in current_app.tasks.values():
        task.__trace__ = _loaded(task, task.__trace__)


def _loaded(task: Any, trace: Any) -> Any:
    """What runs a task, made to send along what is to be carried."""

    def load(*args: Any) -> Any:
        here: list[tuple[Stored, Offer]] = []
        token, returned = _carried.set(here), None
        try:
            returned = trace(*args)
        finally:
            _carried.reset(token)
            if here and (returned is None or returned.info):
                # Something failed after the job's end, and that is what the main process will hear of.
                task.backend.store_carried(here.pop()[0])
        if not here:
            return returned
        state, offer = here.pop()
        carried = Carried(returned.retstr)
        carried.state = None if offer.leases and task.backend.settle_alone(state, offer) else state
        return returned._replace(retstr=carried)

    return load
