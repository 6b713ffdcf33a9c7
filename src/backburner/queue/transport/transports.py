"""The transports whose channels lease messages, and what they prepare in a Celery worker: its event loop, its requests,
and ``inspect scheduled``."""

import sys
from typing import Any

import kombu.transport.redis
from celery import current_app
from kombu.utils import symbol_by_name

from backburner.queue.transport import worker
from backburner.queue.transport.channel import Channel, SentinelChannel
from backburner.queue.transport.polling import ChannelPoller

stock: Any = kombu.transport.redis  # the stubs leave out most of what is used here


class _Leasing:
    """What both transports below have in common; a mixin in front of one of kombu's transports."""

    client: Any  # of the class behind it

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = ChannelPoller()
        self.lost = False
        """Whether the server has failed to answer."""

    def establish_connection(self) -> Any:
        """Connect. Workers do this before they prepare their tasks."""
        _lease_requests()
        return super().establish_connection()  # type: ignore[misc]  # of the class this stands before

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Serve this connection in Celery's event loop, until it is closed."""
        before = loop.on_tick.copy()
        super().register_with_event_loop(connection, loop)  # type: ignore[misc]  # of the class this stands before
        self.cycle.run_in(loop)
        own = loop.on_tick - before

        def tick() -> None:
            if self.client is None:
                loop.on_tick.discard(tick)
                return
            for callback in own:
                callback()

        # kombu's would stay there for ever, and each connection that was lost with it.
        loop.on_tick.difference_update(own)
        loop.on_tick.add(tick)


class Transport(_Leasing, stock.Transport):  # type: ignore[misc]  # the stubs leave it out
    """For a Redis or Valkey server."""

    Channel = Channel
    driver_name = worker.DRIVER


class SentinelTransport(_Leasing, stock.SentinelTransport):  # type: ignore[misc]  # the stubs leave it out
    """For the master that Sentinels name."""

    Channel = SentinelChannel
    driver_name = worker.DRIVER


def _lease_requests() -> None:
    """In a worker, have its app check the leases of its jobs, and list the delayed jobs on the server. Does nothing
    elsewhere."""
    if "celery.worker.consumer" not in sys.modules:
        return
    # Imported here because only workers need billiard.
    from backburner.queue.transport import scheduled
    from backburner.queue.transport.request import leased

    scheduled.answer()
    task: Any = current_app.Task
    task.Request = leased(symbol_by_name(task.Request))
