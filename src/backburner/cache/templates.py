"""Turn ``"user:{user_id}"`` and the signature of a function into a function that takes the same arguments and gives the
key.

It is compiled once, from a syntax tree, so that Python itself binds the arguments (positional or by name, with their
defaults) and a call costs little more than an f-string. Only what a template may contain is put into the tree: names of
arguments, their attributes and items, conversions and format specifications. No text is evaluated.
"""

import ast
import re
from collections.abc import Callable, Iterable
from inspect import Parameter, Signature
from string import Formatter
from types import NoneType
from typing import Any, Final

from backburner.cache.codec import JSONCodec
from backburner.cache.keys import fit
from backburner.errors import CodecError, ConfigError

LONGEST_DEFAULT: Final = 250
"""Characters of a key made of all arguments; the rest becomes a hash."""

_FIELD: Final = re.compile(r"([^\W\d]\w*)((?:\.[^\W\d]\w*|\[[^\[\]]+\])*)")
_STEP: Final = re.compile(r"\.(\w+)|\[([^\[\]]+)\]")
_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")
_PLAIN: Final = frozenset({str, int, float, bool, NoneType, bytes})
_EVERYTHING: Final = JSONCodec()

# Names that no argument can have.
_FIT, _TELLING, _PART, _SORTED, _CLASS = "<fit>", "<telling>", "<part>", "<sorted>", "<class>"
_TYPE, _PLAIN_TYPES, _REPR = "<type>", "<plain types>", "<repr>"


class Templates:
    """Compiles templates for one function.

    Args:
        name: the function, for messages.
        signature: what it takes.
    """

    def __init__(self, name: str, signature: Signature) -> None:
        self._name = name
        self._signature = signature

    def key(self, template: str, namespace: str) -> Callable[..., str]:
        """A function that gives the key a template describes.

        Raises:
            ConfigError: the template cannot be read, or names what is no argument.
        """
        body = ast.JoinedStr([ast.Constant(namespace), *self._parts(template, "key")])
        return self._compile(_call(_FIT, body))

    def default_key(self, name: str, namespace: str, owner: str | None) -> Callable[..., str]:
        """A function that gives a key made of a name and all arguments, each in a form that no other value has.

        With `owner`, that argument is the object or class of a method: its class belongs to the name, itself it does
        not.
        """
        body: list[ast.expr] = [ast.Constant(namespace)]
        if owner is not None:
            body += [_shown(_call(_CLASS, _load(owner))), ast.Constant(".")]
        body.append(ast.Constant(f"{name}("))
        separator = ""
        for parameter in self._signature.parameters.values():
            if parameter.name == owner:
                continue
            value: ast.expr = _load(parameter.name)
            if parameter.kind is Parameter.VAR_KEYWORD:
                value = _call(_SORTED, value)
            part: ast.expr = _call(_PART, value, ast.Constant(parameter.name))
            if isinstance(value, ast.Name):
                part = _unless_plain(value, _call(_REPR, value), part)
            body += [ast.Constant(separator), _shown(part)]
            separator = ","
        body.append(ast.Constant(")"))
        return self._compile(_call(_FIT, ast.JoinedStr(body), ast.Constant(LONGEST_DEFAULT)))

    def tags(self, templates: Iterable[str]) -> Callable[..., tuple[str, ...]]:
        """A function that gives the tags; as `key` otherwise."""
        tags: list[ast.expr] = [ast.JoinedStr(self._parts(template, "a tag")) for template in templates]
        return self._compile(ast.Tuple(tags, ast.Load()))

    def _parts(self, template: str, what: str) -> list[ast.expr]:
        parts: list[ast.expr] = []
        for literal, field, specification, conversion in self._fields(template, what):
            if literal:
                parts.append(ast.Constant(literal))
            if field is None:
                continue
            value = self._value(template, field, what)
            shown = ast.JoinedStr([ast.Constant(specification)]) if specification else None
            parts.append(ast.FormattedValue(value, ord(conversion) if conversion else -1, shown))
        return parts

    def _fields(self, template: str, what: str) -> list[tuple[str, str | None, str | None, str | None]]:
        if not template:
            raise ConfigError(f"{self._name}(): {what} must not be empty; write something like 'user:{{user_id}}'")
        try:
            fields = list(Formatter().parse(template))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self._name}(): {what}={template!r} cannot be read: {error}") from None
        for _, field, specification, conversion in fields:
            if specification and "{" in specification:
                raise ConfigError(f"{self._name}(): {what}={template!r}: a format cannot contain another field")
            if conversion not in (None, "", "r", "s", "a"):
                raise ConfigError(f"{self._name}(): {what}={template!r}: the conversions are !r, !s and !a")
            if field is not None and not _FIELD.fullmatch(field):
                raise ConfigError(
                    f"{self._name}(): {what}={template!r}: {{{field}}} must name an argument, as {{user_id}} and "
                    "{user.id} do"
                )
        return fields

    def _value(self, template: str, field: str, what: str) -> ast.expr:
        name = _name_of(field)
        known = self._signature.parameters
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ConfigError(f"{self._name}() has no argument {name!r}, which {what}={template!r} asks for; {has}")
        value: ast.expr = _load(name)
        for attribute, item in _STEP.findall(field[len(name) :]):
            if attribute:
                value = ast.Attribute(value, attribute, ast.Load())
            else:
                value = ast.Subscript(value, ast.Constant(int(item) if item.isdecimal() else item), ast.Load())
        checked = _call(_TELLING, value, ast.Constant(field))
        return _unless_plain(value, value, checked) if isinstance(value, ast.Name) else checked

    def _compile(self, body: ast.expr) -> Callable[..., Any]:
        kinds: dict[Any, list[ast.arg]] = {}
        defaults: list[Any] = []
        by_name: dict[str, Any] = {}
        for parameter in self._signature.parameters.values():
            kinds.setdefault(parameter.kind, []).append(ast.arg(parameter.name))
            if parameter.default is Parameter.empty:
                continue
            if parameter.kind is Parameter.KEYWORD_ONLY:
                by_name[parameter.name] = parameter.default
            else:
                defaults.append(parameter.default)
        named = kinds.get(Parameter.KEYWORD_ONLY, [])
        arguments = ast.arguments(
            posonlyargs=kinds.get(Parameter.POSITIONAL_ONLY, []),
            args=kinds.get(Parameter.POSITIONAL_OR_KEYWORD, []),
            vararg=next(iter(kinds.get(Parameter.VAR_POSITIONAL, [])), None),
            kwonlyargs=named,
            kw_defaults=[None] * len(named),
            kwarg=next(iter(kinds.get(Parameter.VAR_KEYWORD, [])), None),
            defaults=[],
        )
        tree = ast.fix_missing_locations(ast.Expression(ast.Lambda(arguments, body)))
        steps = {
            _FIT: fit,
            _TELLING: self._telling,
            _PART: self._part,
            _SORTED: _sorted,
            _CLASS: _class_name,
            _TYPE: type,
            _PLAIN_TYPES: _PLAIN,
            _REPR: repr,
        }
        made = eval(compile(tree, f"<key of {self._name}>", "eval"), steps)  # noqa: S307 - built above, from no text
        made.__defaults__ = tuple(defaults)
        made.__kwdefaults__ = by_name
        made.__name__ = made.__qualname__ = self._name  # what Python says when arguments are missing
        return made  # type: ignore[no-any-return]

    def _telling(self, value: object, field: str) -> object:
        """Give a value back whose text can stand for it."""
        if type(value) not in _PLAIN and _ADDRESS.search(str(value)):
            raise TypeError(
                f"{self._name}(): {{{field}}} is a {type(value).__qualname__} and shows as {str(value)[:80]!r}: a "
                f"memory address makes a key that is never found again. Name what matters, such as {{{field}.id}}"
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


def _name_of(field: str) -> str:
    return re.split(r"[.\[]", field, maxsplit=1)[0]


def _load(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(_load(name), list(arguments), [])


def _unless_plain(argument: ast.Name, plainly: ast.expr, otherwise: ast.expr) -> ast.expr:
    """Spare the types that nearly all arguments have a closer look."""
    return ast.IfExp(ast.Compare(_call(_TYPE, argument), [ast.In()], [_load(_PLAIN_TYPES)]), plainly, otherwise)


def _shown(value: ast.expr) -> ast.FormattedValue:
    return ast.FormattedValue(value, -1, None)


def _sorted(keywords: dict[str, object]) -> dict[str, object]:
    return dict(sorted(keywords.items()))


def _class_name(owner: object) -> str:
    cls = owner if isinstance(owner, type) else type(owner)
    return f"{cls.__module__}.{cls.__qualname__}"
