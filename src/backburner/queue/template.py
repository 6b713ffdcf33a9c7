"""Celery's message for a task, recorded once and then only filled in.

Celery makes each job's message anew: routing, defaults, limits, headers. All of that depends only on the task and a few
options. So Celery's own path is run once, with a channel that records the message instead of sending it, and whatever
differs from job to job becomes a slot. Messages for which this does not work are `Unsuitable`, and left to Celery.
"""

import json
import re
import time
from binascii import b2a_base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import date, datetime, timedelta
from datetime import time as time_of_day
from decimal import Decimal
from json.encoder import encode_basestring_ascii
from operator import itemgetter
from typing import Any, Final
from uuid import UUID, uuid4

import celery
import kombu
import kombu.serialization
from celery.utils.saferepr import saferepr
from celery.utils.time import utcoffset
from kombu.exceptions import EncodeError
from kombu.transport import virtual
from kombu.utils.json import JSONEncoder, dumps

from backburner.queue.delivery import Place

_NONCE: Final = uuid4().hex
_NAMES: Final = (
    "id", "root", "tag", "args", "kwargs", "body", "parent", "reply_to", "eta", "expires", "expiration",
)  # fmt: skip
_EVENTS: Final = (*_NAMES, "clock", "utcoffset", "timestamp")

_serialization: Any = kombu.serialization  # the stubs leave the registry out
_encoder: Final = json.encoder.c_make_encoder and json.encoder.c_make_encoder(  # type: ignore[attr-defined]
    None, JSONEncoder().default, encode_basestring_ascii, None, ": ", ", ", False, False, True
)
quote: Final = encode_basestring_ascii
"""A text as JSON."""

Encoded = tuple[str, str, str]
"""A call's arguments, as JSON: `argsrepr` and `kwargsrepr`, which are for people, and the body."""
Common = tuple[str, str, str, str, str]
"""What messages share, as JSON: the parent's id, the queue for replies, eta, expires, milliseconds until `expires`."""


class Unsuitable(Exception):
    """Celery would do something that a template cannot do."""


class Template:
    """The messages of a task with certain options.

    Raises:
        Unsuitable: something else differs from job to job.
    """

    def __init__(self, app: celery.Celery, task: Any, options: Mapping[str, Any], *, expires: bool) -> None:
        channel, message = _record_message(app, task, options, expires=expires)
        headers, properties = message["headers"], message["properties"]
        queue = properties["delivery_info"]["routing_key"]
        body = _body(message)
        if body[:2] != [[], {}]:
            raise Unsuitable("the body is not the usual one")
        self.queue = queue
        self.bindings = channel.commands
        """Commands that declare the queue."""
        self.embedded = body[2]
        self._end_of_body = f", {encode(self.embedded)}]"
        self._args_size, self._kwargs_size = app.amqp.argsrepr_maxsize, app.amqp.kwargsrepr_maxsize
        self._levels = app.conf.task_repr_maxlevels

        if (headers["argsrepr"], headers["kwargsrepr"]) != ("()", "{}"):
            raise Unsuitable("what people are shown of arguments is said elsewhere")
        headers |= {"argsrepr": _slot("args"), "kwargsrepr": _slot("kwargs"), "eta": _slot("eta")}
        properties["delivery_tag"] = _slot("tag")
        message["body"] = _slot("body")
        if expires:
            headers["expires"] = _slot("expires")
            properties["expiration"] = _slot("expiration")
        self._message = _Form(message, _NAMES)
        self._clock: Any = app.clock  # type: ignore[attr-defined]  # the stubs leave it out
        self._event: _Form | None = None
        channel_of_events = ""
        if app.conf.task_send_sent_event:
            channel_of_events = self._record_event(app, channel, headers)
        self.place = Place(
            prefix=channel.global_keyprefix,
            key=channel.list_of(queue, message),
            queue=queue,
            task=headers["task"],
            keep=channel.job_record_expires,
            channel=channel_of_events,
            ignored=bool(headers["ignore_result"]),
            replicas=channel.wanted_replicas,
        )

    @property
    def announces(self) -> bool:
        """Whether jobs are announced."""
        return self._event is not None

    def encoded(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Encoded:
        """The parts of a message that depend on the call.

        Raises:
            EncodeError: the arguments cannot be encoded as JSON.
        """
        try:
            body = _base64(f"[{encode(args)}, {encode(kwargs) if kwargs else '{}'}{self._end_of_body}")
        except Exception as error:
            refused = EncodeError(str(error) or repr(error))  # as kombu does
            blame(refused, self.place.task, args, kwargs, encode)
            raise refused from error
        return (
            quote(representation(args, self._args_size, self._levels)),
            quote(representation(kwargs, self._kwargs_size, self._levels)) if kwargs else '"{}"',
            body,
        )

    def message(self, job_id: str, root: str, tag: str, encoded: Encoded, common: Common) -> str:
        """The message, with a job's id, its root's id and a delivery tag, all of them as JSON."""
        return self._message.filled((job_id, root, tag, *encoded, *common))

    def announcement(self, job_id: str, root: str, tag: str, encoded: Encoded, common: Common) -> str:
        """The event task-sent for a message made of the same parts."""
        if self._event is None:
            raise ValueError("jobs of this task are not announced")
        now = str(self._clock.forward()), str(utcoffset()), repr(time.time())
        event = self._event.filled((job_id, root, tag, *encoded, *common, *now))
        return self._announcement.filled((_base64(event), f'{tag[:-1]}e"'))

    def headers(self, message: str) -> dict[str, Any]:
        """The headers of a filled-in message."""
        headers: dict[str, Any] = json.loads(message)["headers"]
        return headers

    def _record_event(self, app: celery.Celery, channel: Any, headers: dict[str, Any]) -> str:
        fields = {"uuid": _slot("id"), "root_id": _slot("root"), "parent_id": _slot("parent"), "name": headers["task"]}
        fields |= {"args": _slot("args"), "kwargs": _slot("kwargs"), "retries": headers["retries"]}
        fields |= {"eta": _slot("eta"), "expires": headers["expires"]}
        fields |= {"queue": self.queue, "exchange": "", "routing_key": self.queue}
        dispatcher = app.amqp._event_dispatcher  # type: ignore[attr-defined]  # noqa: SLF001  # as Celery does
        dispatcher.publish("task-sent", fields, app.amqp.Producer(channel, auto_declare=False))
        if channel.announced is None:
            raise Unsuitable("events do not go to where they were expected")
        message, topic = channel.announced
        event = _body(message) | {name: _slot(name) for name in ("clock", "utcoffset", "timestamp")}
        message["body"] = _slot("body")
        message["properties"]["delivery_tag"] = _slot("tag")
        self._event = _Form(event, _EVENTS)
        self._announcement = _Form(message, ("body", "tag"))
        return str(channel.global_keyprefix + topic)


class _Recorded(Exception):
    def __init__(self, message: dict[str, Any]) -> None:
        self.message = message


class _Recorder:
    """A mixin in front of the transport's channel: records what would be sent. It never connects."""

    # Of the channel behind it.
    global_keyprefix: str
    _q_for_pri: Callable[[str, int], str]
    _get_message_priority: Callable[[dict[str, Any]], int]
    _get_publish_topics: Callable[[str, str], list[str]]

    def __init__(self, connection: Any) -> None:
        virtual.Channel.__init__(self, connection)  # type: ignore[arg-type]  # the transport's own would connect
        self._expires: dict[str, int] = {}  # kombu fills it, with queues that expire
        self.auto_delete_queues: set[str] = set()
        self.commands: list[tuple[str, str, str]] = []
        self.announced: tuple[dict[str, Any], str] | None = None
        self.keyprefix_fanout = _fanout_prefix(self)

    def list_of(self, queue: str, message: dict[str, Any]) -> str:
        return self.global_keyprefix + self._q_for_pri(queue, self._get_message_priority(message))

    def _put(self, _queue: str, message: dict[str, Any], **_: Any) -> None:
        raise _Recorded(message)

    def _put_fanout(self, exchange: str, message: dict[str, Any], routing_key: str, **_: Any) -> None:
        if "task" in message["headers"]:
            raise Unsuitable("the task is broadcast")
        [topic] = self._get_publish_topics(exchange, routing_key)
        self.announced = message, topic  # does not raise, because Celery would keep the event and send it later

    @property
    def _refresh_binding(self) -> Any:
        raise Unsuitable("the queue expires")

    def get_table(self, exchange: str) -> Any:
        raise Unsuitable(f"who gets what is sent to the exchange {exchange!r} is looked up each time")

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:  # noqa: ARG002  # kombu's name
        yield self

    def pipeline(self) -> Any:
        return nullcontext(self)

    def sadd(self, key: str, member: str) -> None:
        self.commands.append(("SADD", self.global_keyprefix + key, member))

    def execute(self) -> None:
        pass

    def _size(self, queue: str) -> int:  # noqa: ARG002  # kombu's name
        return 0

    def close(self) -> None:
        pass


def _record_message(
    app: celery.Celery, task: Any, options: Mapping[str, Any], *, expires: bool
) -> tuple[Any, dict[str, Any]]:
    real: Any = app.connection_for_publishing()  # type: ignore[attr-defined]  # of `backburner.Celery`
    channel_class = real.get_transport_cls().Channel
    if not hasattr(channel_class, "job_record"):
        raise Unsuitable("another transport publishes")
    recorder = type("Recorder", (_Recorder, channel_class), {})
    transport = type("Recording", (virtual.Transport,), {"Channel": recorder, "driver_type": "redis"})
    connection = kombu.Connection(
        transport=transport, transport_options=real.transport_options, virtual_host=real.virtual_host
    )
    channel = connection.channel()
    given = {"ignore_result": task.ignore_result, **task._get_exec_options(), **options}  # noqa: SLF001  # as Celery
    given["expires"] = datetime.now(app.timezone) + timedelta(days=1) if expires else None
    try:
        celery.Celery.send_task(
            app,
            task.name,
            task_id=_slot("id"),
            root_id=_slot("root"),
            parent_id=_slot("parent"),
            reply_to=_slot("reply_to"),
            task_type=task,
            add_to_parent=False,
            producer=app.amqp.Producer(channel, auto_declare=False),
            **given,
        )
    except _Recorded as recorded:
        return channel, recorded.message
    raise Unsuitable("the message does not go into one list")


def _body(message: dict[str, Any]) -> Any:
    """The content of a message's body, if that is JSON such as templates make."""
    if (
        message["content-type"] != "application/json"
        or message["content-encoding"] != "utf-8"
        or message["properties"]["body_encoding"] != "base64"
        or "compression" in message["headers"]
        or not is_plain_json()
    ):
        raise Unsuitable("the message is not plain JSON")
    return json.loads(virtual.Channel.codecs["base64"].decode(message["body"]))


def _fanout_prefix(channel: Any) -> str:
    if not channel.fanout_prefix:
        return ""
    prefix: str = channel.fanout_prefix if isinstance(channel.fanout_prefix, str) else channel.keyprefix_fanout
    database = str(channel.connection.client.virtual_host or "0").strip("/") or "0"
    return prefix.format(db=database)


def _slot(name: str) -> str:
    return f"{_NONCE}:{name}"


class _Form:
    """A message as JSON with slots."""

    def __init__(self, message: Mapping[str, Any], names: Sequence[str]) -> None:
        parts = re.split(f'"{_NONCE}:([a-z_]+)"', dumps(message))
        texts, slots = parts[::2], parts[1::2]
        if not set(slots) <= set(names):
            raise Unsuitable("the message holds an id where none was expected")
        if any(_NONCE in text for text in texts):
            raise Unsuitable("the message holds an id inside of a text")
        self._text = "%s".join(text.replace("%", "%%") for text in texts)
        self._in_order = itemgetter(*map(names.index, slots))

    def filled(self, values: Sequence[str]) -> str:
        """The JSON with these values in the slots, in the order of their names."""
        text: str = self._text % self._in_order(values)
        return text


def is_plain_json() -> bool:
    """Whether the serializer ``json`` is still the one that `encode` reproduces, and nobody has registered another."""
    return _serialization.registry._encoders["json"].encoder is dumps  # noqa: SLF001  # nobody else tells


def encode(value: Any) -> str:
    """As kombu's ``dumps``, without making an encoder each time; circular data raises RecursionError."""
    return "".join(_encoder(value, 0)) if _encoder else dumps(value)


def blame(
    error: Exception, task: str, args: Sequence[Any], kwargs: Mapping[str, Any], encode: Callable[[Any], Any]
) -> None:
    """Note on an error which argument cannot be encoded, if it is one of these."""
    positional = ((f"argument {place}", value) for place, value in enumerate(args, 1))
    for name, value in (*positional, *((f"argument {name!r}", value) for name, value in kwargs.items())):
        try:
            encode(value)
        except Exception:  # noqa: BLE001  # as where all of them are encoded
            error.add_note(
                f"The {name} of the task {task}, of type {type(value).__name__}, cannot be sent. Give plain values, "
                "such as the id of a row, or annotate the parameter with a type that pydantic turns into JSON."
            )
            return


def _base64(text: str) -> str:
    return f'"{b2a_base64(text.encode(), newline=False).decode("ascii")}"'


# Arguments as messages show them to people

_FLAT: Final = frozenset({int, float, bool, type(None), str, Decimal, UUID, datetime, date, time_of_day, timedelta})


def representation(value: Any, size: int, levels: int) -> str:
    """As Celery's `saferepr`, which takes ten times as long, and is used only where something must be abbreviated."""
    if _is_plain(value, levels - 1):
        text = repr(value)
        # Python's escapes and double quotes differ from Celery's.
        if len(text) < size and "\\" not in text and '"' not in text:
            return text
    return str(saferepr(value, size, maxlevels=levels))


def _is_plain(value: Any, levels: int) -> bool:
    if type(value) is dict:
        if not _FLAT.issuperset(map(type, value)):
            return False
        value = value.values()
    elif type(value) not in (list, tuple):
        return False
    kinds = set(map(type, value))
    if kinds <= _FLAT:
        return True
    return levels > 0 and all(type(each) in _FLAT or _is_plain(each, levels - 1) for each in value)
