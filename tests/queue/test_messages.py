"""What a message brings, as our workers read it and as kombu does: the same, or the same error."""

import base64
import json
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import kombu
import kombu.serialization
import kombu.transport.virtual
import pytest
from kombu.utils.json import dumps, register_type

from backburner.queue.transport import held

virtual: Any = kombu.transport.virtual  # the stubs leave most of it out
serialization: Any = kombu.serialization  # as above
JSON = "application/json"


@pytest.fixture
def channel() -> Iterator[Any]:
    with kombu.Connection("memory://") as connection:
        yield connection.channel()


def _read(kind: Any, channel: Any, body: bytes, **told: Any) -> Any:
    properties = {"body_encoding": "base64", "delivery_tag": "1", "delivery_info": {}}
    payload = {"body": base64.b64encode(body).decode(), "headers": {}, "properties": properties}
    payload |= {"content-type": JSON, "content-encoding": "utf-8"} | told
    try:
        return kind(payload, channel=channel, accept={JSON}).payload
    except Exception as error:
        return type(error), str(error)


class Coin:
    def __init__(self, cents: int) -> None:
        self.cents = cents

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Coin) and self.cents == other.cents

    __hash__ = None  # type: ignore[assignment]


register_type(Coin, "coin", lambda coin: coin.cents, Coin)


@pytest.mark.parametrize(
    "body",
    [
        dumps([[1, "ü", None, 1.5], {"a": {"b": []}}, {"callbacks": None}]).encode(),
        dumps([[datetime(2026, 1, 2, 3, 4), Decimal("1.50"), UUID(int=7), Coin(5)], {}, {}]).encode(),
        json.dumps([["__type__"], {}, {}]).encode(),
        '["grün"]'.encode("latin-1"),
        b'["gr\xc3\xbcn"]',
        b"[1, 2",
        b"NaN",
        b"\xff",
        b"0",
        b"[" * 100_000,
        b"",
    ],
    ids=range(11),
)
@pytest.mark.parametrize(
    "told", [{}, {"content-encoding": "latin-1"}, {"content-encoding": "UTF-8"}, {"content-type": "application/x-no"}]
)
def test_a_body_is_read_as_by_kombu(channel: Any, body: bytes, told: dict[str, str]) -> None:
    # Not a number, which "NaN" becomes, equals nothing.
    ours, kombus = _read(held.Message, channel, body, **told), _read(virtual.Message, channel, body, **told)
    assert ours == kombus or repr(ours) == repr(kombus)


def test_who_registers_a_decoder_of_json_has_it_used(channel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(serialization.registry._decoders, JSON, lambda data: ["mine", data])
    assert _read(held.Message, channel, b"[1]") == ["mine", b"[1]"]
