"""Jobs: how they are doing, for who handed them in. Who is not logged in has none."""

from app.api.deps import Visitor
from app.core.celery_app import celery_app
from app.problems import problems
from app.workers.tasks import import_books
from backburner.queue.http import jobs_router


def asker(visitor: Visitor) -> int:
    """Whose jobs may be seen; nobody is 0."""
    return visitor.id if visitor else 0


router = jobs_router(celery_app, auth=asker, tasks=[import_books], responses=problems(403, 404, 422, 503))
