"""``worker --health-port``: tells over HTTP whether this worker takes jobs, for whatever restarts those that do not.

``GET /health`` is a 200 while the broker answers, the event loop runs and jobs are requested; otherwise a 503 that says
why. A thread of its own answers, whatever the rest is doing: a process that is stopped or out of memory does not answer
at all, which a health check treats like a 503.
"""

import logging
import socket
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import celery
import orjson
from celery import bootsteps, signals
from celery.bin.base import CeleryOption
from celery.worker import state

from backburner.forking import in_forked_child
from backburner.queue import supervised
from backburner.queue.transport import worker

if TYPE_CHECKING:
    from celery.worker import WorkController

log = logging.getLogger("backburner.queue")

PATIENCE = 10.0
"""Seconds without a sign of life from the broker, the loop or the queue after which the worker is unhealthy."""
_SLOWEST: Final = 5.0
"""Seconds that a client may take to send its request."""
_PATHS: Final = {"/", "/health"}
# Read early, because the worker drops it when it starts.
_IS_SUPERVISED: Final = supervised.is_supervised()
_NUMBER: Final = supervised.number()


def install(app: celery.Celery) -> None:
    """Give the app's ``worker`` command the options ``--health-port`` and ``--health-host``."""
    app.user_options["worker"].update(
        (
            CeleryOption(
                ("--health-port",),
                type=int,
                help_group="Health",
                help="Say at http://127.0.0.1:PORT/health whether this worker takes jobs. Of several --processes, "
                "each has the next port.",
            ),
            CeleryOption(
                ("--health-host",),
                default="127.0.0.1",
                help_group="Health",
                help="The address for it, if not that of this machine alone; 0.0.0.0 for all.",
            ),
        )
    )
    app.steps["worker"].add(Health)


class Health(bootsteps.StartStopStep):
    """Answers from when the worker starts until its process ends."""

    def __init__(
        self,
        parent: "WorkController",
        health_port: int | None = None,
        health_host: str = "127.0.0.1",
        **options: Any,
    ) -> None:
        super().__init__(parent, **options)
        self._address = (health_host, (health_port or 0) + _NUMBER - 1)
        self.enabled = health_port is not None
        self._server: ThreadingHTTPServer | None = None

    def start(self, parent: "WorkController") -> None:  # noqa: ARG002  # Celery's name
        """Listen."""
        try:
            self._server = _Server(self._address, shared=_IS_SUPERVISED)
        except (OSError, OverflowError) as error:  # the latter for a number that is not a port
            log.critical("nothing can listen at --health-port %s:%d: %s", *self._address, error.args[-1])
            raise SystemExit(1) from None
        # A pool process would keep the port when this one is gone.
        in_forked_child(self._server.socket.close)
        Thread(target=self._server.serve_forever, name="backburner-health", daemon=True).start()
        signals.worker_shutdown.connect(self._close, weak=False)

    def stop(self, parent: "WorkController") -> None:
        """Do nothing yet: that the worker is stopping is worth reporting."""

    def _close(self, **_: Any) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


def complaint() -> str | None:
    """Why this worker does not take jobs; ``None``: it does."""
    if worker.stopping or any(each is not None for each in (state.should_stop, state.should_terminate)):
        return "it is stopping"
    if not worker.is_here():
        return "it is starting"
    signs = worker.signs
    if signs.contact is None:  # another transport reports nothing
        return None if worker.is_connected() else "it is not connected to the broker"
    if worker.is_connected() and not worker.queues():
        return None  # its queues were cancelled by remote control
    if silent := _since(signs.contact):
        return f"the broker has not answered for {silent:.0f} s"
    if worker.is_busy_in_the_loop():
        return None  # the pool `solo` does nothing else while it runs a job
    if stands := _since(signs.tick):
        return f"the event loop has not run for {stands:.0f} s"
    if idle := _since(signs.claim):
        return f"there is room for jobs, and none was asked for since {idle:.0f} s"
    return None


def _since(moment: float | None) -> float:
    """The seconds since a time, if they are too many."""
    seconds = monotonic() - moment if moment is not None else 0.0
    return seconds if seconds >= PATIENCE else 0.0


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 16

    def __init__(self, address: Any, *, shared: bool) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler, bind_and_activate=False)
        if shared:  # the next worker starts while this one works
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            self.server_bind()
            self.server_activate()
        except BaseException:
            self.server_close()
            raise


class _Handler(BaseHTTPRequestHandler):
    timeout = _SLOWEST
    server_version = "backburner"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer a request."""
        if self.path.partition("?")[0] not in _PATHS:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        reason = complaint()
        told = {
            "status": "failing" if reason else "ok",
            "reason": reason,
            "queues": worker.queues(),
            "running": len(state.active_requests),
        }
        body = orjson.dumps(told) + b"\n"
        self.send_response(HTTPStatus.SERVICE_UNAVAILABLE if reason else HTTPStatus.OK)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815  # http.server's name

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # http.server's name
        """Write to the worker's log instead of stderr."""
        log.debug(format, *args)
