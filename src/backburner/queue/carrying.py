"""Results on their way from a process of the prefork pool to the worker's main process, which stores them.

The main process stores them together with the acknowledgements, for many jobs at once; a pool process would wait for an
answer after each job. They travel with what Celery sends there anyway: the result as text for the log. The main process
offers this with each message; a result that it cannot store as offered, it stores at once. While no job is waiting for
a pool process, the process has time to store its result itself, and the result is there sooner.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from celery import current_app, signals

from backburner.queue.settlement import Offer, Stored

OFFER: Final = "backburner_stores"
"""What the request of a job holds on its way to the process that runs it: its `Offer`, if there is one."""
_LONGEST: Final = 65_536
"""Bytes of the largest result that is worth sending through the pipe."""


class Carried(str):
    """A result as text for the log, and the state to be stored."""

    __slots__ = ("state",)

    state: Stored | None
    """``None`` if the server has it already, and the message is acknowledged."""


@dataclass(slots=True)
class _Job:
    """The job that this process runs, if the main process has offered to store its result."""

    id: str
    offer: Offer
    came_to: Stored | None = None


_job: ContextVar[_Job | None] = ContextVar("backburner_carried", default=None)


def carry(request: Any, server: tuple[Any, ...], state: Stored) -> bool:
    """Have the main process store a result, if it has offered that. Called by the job, at its end."""
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
    """The function that runs a task, wrapped so that it returns what is to be carried."""

    def load(job_id: str, args: Any, kwargs: Any, request: dict[str, Any]) -> Any:
        # Taken out: what Celery does not know there it shows to the task, and hands on to a retry.
        offer = request.pop(OFFER, None)
        job = _Job(job_id, offer) if isinstance(offer, Offer) else None
        token, returned = _job.set(job), None
        try:
            returned = trace(job_id, args, kwargs, request)
        finally:
            _job.reset(token)
            if job and job.came_to and (returned is None or returned.info):
                # Something failed after the job's end, and the main process gets that instead.
                task.backend.store_carried(job.came_to)
                job.came_to = None
        if job is None or job.came_to is None:
            return returned
        carried = Carried(returned.retstr)
        is_settled = job.offer.leases and task.backend.settle_alone(job.came_to, job.offer)
        carried.state = None if is_settled else job.came_to
        return returned._replace(retstr=carried)

    return load
