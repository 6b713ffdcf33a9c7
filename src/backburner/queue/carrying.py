"""Results on their way from a process of the prefork pool to the worker's main process, which stores them.

It does so together with the acknowledgements and for many jobs at once; each process by itself would wait for an answer
after each job. They travel with what Celery sends there anyway: how the result reads in the log. The main process
offers it with each message; what it cannot store as agreed, it stores at once. While nothing waits for a process, it
has the time: then it tells the server by itself, and the result is there sooner.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from celery import current_app, signals

from backburner.queue.settlement import Offer, Stored

OFFER: Final = "backburner_stores"
"""In the request of a job, on its way to the process that runs it: an `Offer`, or none."""
_LONGEST: Final = 65_536
"""Bytes of a result that are worth the way through the pipe."""


class Carried(str):
    """How a result reads in the log, and the result."""

    __slots__ = ("state",)

    state: Stored | None
    """``None`` if the server has it already, and the message is acknowledged."""


@dataclass(slots=True)
class _Job:
    """The one that this process runs, of which the main process has offered to store the result."""

    id: str
    offer: Offer
    came_to: Stored | None = None


_job: ContextVar[_Job | None] = ContextVar("backburner_carried", default=None)


def carry(request: Any, server: tuple[Any, ...], state: Stored) -> bool:
    """Have a result stored by the main process, if it has offered that. To be called by the job, at its end."""
    job = _job.get()
    if job is None or getattr(request, "id", None) != job.id or job.offer.server != server:
        return False
    if getattr(request, "chord", None) or len(state.json) > _LONGEST:
        return False  # a chord counts its parts when they are stored
    job.came_to = state
    return True


@signals.worker_process_init.connect(weak=False)
def _begin(**_: Any) -> None:
    for task in current_app.tasks.values():
        task.__trace__ = _loaded(task, task.__trace__)


def _loaded(task: Any, trace: Any) -> Any:
    """What runs a task, made to send along what is to be carried."""

    def load(job_id: str, args: Any, kwargs: Any, request: dict[str, Any]) -> Any:
        # Taken out: Celery hands on to a retry, and shows the task, what it finds there and does not know.
        offer = request.pop(OFFER, None)
        job = _Job(job_id, offer) if isinstance(offer, Offer) else None
        token, returned = _job.set(job), None
        try:
            returned = trace(job_id, args, kwargs, request)
        finally:
            _job.reset(token)
            if job and job.came_to and (returned is None or returned.info):
                # Something failed after the job's end, and that is what the main process will hear of.
                task.backend.store_carried(job.came_to)
                job.came_to = None
        if job is None or job.came_to is None:
            return returned
        carried = Carried(returned.retstr)
        is_settled = job.offer.leases and task.backend.settle_alone(job.came_to, job.offer)
        carried.state = None if is_settled else job.came_to
        return returned._replace(retstr=carried)

    return load
