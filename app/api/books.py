"""Books. Everybody may read them, if possible from the cache; logged-in users may change them."""

from typing import Annotated, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, HTTPException, Query, Response
from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError

from app import uploads
from app.api import jobs
from app.api.deps import CurrentUser, Id
from app.api.kept_responses import keep_for_all
from app.api.upload import UPLOAD_BODY, receive_books_file
from app.book_cache import books_changed, remember_book, remember_page
from app.core.database import DB
from app.models import Book, BookImport
from app.problems import not_found, problems
from app.queries import count_books, list_books
from app.schemas import BookCreate, BookPage, BookRead, BookUpdate
from app.workers.tasks import import_books
from backburner.queue.http import JobAccepted, Submission

router = APIRouter(prefix="/books", tags=["books"])

Sort = Literal["title", "-title", "author", "-author", "year", "-year", "id", "-id"]
Search = Annotated[str, Query(max_length=200, description="Words of title, author or ISBN", examples=["le guin"])]


@router.head("", dependencies=[Depends(keep_for_all)], include_in_schema=False)
@router.get("", dependencies=[Depends(keep_for_all)], summary="List and search", responses=problems(422, 503))
def read_books(
    db: DB,
    q: Search = "",
    sort: Annotated[Sort, Query(description="`-` in front: the other way round")] = "title",
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> BookPage:
    """Books that contain all words of `q`, regardless of case and accents; without `q`, all books."""

    def load() -> BookPage:
        books = db.scalars(list_books(q, sort).limit(limit).offset(offset))
        total = db.scalar(count_books(q)) or 0
        return BookPage(
            items=[BookRead.model_validate(book) for book in books], total=total, limit=limit, offset=offset
        )

    return remember_page(urlencode({"q": q, "sort": sort, "limit": limit, "offset": offset}), load)


@router.head("/{book_id}", dependencies=[Depends(keep_for_all)], include_in_schema=False)
@router.get("/{book_id}", dependencies=[Depends(keep_for_all)], summary="Read one", responses=problems(404, 422, 503))
def read_book(book_id: Id, db: DB) -> BookRead:
    """One book."""

    def load() -> BookRead:
        book = Book.get(db, id=book_id)
        if book is None:
            raise not_found(f"book {book_id}")
        return BookRead.model_validate(book)

    return remember_book(book_id, load)


@router.post("", status_code=201, summary="Add one", responses=problems(400, 401, 403, 409, 422, 503))
def create_book(new: BookCreate, db: DB, _user: CurrentUser, response: Response) -> BookRead:
    """Add a book. Two books may not share an ISBN; two without ISBN may not share title and author."""
    try:
        book = Book.create(db, obj_in=new)
    except IntegrityError as error:
        raise _taken() from error
    books_changed()
    response.headers["Location"] = f"/books/{book.id}"
    return BookRead.model_validate(book)


@router.patch("/{book_id}", summary="Change one", responses=problems(400, 401, 403, 404, 409, 422, 503))
def update_book(book_id: Id, changes: BookUpdate, db: DB, _user: CurrentUser) -> BookRead:
    """Change the fields that are given, and nothing else."""
    try:
        book = Book.update(db, id=book_id, obj_in=changes)
    except IntegrityError as error:
        raise _taken() from error
    if book is None:
        raise not_found(f"book {book_id}")
    books_changed([book_id])
    return BookRead.model_validate(book)


@router.delete("/{book_id}", status_code=204, summary="Remove one", responses=problems(401, 403, 404, 422, 503))
def delete_book(book_id: Id, db: DB, _user: CurrentUser) -> None:
    """Remove a book."""
    if not Book.delete(db, id=book_id):
        raise not_found(f"book {book_id}")
    books_changed([book_id])


@router.post(
    "/import",
    status_code=202,
    summary="Import a CSV file",
    responses=problems(400, 401, 403, 409, 413, 415, 422, 503),
    openapi_extra={"requestBody": UPLOAD_BODY},
)
def import_file(
    file: Annotated[str, Depends(receive_books_file)],
    db: DB,
    user: CurrentUser,
    submission: Annotated[Submission, Depends(jobs.router.submission)],
) -> JobAccepted:
    """Upload a CSV file of books. A job imports it; its URL tells how far it is, and has a stream of its events.

    Columns are found by their names: **title**, **author** (or authors), **year**, **isbn**, and many common
    variations; others are ignored. Delimiters: comma, semicolon, tab, `|`. Encodings: UTF-8, Latin-1.
    At most 50 MB.

    A row with an ISBN stands for the book with that ISBN; a row without, for the book with that title and author.
    Existing books are updated, so importing the same file again changes nothing.
    """
    job_id = submission.job_id
    if not _keep(db, BookImport(id=job_id, user_id=user.id), file):
        return submission.accept(import_books, (job_id,))
    try:
        return submission.accept(import_books, (job_id,))
    except Exception as error:
        # On a 409, another request with the same key is going on with it.
        if not (isinstance(error, HTTPException) and error.status_code == 409):
            db.execute(delete(BookImport).where(BookImport.id == job_id))
            db.commit()
            uploads.discard(job_id)
        raise


def _keep(db: DB, book_import: BookImport, file: str) -> bool:
    """Store an import together with its file; False if it was sent before with the same Idempotency-Key."""
    try:
        db.add(book_import)
        db.flush()  # a request with the same key at the same time waits here
        uploads.rename(file, book_import.id)
        db.commit()  # before the job is enqueued: the worker may be faster than this request
    except IntegrityError:
        db.rollback()
        return False
    return True


def _taken() -> HTTPException:
    return HTTPException(
        409, "There is a book with this ISBN already; or, without an ISBN, with this title and author."
    )
