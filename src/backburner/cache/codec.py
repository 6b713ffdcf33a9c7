"""How values become bytes and come back equal and of the same type.

`JSONCodec` writes ordinary JSON, readable in redis-cli, and beside it a map of what JSON cannot say:

    J{"id":5,"title":"Emma"}                                    nothing special inside
    K{"sold":"date"}<newline>{"id":5,"sold":"2026-11-21"}       a map, then the JSON

`typemap` describes the map, `converters` the types. `PickleCodec` is a last resort, and reads only what this
application has signed. Codecs do not compress, and neither reads bytes of the other.
"""

import hmac
import pickle
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from io import BytesIO
from itertools import chain
from math import isfinite
from operator import is_
from typing import Any, Final
from uuid import UUID

import orjson

from backburner.cache.converters import (
    BUILTIN,
    Converter,
    columns_of,
    converter_for,
    converter_named,
    find_class,
    load_columns,
    model_converter,
    name_of,
)
from backburner.cache.typemap import Decoder, TypeMap, compile_decoder, map_of_columns, map_of_list, map_of_typed_list
from backburner.errors import CodecError, ConfigError
from backburner.interruptions import interruptions

__all__ = ["Codec", "JSONCodec", "PickleCodec", "codec_for", "is_immutable"]

MAX_DEPTH: Final = 100
"""Levels of nested lists and dicts; somewhat fewer if there are other types in between."""
MIN_SIGNING_KEY: Final = 16
"""Bytes."""

_PLAIN, _TYPED, _PICKLE = b"J", b"K", b"P"
_INT64_MIN, _UINT64_MAX = -(2**63), 2**64 - 1  # what orjson takes
_MAX_DECODERS, _MAX_KEPT_MAP = 1024, 4096


class Codec(ABC):
    """Turns values into bytes and back. It is given the cache key as well, so that it can bind a value to its key."""

    name: str

    @abstractmethod
    def encode(self, value: object, key: str = "") -> bytes:
        """Turn a value into bytes.

        Raises:
            CodecError: it would not come back equal; the message says which part of the value, and what to do.
        """

    @abstractmethod
    def decode(self, data: bytes | memoryview, key: str = "") -> Any:
        """Make a fresh value from what `encode` returned for the same key.

        Raises:
            CodecError: these are other bytes, or a class has changed since. Nothing else is raised, whatever the bytes.
        """

    @abstractmethod
    def register(
        self,
        cls: type,
        to_json: Callable[[Any], object] | None = None,
        from_json: Callable[[Any], object] | None = None,
        *,
        tag: str | None = None,
    ) -> None:
        """Register a type, for instances of exactly this class.

        `to_json` may return anything that the codec knows; `from_json` is given that again. Both may be omitted for
        enums, dataclasses, named tuples and pydantic models, which need no registration unless other processes cannot
        find them by name. `tag` is the name stored with each value, by default module and class: with a tag of your
        own, the class can be moved later.

        Raises:
            ConfigError: the type cannot be registered in this way.
        """

    @abstractmethod
    def register_model(self, cls: type, *, exclude: Collection[str] = (), tag: str | None = None) -> None:
        """Register a class mapped by SQLAlchemy: its columns are stored, its relationships are not.

        Storing reads every column, so the session must be open to load expired ones. The object that comes back is
        detached: its columns can be read without a session, and ``session.merge(obj, load=False)`` attaches it to one.
        Columns in `exclude`, such as a password's hash, never reach the cache; a session loads them when needed.

        Raises:
            ConfigError: the class is not mapped, or has no such columns to exclude.
        """


class JSONCodec(Codec):
    """JSON with type fidelity."""

    name = "json"

    def __init__(self) -> None:
        self._by_type: dict[type, Converter] = dict(BUILTIN)
        self._by_tag: dict[str, Converter] = {converter.tag: converter for converter in BUILTIN.values()}
        self._decoders: dict[bytes, Decoder] = {}

    def register(
        self,
        cls: type,
        to_json: Callable[[Any], object] | None = None,
        from_json: Callable[[Any], object] | None = None,
        *,
        tag: str | None = None,
    ) -> None:
        if cls in _JSON_TYPES:
            raise ConfigError(f"{cls.__name__} is what JSON consists of and cannot be registered")
        name = _tag_for(cls, tag)
        if to_json is not None and from_json is not None:
            self._learn(cls, Converter(f"custom:{name}", to_json, from_json))
        elif to_json is not None or from_json is not None:
            raise ConfigError(f"register({cls.__name__}, …) needs both to_json and from_json, or neither")
        elif (converter := converter_for(cls, name)) is not None:
            self._learn(cls, converter)
        elif hasattr(cls, "__mapper__"):
            raise ConfigError(f"{cls.__name__} is mapped by SQLAlchemy: use register_model({cls.__name__})")
        else:
            raise ConfigError(
                f"register({cls.__name__}) needs to_json and from_json: only enums, named tuples, "
                "dataclasses and pydantic models describe themselves"
            )

    def register_model(self, cls: type, *, exclude: Collection[str] = (), tag: str | None = None) -> None:
        self._learn(cls, model_converter(cls, _tag_for(cls, tag), frozenset(exclude)))

    def encode(self, value: object, key: str = "") -> bytes:  # noqa: ARG002
        try:
            body, types = self._walk(value, 0)
            if types is None:
                return _PLAIN + orjson.dumps(body)
            return b"%b%b\n%b" % (_TYPED, orjson.dumps(types), orjson.dumps(body))
        except _Refused as refused:
            raise CodecError(f"{refused.reason}{refused.where()}") from refused.__cause__
        except RecursionError:
            raise CodecError(_TOO_DEEP) from None
        except (RuntimeError, ValueError, IndexError) as error:  # "dictionary changed size during iteration", and such
            raise CodecError(f"the value was changed while it was being stored: {error}") from error
        except orjson.JSONEncodeError as error:
            raise CodecError(_REASONS.get(str(error), f"{error}: such text is not valid Unicode")) from error

    def decode(self, data: bytes | memoryview, key: str = "") -> Any:  # noqa: ARG002
        try:
            if data.__class__ is not bytes:
                data = bytes(data)
            if data.startswith(_TYPED):
                types, newline, body = data.partition(b"\n")
                if newline:
                    decoder = self._decoders.get(types) or self._compile(types)
                    return decoder(orjson.loads(body))
            elif data.startswith(_PLAIN):
                return orjson.loads(data[1:])
        except CodecError:
            raise
        except interruptions():
            raise
        except Exception as error:  # damaged bytes can fail anywhere, also in a foreign from_json
            raise CodecError(f"the stored value cannot be read: {type(error).__name__}: {error}") from error
        raise CodecError(f"the stored value is not JSON of this cache: it begins with {data[:1]!r}")

    def _learn(self, cls: type, converter: Converter) -> None:
        # In a copy: other threads learn, too.
        known = [tag for tag, other in tuple(self._by_tag.items()) if other.base == converter.base]
        self._by_type[cls] = converter
        for tag in known:  # the class was defined anew, as a reload does
            self._by_tag.pop(tag, None)
            self._decoders.clear()
        self._by_tag[converter.tag] = converter

    def _describe(self, cls: type) -> Converter:
        name = name_of(cls)
        converter = converter_for(cls, name)
        if converter is None:
            raise _Refused(_advice(cls))
        if find_class(name) is not cls:
            raise _Refused(
                f"{name} cannot be found by its name, so no other process could read it: define it at the "
                f"top of a module, or call cache.codec.register({cls.__name__}, tag='…') in every process"
            )
        self._learn(cls, converter)
        return converter

    def _walk(self, value: Any, depth: int) -> tuple[Any, TypeMap]:
        """The value in a form that JSON can hold, and its type map or ``None``. Copies only what has to change."""
        cls = type(value)
        if cls in _ATOMS or (cls is int and _INT64_MIN <= value <= _UINT64_MAX):
            return value, None
        if cls is float and value - value == 0.0:  # finite
            return value, None
        if depth >= MAX_DEPTH:
            raise _Refused(_TOO_DEEP)
        if cls is list:
            return self._walk_list(value, depth + 1)
        if cls is dict:
            return self._walk_dict(value, depth + 1)
        return self._walk_special(value, depth, self._by_type.get(cls) or self._describe(cls))

    def _walk_special(self, value: Any, depth: int, converter: Converter) -> tuple[Any, TypeMap]:
        try:
            plain = converter.to_json(value)
        except CodecError as error:
            raise _Refused(str(error)) from error
        except interruptions():
            raise
        except Exception as error:
            name = name_of(type(value))
            raise _Refused(f"{name} could not be stored: {type(error).__name__}: {error}") from error
        if type(plain) is str or plain is value:
            return plain, converter.tag
        plain, types = self._walk(plain, depth)
        return plain, converter.tag if types is None else [converter.tag, types]

    def _walk_dict(self, value: dict[str, Any], depth: int) -> tuple[Any, TypeMap]:
        body = value
        types: dict[str, TypeMap] = {}
        for key, item in value.items():
            if type(key) is not str:
                return self._walk_special(value, depth, self._by_type[dict])
            cls = type(item)
            if cls in _ATOMS or (cls is int and _INT64_MIN <= item <= _UINT64_MAX):
                continue
            try:
                plain, node = self._walk(item, depth)
            except _Refused as refused:
                refused.path.append(key)
                raise
            if node is not None:
                if not types:
                    body = value.copy()
                body[key], types[key] = plain, node
        return body, types or None

    def _walk_list(self, value: list[Any], depth: int) -> tuple[Any, TypeMap]:
        types = set(map(type, value))
        if types <= _ATOMS:
            return value, None
        if len(types) == 1 and len(value) > 1:
            return self._walk_alike(value, types.pop(), depth)
        return self._walk_each(value, depth)

    def _walk_alike(self, items: list[Any], cls: type, depth: int) -> tuple[Any, TypeMap]:
        """Walk items of one type level by level, which is several times faster than item by item."""
        if cls is int and min(items) >= _INT64_MIN and max(items) <= _UINT64_MAX:
            return items, None
        if cls is float and all(map(isfinite, items)):
            return items, None
        if cls is dict:
            return self._walk_rows(items, depth)
        if cls is list and set(map(type, chain.from_iterable(items))) <= _ATOMS and depth < MAX_DEPTH:
            return items, None
        if cls in _JSON_TYPES:
            return self._walk_each(items, depth)
        converter = self._by_type.get(cls)
        if converter is None:
            return self._walk_each(items, depth)  # the first makes it known
        try:
            plain = [converter.to_json(item) for item in items]
        except interruptions():
            raise
        except Exception:  # noqa: BLE001  # says which it was, and why
            return self._walk_each(items, depth)
        if all(map(is_, plain, items)):
            return items, [0, converter.tag]
        if any(map(is_, plain, items)):
            return self._walk_each(items, depth)
        body, types = self._walk_list(plain, depth)
        return body, map_of_typed_list(converter.tag, types)

    def _walk_rows(self, rows: list[dict[Any, Any]], depth: int) -> tuple[Any, TypeMap]:
        """Walk dicts with the same keys column by column."""
        keys = rows[0]
        if depth >= MAX_DEPTH or len(set(map(len, rows))) > 1 or not set(map(type, keys)) <= _TEXT:
            return self._walk_each(rows, depth)
        body = rows
        columns: dict[str, TypeMap] = {}
        for key in keys:
            try:
                column = [row[key] for row in rows]
            except KeyError:
                return self._walk_each(rows, depth)
            try:
                plain, types = self._walk_list(column, depth + 1)
            except _Refused as refused:
                refused.path.insert(-1, key)  # before the number of the row
                raise
            if types is not None:
                columns[key] = types
            if plain is not column:
                if body is rows:
                    body = [row.copy() for row in rows]
                for row, item in zip(body, plain, strict=True):
                    row[key] = item
        return body, map_of_columns(columns, len(rows))

    def _walk_each(self, value: list[Any], depth: int) -> tuple[Any, TypeMap]:
        body = value
        nodes: dict[int, TypeMap] = {}
        for index, item in enumerate(value):
            cls = type(item)
            if cls in _ATOMS or (cls is int and _INT64_MIN <= item <= _UINT64_MAX):
                continue
            try:
                plain, node = self._walk(item, depth)
            except _Refused as refused:
                refused.path.append(index)
                raise
            if node is not None:
                if not nodes:
                    body = value.copy()
                body[index], nodes[index] = plain, node
        return body, map_of_list(nodes, len(body)) if nodes else None

    def _compile(self, types: bytes) -> Decoder:
        decoder = compile_decoder(orjson.loads(types[len(_TYPED) :]), self._from_json)
        if len(types) <= _MAX_KEPT_MAP:
            if len(self._decoders) >= _MAX_DECODERS:
                self._decoders.clear()
            self._decoders[types] = decoder
        return decoder

    def _from_json(self, tag: str) -> Decoder:
        converter = self._by_tag.get(tag)
        if converter is None:
            converter = self._by_tag[tag] = converter_named(tag)
        return converter.from_json


class PickleCodec(Codec):
    """Signed pickle: nothing is unpickled unless it was written with this signing key, for the same cache key.

    Raises:
        ConfigError: the signing key has fewer than 16 bytes.
    """

    name = "pickle"

    def __init__(self, signing_key: bytes) -> None:
        if len(signing_key) < MIN_SIGNING_KEY:
            raise ConfigError(
                f"CACHE_SIGNING_KEY has {len(signing_key)} bytes and needs at least {MIN_SIGNING_KEY}: make "
                'one with python -c "import secrets; print(secrets.token_urlsafe(32))"'
            )
        self._mac = hmac.new(signing_key, digestmod="sha256")

    def encode(self, value: object, key: str = "") -> bytes:
        try:
            pickled = _pickle(value)
        except interruptions():
            raise
        except Exception as error:
            raise CodecError(f"{name_of(type(value))} cannot be pickled: {error}") from error
        return _PICKLE + self._sign(key, pickled) + pickled

    def decode(self, data: bytes | memoryview, key: str = "") -> Any:
        signature, pickled = data[1:33], data[33:]
        if data[:1] != _PICKLE or not hmac.compare_digest(signature, self._sign(key, pickled)):
            raise CodecError("the stored value is not a pickle signed for this cache key with this CACHE_SIGNING_KEY")
        try:
            return pickle.loads(pickled)  # noqa: S301  # the signature was checked
        except interruptions():
            raise
        except Exception as error:
            raise CodecError(f"the stored value cannot be unpickled: {type(error).__name__}: {error}") from error

    def register(
        self,
        cls: type,
        to_json: Callable[[Any], object] | None = None,
        from_json: Callable[[Any], object] | None = None,
        *,
        tag: str | None = None,
    ) -> None:
        """Do nothing: pickle knows every class."""

    def register_model(self, cls: type, *, exclude: Collection[str] = (), tag: str | None = None) -> None:  # noqa: ARG002
        """Do nothing: pickle knows every class.

        Raises:
            ConfigError: columns are to be excluded, which pickle cannot do.
        """
        if exclude:
            raise ConfigError(
                f"CACHE_SERIALIZER=pickle stores every column of {cls.__name__}: use json to exclude {sorted(exclude)}"
            )

    def _sign(self, key: str, pickled: bytes | memoryview) -> bytes:
        mac = self._mac.copy()
        name = key.encode("utf-8", "surrogatepass")
        mac.update(b"%d:%b" % (len(name), name))
        mac.update(pickled)
        return mac.digest()


def codec_for(serializer: str, signing_key: bytes | None = None) -> Codec:
    """The codec for the settings CACHE_SERIALIZER and CACHE_SIGNING_KEY.

    Raises:
        ConfigError: there is no such serializer, or pickle has no signing key or a short one.
    """
    if serializer == "json":
        return JSONCodec()
    if serializer != "pickle":
        raise ConfigError(f"CACHE_SERIALIZER={serializer!r}: it must be 'json' or 'pickle'")
    if not signing_key:
        raise ConfigError(
            "CACHE_SERIALIZER=pickle needs CACHE_SIGNING_KEY, the same in every process: without it, whoever "
            "can write to the server could run code in yours"
        )
    return PickleCodec(signing_key)


def _tag_for(cls: type, tag: str | None) -> str:
    if tag is not None and "#" in tag:
        raise ConfigError(f"tag={tag!r}: what follows a # is ours, a fingerprint of the fields; use another character")
    return tag or name_of(cls)


def is_immutable(value: object) -> bool:
    """Whether several callers can share this very value. False if finding out would take long, and for text that a
    codec would refuse."""
    cls = type(value)
    if cls in _IMMUTABLE:
        return cls is not str or _is_unicode(value)  # type: ignore[arg-type]
    if cls is tuple or cls is frozenset:
        items: tuple[object, ...] | frozenset[object] = value  # type: ignore[assignment]
        return len(items) <= 32 and all(type(item) in _IMMUTABLE and is_immutable(item) for item in items)
    return isinstance(value, Enum)


def _is_unicode(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


_ATOMS: Final = frozenset({str, bool, type(None)})
_TEXT: Final = frozenset({str})
_JSON_TYPES: Final = frozenset({str, bool, int, float, list, dict, type(None)})
_IMMUTABLE: Final = frozenset({str, bool, int, float, type(None), bytes, complex, Decimal, Fraction, UUID}) | {
    *(date, datetime, time, timedelta, timezone),
}
_TOO_DEEP: Final = f"the value contains itself or is nested too deeply (about {MAX_DEPTH} levels are possible)"


_REASONS: Final = {
    "Recursion limit reached": _TOO_DEEP,
    "Dict key must be str": "the keys of dictionaries in one list are mere text here and a subclass of it there",
}


class _Refused(Exception):
    """A part of the value cannot be stored; collects the path to it while the walk unwinds."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.path: list[Hashable] = []

    def where(self) -> str:
        path = [f"[{step!r}]" for step in reversed(self.path)]
        if len(path) > 8:
            path[4:-4] = ["…"]
        return f" (at value{''.join(path)})" if path else ""


class _Pickler(pickle.Pickler):
    """Loads the expired columns of SQLAlchemy instances, which would otherwise be stored without them."""

    def reducer_override(self, obj: Any) -> Any:
        if "_sa_instance_state" in getattr(obj, "__dict__", ()):
            load_columns(obj, columns_of(type(obj)))
        return NotImplemented


def _pickle(value: object) -> bytes:
    if "sqlalchemy" not in sys.modules:
        return pickle.dumps(value, protocol=5)
    buffer = BytesIO()
    _Pickler(buffer, protocol=5).dump(value)
    return buffer.getvalue()


def _advice(cls: type) -> str:
    name = name_of(cls).replace(":", ".")
    if hasattr(cls, "__mapper__"):
        return (
            f"{name} is a SQLAlchemy model: call cache.codec.register_model({cls.__name__}) once, or cache a "
            "plain representation of it, such as a dict or a pydantic model"
        )
    if hasattr(cls, "__await__"):
        return f"{name} cannot be cached: await it first"
    plain = next((base for base in cls.__mro__ if base in BUILTIN or base in _JSON_TYPES), None)
    if plain is not None:
        return (
            f"{name} would come back as a mere {plain.__name__}: convert it with {plain.__name__}(value), or "
            f"call cache.codec.register({cls.__name__}, to_json=…, from_json=…)"
        )
    return (
        f"{name} cannot be stored as JSON: cache a plain representation of it, call "
        f"cache.codec.register({cls.__name__}, to_json=…, from_json=…), or set CACHE_SERIALIZER=pickle"
    )
