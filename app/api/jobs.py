"""Jobs, visible to the user who submitted them; clients that are not logged in have none."""

from app.api.deps import Visitor
from app.core.celery_app import celery_app
from app.problems import problems
from app.workers.tasks import import_books
from backburner.queue.http import jobs_router


def asker(visitor: Visitor) -> int:
    """The id of the user whose jobs may be seen; 0 for a client that is not logged in."""
    return visitor.id if visitor else 0


router = jobs_router(celery_app, auth=asker, tasks=[import_books], responses=problems(403, 404, 422, 503))
