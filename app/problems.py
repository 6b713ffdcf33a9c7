"""One shape for everything that goes wrong: ``application/problem+json`` (RFC 9457)."""

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException as StarletteHTTPException

from app.schemas import Problem
from backburner.errors import QueueError, StoreError

MEDIA_TYPE = "application/problem+json"

log = logging.getLogger("app")

_MEANINGS = {
    400: "The request is damaged.",
    401: "Nobody is logged in, or e-mail and password do not fit.",
    403: "Not allowed, for this user or from this site.",
    404: "There is nothing here, or it is somebody else's.",
    409: "Something like that is there already.",
    413: "The file is too large.",
    415: "The body is of the wrong kind.",
    422: "Something in the request cannot be used; `errors` says what and where.",
    429: "Too often; `Retry-After` says when to try again.",
    500: "Something went wrong on our side.",
    503: "A server behind the bookstore does not answer; try again.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may fail with these statuses."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {
            "description": _MEANINGS[status],
            "content": {MEDIA_TYPE: {"schema": schema, "example": _example(status)}},
        }
        for status in statuses
    }


def install(app: FastAPI) -> None:
    """Make every error of the application a problem."""
    app.exception_handler(StarletteHTTPException)(_http_error)
    app.exception_handler(RequestValidationError)(_invalid_request)
    app.exception_handler(StoreError)(_cannot_tell_who_is_logged_in)
    app.exception_handler(QueueError)(_queue_away)
    app.exception_handler(OperationalError)(_database_away)
    app.exception_handler(PoolTimeout)(_database_away)
    app.exception_handler(Exception)(_bug)
    _document(app)


def _document(app: FastAPI) -> None:
    # FastAPI would document a response's model as application/json, so the schema is put there by hand.
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        document["components"]["schemas"]["Problem"] = Problem.model_json_schema()
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def not_found(what: str) -> HTTPException:
    """The problem of something that does not exist."""
    return HTTPException(404, f"There is no {what}.")


def _problem(
    status: int,
    detail: str,
    headers: dict[str, str] | None = None,
    errors: list[dict[str, Any]] | None = None,
) -> JSONResponse:
    problem = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, errors=errors)
    return JSONResponse(problem.model_dump(exclude_none=True), status, headers, MEDIA_TYPE)


def _example(status: int) -> dict[str, Any]:
    return {"title": HTTPStatus(status).phrase, "status": status, "detail": _MEANINGS[status]}


async def _http_error(_request: Request, error: StarletteHTTPException) -> JSONResponse:
    return _problem(error.status_code, error.detail, dict(error.headers or {}))


async def _invalid_request(_request: Request, error: RequestValidationError) -> JSONResponse:
    errors = [
        {"where": ".".join(map(str, found["loc"])), "message": found["msg"].removeprefix("Value error, ")}
        for found in error.errors()
    ]
    summary = "; ".join(f"{found['where']}: {found['message']}" for found in errors)
    return _problem(422, summary, errors=errors)


async def _cannot_tell_who_is_logged_in(request: Request, error: Exception) -> JSONResponse:
    # Reads of books do not get here, because they work without the cache. Only sessions cannot.
    log.warning("%s %s: sessions cannot be reached: %s", request.method, request.url.path, error)
    return _unavailable("Sessions cannot be reached at the moment, so nobody can be logged in; try again.")


async def _queue_away(request: Request, error: Exception) -> JSONResponse:
    log.warning("%s %s: %s", request.method, request.url.path, error)
    return _unavailable("Background jobs cannot be reached at the moment; try again.")


async def _database_away(request: Request, error: Exception) -> JSONResponse:
    log.error("%s %s: the database does not answer: %s", request.method, request.url.path, error)
    return _unavailable("The database does not answer at the moment; try again.")


def _unavailable(detail: str) -> JSONResponse:
    return _problem(503, detail, {"Retry-After": "1"})


async def _bug(_request: Request, _error: Exception) -> JSONResponse:
    # The server logs the traceback; it is nobody else's business.
    return _problem(500, "Something went wrong on our side.")
