"""Turn a template such as ``"user:{user_id}"`` and a function's signature into an expression, which `compiled`
compiles.

A template may contain names of arguments, their attributes and items, conversions and format specifications, and
nothing else; no text is ever evaluated. In the value of a field, characters that separate fields are escaped as in a
URL (``%3A``), so that user input cannot be crafted into another key.
"""

import ast
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from inspect import Parameter, Signature
from string import Formatter
from types import NoneType
from typing import Any, Final

from backburner.cache.codec import JSONCodec
from backburner.cache.compiled import Names, call, load
from backburner.cache.keys import fit
from backburner.errors import CodecError, ConfigError

LONGEST_DEFAULT: Final = 250
"""Maximal length of a key made of all arguments; beyond that, it is shortened and given a hash."""

_FIELD: Final = re.compile(r"([^\W\d]\w*)((?:\.[^\W\d]\w*|\[[^\[\]]+\])*)")
_STEP: Final = re.compile(r"\.(\w+)|\[([^\[\]]+)\]")
_NOT_TELLING: Final = (
    (re.compile(r" at 0x[0-9a-fA-F]+"), "a memory address makes a key that is never found again"),
    (re.compile(r"\*{10}"), "so do all secrets of pydantic's, which would share a key"),
)
"""Signs that a text does not tell one value from another, and what would come of it."""
_PLAIN: Final = frozenset({str, int, float, bool, NoneType, bytes})
_EVERYTHING: Final = JSONCodec()
_SEPARATOR: Final = ":"
_ESCAPE: Final = "%"
_IN_ESCAPES: Final = frozenset(f"{_ESCAPE}0123456789ABCDEF")

# Names that no argument can have.
_FIT, _TELLING, _QUOTED, _PART, _SORTED, _CLASS = "<fit>", "<telling>", "<quoted>", "<part>", "<sorted>", "<class>"
_TYPE, _PLAIN_TYPES = "<type>", "<plain types>"


@dataclass(frozen=True, slots=True)
class KeyExpression:
    """A key as an expression over the arguments of a function."""

    key: ast.expr
    probe: ast.expr
    """A cheaper form of the key for looking up entries. Where the two differ (a key that is too long), it finds
    none."""
    names: Names
    """What both refer to."""


class Templates:
    """Makes expressions for one function.

    Args:
        name: the function, for messages.
        signature: what it takes.
    """

    def __init__(self, name: str, signature: Signature) -> None:
        self._name = name
        self._signature = signature

    def key(self, template: str, namespace: str) -> KeyExpression:
        """The key that a template describes.

        Raises:
            ConfigError: the template is invalid, names something that is not an argument, or is ambiguous.
        """
        read = self._read(template, "key")
        if not read.fields:
            constant = ast.Constant(fit(namespace + read.literals[0]))
            return KeyExpression(constant, constant, {})
        separators = self._separators(template, read)
        quoting = {ord(character): _percent(character) for character in separators}
        careful: list[ast.expr] = []
        quick: list[ast.expr] = []
        checks: list[ast.expr] = []
        for field in read.fields:
            told = field.shown(call(_TELLING, field.value, ast.Constant(field.text)))
            careful.append(_shown(call(_QUOTED, ast.JoinedStr([told]))))
            # Letters and digits need no quoting, whatever their type; asking the text costs least.
            local = f"<text {len(quick)}>"
            text = ast.NamedExpr(ast.Name(local, ast.Store()), ast.JoinedStr([field.shown(field.value)]))
            checks.append(ast.Call(ast.Attribute(text, "isalnum", ast.Load()), [], []))
            quick.append(_shown(load(local)))
        literals = [namespace + read.literals[0], *read.literals[1:]]
        key = call(_FIT, _joined(literals, careful))
        # Not with `#`, which could make a short text look like what `fit` gives for a long one.
        quickly = "#" not in "".join(literals)
        probe = _if_all(checks, _joined(literals, quick), key) if quickly else key
        names = {_FIT: fit, _TELLING: self._telling, _QUOTED: lambda text: text.translate(quoting)}
        return KeyExpression(key, probe, names)

    def default_key(self, name: str, namespace: str, owner: str | None) -> KeyExpression:
        """A key made of a name and all arguments, each in a form that no other value has.

        `owner` names the ``self`` or ``cls`` argument of a method: its class becomes part of the key, the object does
        not.
        """
        begin: list[ast.expr] = [ast.Constant(namespace)]
        if owner is not None:
            begin += [_shown(call(_CLASS, load(owner))), ast.Constant(".")]
        begin.append(ast.Constant(f"{name}("))
        careful, quick = list(begin), list(begin)
        checks: list[ast.expr] = []
        separator = ast.Constant("")
        parameters = [parameter for parameter in self._signature.parameters.values() if parameter.name != owner]
        for parameter in parameters:
            value: ast.expr = load(parameter.name)
            checks.append(ast.Compare(call(_TYPE, value), [ast.In()], [load(_PLAIN_TYPES)]))
            quick += [separator, ast.FormattedValue(value, ord("r"), None)]
            if parameter.kind is Parameter.VAR_KEYWORD:
                value = call(_SORTED, value)
            careful += [separator, _shown(call(_PART, value, ast.Constant(parameter.name)))]
            separator = ast.Constant(",")
        # With its end, no text that is too long can look like what `fit` gives for another one.
        end = ast.Constant(")")
        key = call(_FIT, ast.JoinedStr([*careful, end]), ast.Constant(LONGEST_DEFAULT))
        names = {
            _FIT: fit, _PART: self._part, _SORTED: _sorted, _CLASS: _class_name, _TYPE: type, _PLAIN_TYPES: _PLAIN,
        }  # fmt: skip
        return KeyExpression(key, _if_all(checks, ast.JoinedStr([*quick, end]), key), names)

    def tags(self, templates: Iterable[str]) -> tuple[ast.expr, Names]:
        """The tuple of tags. Values are not escaped in them: whoever flushes a tag writes it by hand."""
        tags: list[ast.expr] = []
        for template in templates:
            read = self._read(template, "a tag")
            values: list[ast.expr] = [
                field.shown(call(_TELLING, field.value, ast.Constant(field.text))) for field in read.fields
            ]
            tags.append(call(_FIT, _joined(read.literals, values)))
        return ast.Tuple(tags, ast.Load()), {_FIT: fit, _TELLING: self._telling}

    def _read(self, template: str, what: str) -> "_Template":
        if not template:
            raise ConfigError(f"{self._name}(): {what} must not be empty; write something like 'user:{{user_id}}'")
        try:
            parsed = list(Formatter().parse(template))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self._name}(): {what}={template!r} cannot be read: {error}") from None
        literals, fields = [""], []
        for literal, text, specification, conversion in parsed:
            literals[-1] += literal
            if text is None:
                continue
            if specification and "{" in specification:
                raise ConfigError(f"{self._name}(): {what}={template!r}: a format cannot contain another field")
            if conversion not in (None, "", "r", "s", "a"):
                raise ConfigError(f"{self._name}(): {what}={template!r}: the conversions are !r, !s and !a")
            fields.append(_Field(text, self._value(template, text, what), specification or "", conversion or ""))
            literals.append("")
        return _Template(literals, fields)

    def _value(self, template: str, text: str, what: str) -> ast.expr:
        read = _FIELD.fullmatch(text)
        if read is None:
            raise ConfigError(
                f"{self._name}(): {what}={template!r}: {{{text}}} must name an argument, as {{user_id}} and "
                "{user.id} do"
            )
        name, steps = read.groups()
        known = self._signature.parameters
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ConfigError(f"{self._name}() has no argument {name!r}, which {what}={template!r} asks for; {has}")
        value: ast.expr = load(name)
        for attribute, item in _STEP.findall(steps):
            if attribute:
                value = ast.Attribute(value, attribute, ast.Load())
            else:
                value = ast.Subscript(value, ast.Constant(int(item) if item.isdecimal() else item), ast.Load())
        return value

    def _separators(self, template: str, read: "_Template") -> set[str]:
        """The characters to be escaped in values: one of each text between two fields, and ``:`` and ``%``."""
        separators = {_SEPARATOR, _ESCAPE}
        for between in read.literals[1:-1]:
            able = [character for character in between if character not in _IN_ESCAPES]
            if not able:
                raise ConfigError(
                    f"{self._name}(): key={template!r}: nothing tells two of its fields apart, so that different "
                    "arguments could share a key; put a colon between them"
                )
            separators.add(next((character for character in able if not character.isalnum()), able[0]))
        return separators

    def _telling(self, value: object, text: str) -> object:
        """Check that a value's text identifies it, and return the value."""
        if type(value) in _PLAIN:
            return value
        shown = str(value)
        for sign, problem in _NOT_TELLING:
            if sign.search(shown):
                raise TypeError(
                    f"{self._name}(): {{{text}}} is a {type(value).__qualname__} and shows as {shown[:80]!r}: {problem}"
                    f". Name what matters, such as {{{text}.id}}"
                )
        return value

    def _part(self, value: object, name: str) -> str:
        """A text that no other value has."""
        if type(value) in _PLAIN:
            return repr(value)
        if isinstance(value, (set, frozenset)):
            # Their order differs from process to process.
            return f"{{{','.join(sorted(self._part(item, name) for item in value))}}}"
        try:
            return _EVERYTHING.encode(value).decode().replace("\n", " ")
        except CodecError as error:
            raise TypeError(
                f"{self._name}(): the argument {name!r} is a {type(value).__qualname__}, and two of them cannot be "
                f"told apart for certain. Say what the key is made of: @cached(key='…{{{name}.id}}'), or a key without "
                f"{{{name}}} if it does not matter"
            ) from error


@dataclass(frozen=True, slots=True)
class _Template:
    """A parsed template: a text, a field, a text, …, a field, a text; texts may be empty."""

    literals: list[str]
    fields: list["_Field"]


@dataclass(frozen=True, slots=True)
class _Field:
    """What stands in braces in a template."""

    text: str
    value: ast.expr
    specification: str
    conversion: str

    def shown(self, value: ast.expr) -> ast.FormattedValue:
        """A value in the form that the field asks for."""
        specification = ast.JoinedStr([ast.Constant(self.specification)]) if self.specification else None
        return ast.FormattedValue(value, ord(self.conversion) if self.conversion else -1, specification)


def _percent(character: str) -> str:
    return "".join(f"{_ESCAPE}{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def _joined(literals: Sequence[str], values: Sequence[ast.expr]) -> ast.JoinedStr:
    parts: list[ast.expr] = [ast.Constant(literals[0])]
    for value, literal in zip(values, literals[1:], strict=True):
        parts += [value, ast.Constant(literal)]
    return ast.JoinedStr(parts)


def _if_all(checks: list[ast.expr], then: ast.expr, otherwise: ast.expr) -> ast.expr:
    if not checks:
        return then
    return ast.IfExp(checks[0] if len(checks) == 1 else ast.BoolOp(ast.And(), checks), then, otherwise)


def _shown(value: ast.expr) -> ast.FormattedValue:
    return ast.FormattedValue(value, -1, None)


def _sorted(keywords: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(keywords.items()))


def _class_name(owner: object) -> str:
    cls = owner if isinstance(owner, type) else type(owner)
    return f"{cls.__module__}.{cls.__qualname__}"
