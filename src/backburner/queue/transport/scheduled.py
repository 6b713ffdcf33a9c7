"""A worker's answer to `celery inspect scheduled`: the delayed jobs of its queues on the server, in addition to those
that it holds itself, as in stock Celery.

All workers of these queues give the same answer, since any of them may get these jobs.
"""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import redis
from celery.worker.control import Panel
from kombu.serialization import prepare_accept_content
from kombu.transport.virtual import Message

log = logging.getLogger("backburner.queue")

_MOST: Final = 100
"""Jobs in the answer at most, those that are due next: the answer is one message."""
_PRIORITY: Final = 6
"""Of those that Celery's own timer waits for."""

_celerys: Any = Panel.data["scheduled"]


def answer() -> None:
    """Install this answer in the worker of this process."""
    Panel.data["scheduled"] = Panel.data["dump_schedule"] = _scheduled


def _scheduled(state: Any, **arguments: Any) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = _celerys(state, **arguments)
    consumer: Any = getattr(state.consumer, "task_consumer", None)
    due_next = getattr(getattr(consumer, "channel", None), "due_next", None)
    if due_next is None:
        return told  # another transport
    queues = [queue.name for queue in consumer.queues]
    try:
        waiting = due_next(queues, _MOST)
    except redis.RedisError as error:
        log.warning("which jobs wait for their time is not known: %s", error)
        return told
    return told + list(_told(state, consumer.channel, waiting))


def _told(state: Any, channel: Any, waiting: list[tuple[float, Any]]) -> Iterator[dict[str, Any]]:
    """A delayed job in Celery's format."""
    accept = prepare_accept_content(state.app.conf.accept_content)
    for due, payload in waiting:
        try:
            message = Message(payload, channel=channel, accept=accept)
        except Exception:  # noqa: BLE001, S112  # no message: whoever gets it when it is due says so, and keeps it
            continue
        headers, properties = message.headers or {}, message.properties
        try:
            args, kwargs, _ = message.payload
        except Exception:  # noqa: BLE001  # whatever it is, the job is there all the same
            args, kwargs = headers.get("argsrepr"), headers.get("kwargsrepr")
        delivery = message.delivery_info or {}
        yield {
            "eta": headers.get("eta") or datetime.fromtimestamp(due, UTC).isoformat(),
            "priority": _PRIORITY,
            "request": {
                "id": headers.get("id"),
                "name": headers.get("shadow") or headers.get("task"),
                "args": args,
                "kwargs": kwargs,
                "type": headers.get("task"),
                "hostname": state.hostname,
                "time_start": None,
                "acknowledged": False,
                "delivery_info": {
                    "exchange": delivery.get("exchange"),
                    "routing_key": delivery.get("routing_key"),
                    "priority": properties.get("priority"),
                    "redelivered": delivery.get("redelivered", False),
                },
                "worker_pid": None,
            },
        }
