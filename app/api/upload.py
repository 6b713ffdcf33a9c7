"""Receives a file of books straight to disk, and stops as soon as it is too large or not a file of books.

The framework's own way would read the whole request before it could be checked.
"""

import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import HTTPException, Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from app import uploads
from app.api.deps import CurrentUser
from app.books_csv import Header, NoBooksError, read_header
from app.core.config import settings
from app.core.database import DB

FIELD = "file"

UPLOAD_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [FIELD],
                "properties": {FIELD: {"type": "string", "format": "binary", "description": "The CSV file"}},
            }
        }
    },
}

_ENVELOPE = 64 * 1024
"""Bytes that a body may have in addition to its file."""


async def receive_books_file(request: Request, db: DB, _user: CurrentUser) -> AsyncIterator[str]:
    """Store the file of the request; yields the id it is stored under. To keep the file, rename it before the end."""
    db.commit()  # an upload may take minutes; let others have the connection meanwhile
    file = str(uuid.uuid4())
    try:
        await _receive(request, uploads.path_of(file))
        yield file
    finally:  # also where the request is refused for something else in it
        uploads.discard(file)


async def _receive(request: Request, path: Path) -> None:
    try:
        await _store(request, path)
    except (FormParserError, ClientDisconnect) as error:
        raise HTTPException(400, "The request ended early, or is no proper multipart/form-data.") from error
    except NoBooksError as error:
        raise HTTPException(422, f"{error}.") from error


async def _store(request: Request, path: Path) -> None:
    body = _Body(request.headers.get("content-type", ""))
    start = b""
    header: Header | None = None
    size = body_size = 0
    _check_size(int(request.headers.get("content-length", 0)), settings.upload_limit + _ENVELOPE)
    with path.open("wb") as file:
        async for chunk in request.stream():
            data = body.feed(chunk)
            size += len(data)
            body_size += len(chunk)
            _check_size(size, settings.upload_limit)
            _check_size(body_size, settings.upload_limit + _ENVELOPE)
            if header is None and data:
                start += data
                header = read_header(start, complete=False)
            await run_in_threadpool(file.write, data)
    body.check_complete()
    if header is None:
        read_header(start, complete=True)


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise HTTPException(413, f"The file is larger than {settings.upload_limit:,} bytes.")


class _Body:
    """The part of a multipart body that is the file."""

    def __init__(self, content_type: str) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or b"boundary" not in options:
            raise HTTPException(415, f"Send the file as multipart/form-data, in the field `{FIELD}`.")
        self._parser = MultipartParser(
            options[b"boundary"],
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._extend_name,
                "on_header_value": self._extend_value,
                "on_header_end": self._end_header,
                "on_part_data": self._extend_file,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )
        self._name = self._value = b""
        self._inside = self._found = self._ended = False
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> bytes:
        """Take a piece of the body; returns the part of the file in it."""
        self._parser.write(chunk)
        data = b"".join(self._data)
        self._data.clear()
        return data

    def check_complete(self) -> None:
        """Check that there was a file, and that it is complete."""
        if not self._ended:
            raise FormParserError("the body ended early")
        if not self._found:
            raise HTTPException(422, f"There is no file in the field `{FIELD}`.")

    def _begin_part(self) -> None:
        self._name = self._value = b""

    def _extend_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _extend_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._name.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            self._inside = not self._found and options.get(b"name") == FIELD.encode()
            self._found = self._found or self._inside
        self._name = self._value = b""

    def _extend_file(self, data: bytes, start: int, end: int) -> None:
        if self._inside:
            self._data.append(data[start:end])

    def _end_part(self) -> None:
        self._inside = False

    def _end(self) -> None:
        self._ended = True
