"""The events of one job, in the order in which it reported them: kept for a while, delivered live, resumable anywhere.

They are kept in a capped stream on the result backend's server. A change of the job's state is an event, too, but is
derived from the stored result: it is not in the stream, and a reader that resumes gets the state as it is then.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson
from celery import states

from backburner.errors import ResultUnavailable

KEPT: Final = 1000
"""About how many events of a job are kept; a reader that falls behind loses the oldest."""

BEGINNING: Final = "0-0"


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that a job did."""

    id: str
    """Its position in the stream, ``"<milliseconds since 1970>-<number>"``, to continue ``after`` it."""
    kind: Literal["progress", "log", "state"]
    data: dict[str, Any]
    """``progress``: done, total, message. ``log``: message, level, and further fields. ``state``: state."""


def stream_key(backend: Any, job_id: str) -> bytes:
    """The name of the stream, and of its channel."""
    return bytes(backend.get_key_for_task(job_id, ":events"))


async def follow(backend: Any, job_id: str, after: str = BEGINNING) -> AsyncGenerator[JobEvent]:
    """Yield a job's events after the given one until it has ended: the last one is its final state.

    Raises:
        ResultUnavailable: its state cannot be read.
    """
    reader = _Reader(backend, job_id, after)
    parts = (_Events(reader), _State(reader))  # in this order: nothing follows the final state
    for part in parts:
        backend.listener.add(part)
    try:
        while True:
            await reader.news.wait()
            reader.news.clear()
            while reader.events:
                event = reader.events.popleft()
                yield event
                if event.kind == "state" and event.data["state"] in states.READY_STATES:
                    return
            if reader.trouble is not None:
                raise reader.trouble
    finally:
        for part in parts:
            backend.listener.remove(part)


class _Reader:
    """Events that have arrived and have not been read. The listener's thread writes, the loop reads."""

    def __init__(self, backend: Any, job_id: str, after: str) -> None:
        self.backend = backend
        self.job_id = job_id
        self.last = after
        self.events: deque[JobEvent] = deque(maxlen=KEPT)
        self.news = asyncio.Event()
        self.trouble: Exception | None = None
        """Why its state cannot be read, if it cannot."""
        self._loop = asyncio.get_running_loop()

    def put(self, kind: Literal["progress", "log", "state"], data: dict[str, Any], event_id: str | None = None) -> None:
        self.last = event_id or self.last
        self.events.append(JobEvent(self.last, kind, data))
        self._tell()

    def fail(self, trouble: Exception) -> None:
        self.trouble = trouble
        self._tell()

    def _tell(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody reads any more
            self._loop.call_soon_threadsafe(self.news.set)


class _Events:
    """The subscription to what the job reports."""

    def __init__(self, reader: _Reader) -> None:
        self.channel = stream_key(reader.backend, reader.job_id)
        self._reader = reader

    def question(self) -> tuple[Any, ...]:
        return ("XRANGE", self.channel, f"({self._reader.last}", "+")

    def answered(self, reply: list[tuple[bytes, list[bytes]]]) -> None:
        for event_id, (_, event) in reply:
            self._take(event_id, event)

    def heard(self, message: bytes) -> None:
        event_id, _, event = message.partition(b" ")
        self._take(event_id, event)

    def _take(self, event_id: bytes, event: bytes) -> None:
        if _place(event_id.decode()) > _place(self._reader.last):
            data = orjson.loads(event)
            self._reader.put(data.pop("kind"), data, event_id.decode())


class _State:
    """The subscription to the job's state."""

    def __init__(self, reader: _Reader) -> None:
        self.channel: bytes = reader.backend.get_key_for_task(reader.job_id)
        self._reader = reader
        self._state: str | None = None

    def question(self) -> tuple[str, bytes]:
        return ("GET", self.channel)

    def answered(self, reply: bytes | None) -> None:
        if reply is not None:
            self.heard(reply)
        elif self._state is None:
            self._change(states.PENDING)

    def heard(self, message: bytes) -> None:
        try:
            meta = self._reader.backend.decode_result(message)
        except ResultUnavailable as error:
            self._reader.fail(error)
        else:
            self._change(meta["status"])

    def _change(self, state: str) -> None:
        if state != self._state and self._state not in states.READY_STATES:
            self._state = state
            self._reader.put("state", {"state": state})


def is_place(text: str) -> bool:
    """Whether a text has the form of an event's id."""
    milliseconds, _, number = text.partition("-")
    return all(part.isascii() and part.isdigit() and len(part) < 20 for part in (milliseconds, number))


def _place(event_id: str) -> tuple[int, ...]:
    return tuple(map(int, event_id.split("-")))
