"""How a value of a certain type becomes something that JSON can hold, and how it comes back as that type.

A `Converter` does so for one type. Built-in types are in `BUILTIN`; enums, named tuples, dataclasses and pydantic
models get a converter derived from the class; SQLAlchemy models get one on request. `to_json` may return any value that
the codec knows, which is then converted in turn, and `from_json` is given the same value again. If the JSON writer
knows the type itself, `to_json` returns the value unchanged, and `from_json` is given what the writer has written.

Classes are looked up by name in modules that are loaded already; nothing is imported. Instances are rebuilt from their
state, as pickle does it, without calling ``__init__`` and without validation. Therefore the tag of a class ends with a
fingerprint of its fields (see `schema`): a value that was stored with other fields is never rebuilt.
"""

import binascii
import dataclasses
import functools
import inspect
import ipaddress
import pathlib
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag
from fractions import Fraction
from typing import Any, cast
from uuid import UUID
from zoneinfo import ZoneInfo

from pydantic import AnyHttpUrl, AnyUrl, BaseModel, HttpUrl, RootModel
from pydantic_core import PydanticUndefined, TzInfo

from backburner.cache.schema import fingerprint
from backburner.errors import CodecError, ConfigError

__all__ = [
    "BUILTIN",
    "Converter",
    "columns_of",
    "converter_for",
    "converter_named",
    "find_class",
    "load_columns",
    "model_converter",
    "name_of",
]


@dataclass(frozen=True, slots=True)
class Converter:
    tag: str
    """Names the type in stored bytes. For a class with fields: kind, name, ``#`` and fingerprint."""
    to_json: Callable[[Any], object]
    from_json: Callable[[Any], object]

    @property
    def base(self) -> str:
        """The tag without the fingerprint."""
        return self.tag.partition("#")[0]


def name_of(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def converter_for(cls: type, name: str) -> Converter | None:
    """The converter of a class that describes itself: an enum, named tuple, dataclass or pydantic model; else
    ``None``."""
    if issubclass(cls, Flag):
        tag = _tag("flag", name, {bit: str(member.value) for bit, member in cls.__members__.items()})
        return Converter(tag, _flag_to_json, functools.partial(_flag_from_json, cls))
    if issubclass(cls, Enum):
        return Converter(f"enum:{name}", _enum_to_json, functools.partial(_enum_from_json, cls))
    if issubclass(cls, tuple):
        return _named_tuple(cls, name) if hasattr(cls, "_fields") else None
    if hasattr(cls, "__mapper__") or not _holds_attributes_only(cls):
        return None
    if issubclass(cls, BaseModel):
        return _pydantic_model(cls, name)
    if dataclasses.is_dataclass(cls):
        return _dataclass(cls, name)
    return None


def converter_named(tag: str) -> Converter:
    """The converter for a tag read from stored bytes.

    Raises:
        CodecError: the class that it names is not loaded, is of another kind, or has other fields now.
    """
    base = tag.partition("#")[0]
    name = base.partition(":")[2]
    cls = find_class(name)
    converter = converter_for(cls, name) if cls else None
    if converter is None or converter.base != base:
        raise CodecError(
            f"the stored value needs the type {tag!r}, which this process does not have, or not with these fields"
        )
    if converter.tag != tag:
        raise _mismatch(base)
    return converter


def find_class(name: str) -> type | None:
    """The class ``module:Outer.Inner``, if its module is loaded."""
    module, _, path = name.partition(":")
    found: object = sys.modules.get(module)
    for part in path.split("."):
        # Not getattr: a module's __getattr__ may import.
        found = getattr(found, "__dict__", {}).get(part)
    return found if isinstance(found, type) else None


def _mismatch(tag: str) -> CodecError:
    return CodecError(f"the stored {tag} has other fields than the class has now")


def _holds_attributes_only(cls: type) -> bool:
    """Whether instances consist of their attributes only; a dataclass may also be a dict or an exception."""
    try:
        object.__new__(cls)
    except TypeError:
        return False
    return True


def _tag(kind: str, name: str, fields: Mapping[str, object]) -> str:
    return f"{kind}:{name}#{fingerprint(fields)}"


# Enums


def _enum_to_json(member: Enum) -> str:
    if type(member).__members__.get(member.name) is not member:
        raise CodecError(f"{member!r} is not a regular member of its enum, so it could not be found again")
    return member.name


def _enum_from_json(cls: type[Enum], name: str) -> Enum:
    return cls.__members__[name]


def _flag_to_json(flag: Flag) -> object:
    return flag.value


def _flag_from_json(cls: type[Flag], value: object) -> Flag:
    return cls(value)


# Classes with fields


def _named_tuple(cls: type[tuple[Any, ...]], name: str) -> Converter:
    fields: tuple[str, ...] = cls._fields  # type: ignore[attr-defined]
    types: dict[str, object] = {}
    for base in cls.__mro__:
        with suppress(NameError):  # later versions of Python evaluate annotations only now
            types = inspect.get_annotations(base) | types
    tag = _tag("namedtuple", name, {field: types.get(field) for field in fields})

    def to_json(value: tuple[Any, ...]) -> object:
        if getattr(value, "__dict__", None):
            raise CodecError(f"{tag} has attributes beside its fields, which would be lost")
        return dict(zip(fields, value, strict=True))

    def from_json(state: dict[str, object]) -> object:
        if tuple(state) != fields:
            raise _mismatch(tag)
        return tuple.__new__(cls, state.values())

    return Converter(tag, to_json, from_json)


def _dataclass(cls: type[Any], name: str) -> Converter:
    types = {field.name: field.type for field in dataclasses.fields(cls)}
    tag = _tag("dataclass", name, types)
    names, expected = tuple(types), frozenset(types)
    has_slots = any(inspect.isdatadescriptor(getattr(cls, name, None)) for name in names)
    # Beside cached properties: what Python notes of the type arguments in ``Page[Book](…)``, and comparing leaves out.
    not_stored = {name for name, kind in _members(cls) if isinstance(kind, functools.cached_property)}
    not_stored.add("__orig_class__")

    def to_json(value: Any) -> object:
        attributes: dict[str, object] = getattr(value, "__dict__", {})
        if attributes.keys() == expected:
            return attributes
        if surplus := attributes.keys() - expected - not_stored:
            raise CodecError(
                f"{name_of(cls)} has attributes that are not fields and would be lost: "
                f"{', '.join(sorted(surplus))}. Declare them with field(init=False), or register the class"
            )
        return {name: getattr(value, name) for name in names}

    def from_json(state: dict[str, object]) -> object:
        if state.keys() != expected:
            raise _mismatch(tag)
        value = object.__new__(cls)
        if has_slots or not hasattr(value, "__dict__"):
            for name, item in state.items():
                object.__setattr__(value, name, item)
        else:
            object.__setattr__(value, "__dict__", state)
        return value

    return Converter(tag, to_json, from_json)


def _pydantic_model(cls: type[BaseModel], name: str) -> Converter:
    if not cls.__pydantic_complete__:
        cls.model_rebuild(raise_errors=False)  # some types are known by name only until then
    tag = _tag("model", name, {field: info.annotation for field, info in cls.model_fields.items()})
    names = frozenset(cls.model_fields)
    is_root_model = issubclass(cls, RootModel)
    allows_extra = cls.model_config.get("extra") == "allow"
    private_names = cls.__private_attributes__.keys()
    private_with_default = {
        name
        for name, attribute in cls.__private_attributes__.items()
        if attribute.default is not PydanticUndefined or attribute.default_factory
    }
    new, set_attribute = object.__new__, object.__setattr__

    def to_json(model: BaseModel) -> object:
        fields = model.__dict__
        if fields.keys() != names:  # cached properties live there too, and are computed again
            fields = {name: fields[name] for name in cls.model_fields}
        fields_set = model.__pydantic_fields_set__
        extra, private = model.__pydantic_extra__, model.__pydantic_private__
        if fields_set == names and not extra and private is None:
            return fields
        return [fields, sorted(fields_set), extra, private]

    def build(
        fields: dict[str, object], fields_set: set[str], extra: object = None, private: object = None
    ) -> BaseModel:
        if fields.keys() != names:
            raise _mismatch(tag)
        model = new(cls)
        set_attribute(model, "__dict__", fields)
        set_attribute(model, "__pydantic_fields_set__", fields_set)
        if not is_root_model:  # has neither, and would take them for attributes of its own
            set_attribute(model, "__pydantic_extra__", extra)
            set_attribute(model, "__pydantic_private__", private)
        return model

    def from_json(state: Any) -> BaseModel:
        if type(state) is dict:
            if private_names:
                raise _mismatch(tag)
            return build(state, set(names), {} if allows_extra else None)
        fields, fields_set, extra, private = state
        if (
            (extra is not None) is not allows_extra
            or (private is not None) is not bool(private_names)
            or (private is not None and not private_with_default <= private.keys() <= private_names)
        ):
            raise _mismatch(tag)
        return build(fields, set(fields_set), extra, private)

    return Converter(tag, to_json, from_json)


def model_converter(cls: type[Any], name: str, exclude: frozenset[str] = frozenset()) -> Converter:
    """The converter of a class mapped by SQLAlchemy: for its columns except those excluded, not for its relationships.

    Raises:
        ConfigError: SQLAlchemy is not installed, the class is not mapped, or it cannot do without these columns.
    """
    try:
        from sqlalchemy import inspect as inspect_mapped
        from sqlalchemy.orm import make_transient_to_detached
        from sqlalchemy.orm.attributes import set_committed_value
    except ImportError as error:
        raise ConfigError('register_model() needs SQLAlchemy: pip install "backburner[sql]"') from error
    mapper = inspect_mapped(cls, raiseerr=False)
    if not hasattr(mapper, "column_attrs"):
        raise ConfigError(f"register_model() needs a class mapped by SQLAlchemy, not {cls!r}")
    columns = columns_of(cls)
    primary = {mapper.get_property_by_column(column).key for column in mapper.primary_key}
    if wrong := exclude - set(columns) | exclude & primary:
        raise ConfigError(f"{cls.__name__} has no columns {sorted(wrong)} that could be excluded")
    stored = tuple(column for column in columns if column not in exclude)
    expected = frozenset(stored)
    types = {column: type(mapper.get_property(column).columns[0].type).__name__ for column in stored}
    tag = _tag("sqlalchemy", name, types)

    def to_json(instance: object) -> object:
        if inspect_mapped(instance).key is None:
            raise CodecError(f"this {cls.__name__} is not in the database yet: flush or commit it first")
        return load_columns(instance, stored)

    def from_json(state: dict[str, object]) -> object:
        if state.keys() != expected:
            raise _mismatch(tag)
        instance = mapper.class_manager.new_instance()
        for column, value in state.items():
            set_committed_value(instance, column, value)
        make_transient_to_detached(instance)
        return instance

    return Converter(tag, to_json, from_json)


def columns_of(cls: type) -> tuple[str, ...]:
    """The names of the attributes that SQLAlchemy maps to columns."""
    from sqlalchemy import inspect as inspect_mapped

    return tuple(attribute.key for attribute in cast("Any", inspect_mapped(cls)).column_attrs)


def load_columns(instance: object, columns: Iterable[str]) -> dict[str, object]:
    """Read columns of a SQLAlchemy instance; its session loads those that have expired.

    Raises:
        CodecError: some are not loaded, and there is no session any more to load them.
    """
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return {column: getattr(instance, column) for column in columns}
    except SQLAlchemyError as error:
        raise CodecError(
            f"this {type(instance).__name__} has columns that are not loaded and cannot be loaded now: cache "
            "it while its session is open; with an AsyncSession call `await session.refresh(obj)` first, or "
            "build the session with expire_on_commit=False"
        ) from error


def _members(cls: type) -> Iterable[tuple[str, object]]:
    for base in cls.__mro__:
        yield from vars(base).items()


# Built-in types and the standard library


def _bytes_to_json(data: bytes | bytearray) -> str:
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def _bytes_from_json(text: str) -> bytes:
    return binascii.a2b_base64(text, strict_mode=True)


def _itself(value: object) -> object:
    """For types that the JSON writer knows."""
    return value


def _datetime_to_json(moment: datetime) -> object:
    if not moment.fold and (moment.tzinfo is None or moment.tzinfo is UTC):
        return moment  # written as isoformat() has it
    return _moment_to_json(moment)


def _moment_to_json(moment: datetime | time) -> object:
    zone = moment.tzinfo
    if not moment.fold and (zone is None or (type(zone) is timezone and len(_zone_arguments(zone)) == 1)):
        return moment.isoformat()
    return [moment.replace(tzinfo=None, fold=0).isoformat(), moment.fold, zone]


def _datetime_from_json(state: Any) -> datetime:
    if type(state) is str:
        return datetime.fromisoformat(state)
    text, fold, zone = state
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold)


def _time_from_json(state: Any) -> time:
    if type(state) is str:
        return time.fromisoformat(state)
    text, fold, zone = state
    return time.fromisoformat(text).replace(tzinfo=zone, fold=fold)


def _zone_arguments(zone: timezone) -> tuple[object, ...]:
    """The offset and, if there is one, the name."""
    arguments: tuple[object, ...] = zone.__getinitargs__()  # type: ignore[attr-defined]  # what pickle uses
    return arguments


def _zone_to_json(zone: ZoneInfo) -> str:
    if zone.key is None:
        raise CodecError(f"{zone!r} has no name to find it by; use ZoneInfo(name)")
    return zone.key


_FACTORIES: dict[str, Callable[[], object] | None] = {
    "None": None,
    **{kind.__name__: kind for kind in (bool, bytes, dict, float, frozenset, int, list, set, str, tuple)},
}


def _defaultdict_to_json(mapping: defaultdict[object, object]) -> object:
    factory = getattr(mapping.default_factory, "__name__", "None")
    if factory not in _FACTORIES or _FACTORIES[factory] is not mapping.default_factory:
        raise CodecError(f"a defaultdict of {factory} cannot be stored; of list, dict, set, int … it can")
    return [factory, dict(mapping)]


def _defaultdict_from_json(state: Any) -> object:
    factory, items = state
    return defaultdict(_FACTORIES[factory], items)


def _mapping_from_json(state: list[list[Any]]) -> object:
    keys, values = state
    return dict(zip(keys, values, strict=True))


def _from_text(cls: type) -> Callable[[object], object]:
    """Guard a constructor that would also accept a number, and interpret it as something else."""

    def from_json(text: object) -> object:
        if type(text) is not str:
            raise CodecError(f"the stored {cls.__name__} is damaged")
        return cls(text)

    return from_json


def _table(*rows: tuple[type, Callable[[Any], object], Callable[[Any], object]]) -> dict[type, Converter]:
    return {cls: Converter(cls.__name__, to_json, from_json) for cls, to_json, from_json in rows}


BUILTIN = _table(
    # Hexadecimal, because decimal digits cost quadratic time and Python limits their number.
    (int, lambda value: f"{value:x}", lambda text: int(text, 16)),
    (float, repr, float),
    (complex, lambda value: [value.real, value.imag], lambda parts: complex(*parts)),
    (Decimal, str, Decimal),
    (Fraction, lambda value: [value.numerator, value.denominator], lambda parts: Fraction(*parts)),
    (bytes, _bytes_to_json, _bytes_from_json),
    (bytearray, _bytes_to_json, lambda text: bytearray(_bytes_from_json(text))),
    (datetime, _datetime_to_json, _datetime_from_json),
    (time, _moment_to_json, _time_from_json),
    (date, _itself, date.fromisoformat),
    (
        timedelta,
        lambda value: [value.days, value.seconds, value.microseconds],
        lambda parts: timedelta(*parts),
    ),
    (timezone, lambda zone: list(_zone_arguments(zone)), lambda arguments: timezone(*arguments)),
    (ZoneInfo, _zone_to_json, ZoneInfo),
    (TzInfo, lambda zone: zone.utcoffset(None), lambda offset: TzInfo(offset.total_seconds())),
    (UUID, _itself, UUID),
    (dict, lambda mapping: [list(mapping), list(mapping.values())], _mapping_from_json),
    (tuple, list, tuple),
    (set, list, set),
    (frozenset, list, frozenset),
    (deque, lambda items: [items.maxlen, list(items)], lambda state: deque(state[1], state[0])),
    (OrderedDict, dict, OrderedDict),
    (Counter, dict, Counter),
    (defaultdict, _defaultdict_to_json, _defaultdict_from_json),
    (range, lambda value: [value.start, value.stop, value.step], lambda state: range(*state)),
    *(
        (cls, str, _from_text(cls))
        for cls in (
            *(pathlib.PurePosixPath, pathlib.PureWindowsPath, type(pathlib.Path())),
            *(ipaddress.IPv4Address, ipaddress.IPv4Network, ipaddress.IPv4Interface),
            *(ipaddress.IPv6Address, ipaddress.IPv6Network, ipaddress.IPv6Interface),
            *(AnyUrl, AnyHttpUrl, HttpUrl),
        )
    ),
)
"""By exact type. Those of `int`, `float` and `dict` are used only for values that JSON itself cannot hold."""
