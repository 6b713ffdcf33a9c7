"""Publishing to RabbitMQ over kombu's transport, but within a deadline and confirmed, as with Redis.

Plain AMQP awaits no answer to a message, so a job would pass for enqueued although the broker hangs or has refused it.
``broker_transport_options={"confirm_publish": False}`` goes back to that. These transports are only for the connections
that tasks are published on: workers consume, and are controlled, over kombu's own.
"""

from collections.abc import Callable
from typing import Any

from kombu.transport import pyamqp

from backburner.queue.deadline import OutOfTime, at_most, remaining

stock: Any = pyamqp  # the stubs leave out most of what is used here

_TRANSPORTS = {"amqp": "Transport", "pyamqp": "Transport", "amqps": "SSLTransport"}


def publishing(url: Any) -> dict[str, Any]:
    """The arguments that make a kombu connection to this URL use a transport from here; empty for other brokers."""
    scheme = url.partition("://")[0] if isinstance(url, str) else ""
    return {"transport": f"{__name__}:{_TRANSPORTS[scheme]}"} if scheme in _TRANSPORTS else {}


class Connection(stock.Connection):  # type: ignore[misc]  # as above
    """A connection that awaits no answer for longer than the deadline allows."""

    connect_timeout: float | None

    def __init__(self, *args: Any, confirm_publish: bool = True, **options: Any) -> None:
        super().__init__(*args, confirm_publish=confirm_publish, **options)

    def connect(self, callback: Callable[[], object] | None = None) -> Any:
        """Connect and log in."""
        self.connect_timeout = _patience(self.connect_timeout)
        return super().connect(callback)

    def drain_events(self, timeout: float | None = None) -> Any:
        """Wait for the next answer."""
        return super().drain_events(_patience(timeout))


class Transport(stock.Transport):  # type: ignore[misc]  # as above
    """For ``amqp://``."""

    Connection = Connection


class SSLTransport(stock.SSLTransport):  # type: ignore[misc]  # as above
    """For ``amqps://``."""

    Connection = Connection


def _patience(seconds: float | None) -> float | None:
    if remaining() == 0:
        raise OutOfTime
    return at_most(seconds)
