"""Awaits the end of a job on an event loop, to which the listener's thread reports it."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from celery import states

from backburner.errors import ResultUnavailable


async def outcome(backend: Any, job_id: str) -> dict[str, Any]:
    """Wait until a job has ended. Returns what Celery calls its meta: ``status``, ``result`` (or the exception),
    ``traceback``. Everybody who waits gets a copy of their own.

    Raises:
        ResultUnavailable: what has become of it cannot be read.
    """
    awaited = _Awaited(backend, job_id)
    backend.listener.add(awaited)
    try:
        return await awaited.meta
    finally:
        backend.listener.remove(awaited)


class _Awaited:
    """The subscription."""

    def __init__(self, backend: Any, job_id: str) -> None:
        self.channel: bytes = backend.get_key_for_task(job_id)
        self._decode = backend.decode_result
        self._loop = asyncio.get_running_loop()
        self.meta: asyncio.Future[dict[str, Any]] = self._loop.create_future()

    def question(self) -> tuple[str, bytes]:
        return ("GET", self.channel)

    def answered(self, reply: bytes | None) -> None:
        if reply is not None:
            self.heard(reply)

    def heard(self, message: bytes) -> None:
        try:
            meta = self._decode(message)
        except ResultUnavailable as error:
            self._tell(self.meta.set_exception, error)
        else:
            if meta["status"] in states.READY_STATES:
                self._tell(self.meta.set_result, meta)

    def _tell(self, settle: Callable[[Any], None], news: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            self._loop.call_soon_threadsafe(self._settle, settle, news)

    def _settle(self, settle: Callable[[Any], None], news: Any) -> None:
        if not self.meta.done():
            settle(news)
