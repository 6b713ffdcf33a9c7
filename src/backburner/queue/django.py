"""The base class of all tasks in a Django project: ours, with what Celery adds there, `delay_on_commit` and the like.

Nothing else here is about Django, which Celery finds and sets up by itself.
"""

from typing import TypeVar

from celery.contrib.django import task as stock

from backburner.queue.task import P, R_co, Task

T_co = TypeVar("T_co", covariant=True)


class DjangoTask(Task[P, R_co, T_co], stock.DjangoTask[P, R_co]):
    """A task that can also be enqueued when a database's transaction is committed."""

    abstract = True
