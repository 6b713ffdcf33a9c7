"""Celery's pool of processes, with a cheaper way to hand a job to a process.

Celery's way costs more than a small job itself. It writes a job in two pieces, each of which wakes the process that
reads it; and only when its event loop has come round and found the pipe writable, after registering it with the kernel,
from which it is then removed. Here, if a process is idle, a job is written at once and in one piece. All else is
Celery's.
"""

from collections.abc import Callable
from typing import Any, Final

from celery.concurrency import asynpool, prefork

_asynpool: Any = asynpool  # the stubs leave most of it out
_HEADER: Final = 4
"""Bytes of the header that holds a job's length. No pickled job is as short."""

Send = Callable[[Any, int], int]
"""Writes a buffer from an offset on. Returns the number of bytes written."""


def in_one_piece(send: Send) -> Send:
    """Hold back the header with a job's length until the job follows, and write both together."""
    header = b""

    def send_joined(buffer: Any, offset: int) -> int:
        nonlocal header
        if len(buffer) == _HEADER:
            header = bytes(buffer)
            return _HEADER
        if not header:
            return send(buffer, offset)
        sent = send(b"".join((header, buffer)), 0)
        header, sent = header[sent:], max(0, sent - len(header))
        return sent

    return send_joined


class _SteadyReaders:
    """Celery's event loop, for a caller that adds the same reader again after each message, which costs two system
    calls."""

    def __init__(self, hub: Any) -> None:
        self._hub = hub
        self.remove_reader = hub.remove_reader

    def add_reader(self, fd: int, callback: Any, *args: Any) -> None:
        if self._hub.readers.get(fd) != (callback, args):
            self._hub.add_reader(fd, callback, *args)


class _ResultHandler(_asynpool.ResultHandler):  # type: ignore[misc]  # as above
    def _make_process_result(self, hub: Any) -> Any:
        return super()._make_process_result(_SteadyReaders(hub))


class _Pool(_asynpool.AsynPool):  # type: ignore[misc]  # as above
    ResultHandler = _ResultHandler
    _quick_put: Any
    on_poll_start: Any

    def WorkerProcess(self, worker: Any) -> Any:  # noqa: N802  # billiard's name
        process = super().WorkerProcess(worker)
        process.send_job_offset = in_one_piece(process.send_job_offset)
        return process

    def _create_write_handlers(self, hub: Any) -> None:
        super()._create_write_handlers(hub)
        put, write, on_poll_start = self._quick_put, hub.consolidate_callback, self.on_poll_start
        processes, busy, written_to = self._all_inqueues, self._busy_workers, self._active_writes
        waiting, registered = self.outbound_buffer, hub.consolidate

        def put_at_once(job: Any) -> None:
            put(job)
            for fd in processes:
                if fd not in busy and fd not in written_to:
                    write([fd])
                    break

        def on_poll_start_if_needed() -> None:
            if waiting or registered:
                on_poll_start()

        self._quick_put = put_at_once
        self.on_poll_start = on_poll_start_if_needed


class TaskPool(prefork.TaskPool):
    """Celery's prefork pool, with this way of writing jobs."""

    Pool = _Pool
