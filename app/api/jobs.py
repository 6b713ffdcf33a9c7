"""Jobs: how they are doing.

The id of a job cannot be guessed, so who knows it may ask. Imports are for the user who handed in the file.
"""

from typing import Annotated

from fastapi import APIRouter, Path

from app.api.deps import DB, Visitor
from app.core.celery_app import celery_app
from app.models import BookImport
from app.problems import not_found, problems
from app.schemas import JobRead
from app.workers.tasks import import_books
from backburner.errors import UnknownJob

router = APIRouter(prefix="/jobs", tags=["jobs"])

JobId = Annotated[str, Path(max_length=200, pattern=r"^[ -~]+$", examples=["7d1c9f1e-5a0b-4c55-9e0c-3d5a1f0e8a11"])]
"""Celery makes UUIDs, but takes any text: whatever is no job's id is unknown, and not wrong."""


@router.get("/{job_id}", summary="Read one", responses=problems(404, 422, 503))
def read_job(job_id: JobId, db: DB, visitor: Visitor) -> JobRead:
    """The state of a job, its progress while it runs, and what came of it.

    An import's result counts its rows: `created`, `updated`, `unchanged` and `skipped`, and lists the first
    hundred skipped ones as `problems` with `line` and `reason`.
    """
    book_import = db.get(BookImport, job_id)
    if book_import and (visitor is None or visitor.id != book_import.user_id):
        raise not_found(f"job {job_id}")
    try:
        return JobRead.model_validate(celery_app.AsyncResult(job_id).snapshot())
    except UnknownJob as error:
        if book_import and book_import.report:  # the queue forgets results after a day, we do not
            return JobRead(
                id=book_import.id,
                name=import_books.name,
                state="SUCCESS",
                progress=None,
                result=book_import.report,
            )
        raise not_found(f"job {job_id}") from error
