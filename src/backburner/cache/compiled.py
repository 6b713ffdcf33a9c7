"""Compile an expression over the arguments of a function into a function with the same signature.

So Python itself binds positional, keyword and default arguments, at the cost of a plain call. The expression is a
syntax tree that this package builds, never text; whatever it refers to besides arguments has a name that no argument
can have, such as ``<fit>``.
"""

import ast
from collections.abc import Callable, Mapping
from inspect import Parameter, Signature
from typing import Any

Names = Mapping[str, Any]
"""What an expression refers to, besides arguments."""


def load(name: str) -> ast.Name:
    """The value of a name."""
    return ast.Name(name, ast.Load())


def call(name: str, *arguments: ast.expr) -> ast.Call:
    """A call of a named function."""
    return ast.Call(load(name), list(arguments), [])


def forward(name: str, signature: Signature) -> ast.Call:
    """A call that passes all arguments on."""
    forwarded = call(name)
    for parameter in signature.parameters.values():
        value = load(parameter.name)
        match parameter.kind:
            case Parameter.VAR_POSITIONAL:
                forwarded.args.append(ast.Starred(value, ast.Load()))
            case Parameter.KEYWORD_ONLY:
                forwarded.keywords.append(ast.keyword(parameter.name, value))
            case Parameter.VAR_KEYWORD:
                forwarded.keywords.append(ast.keyword(None, value))
            case _:
                forwarded.args.append(value)
    return forwarded


def compiled(
    name: str, signature: Signature, value: ast.expr, names: Names, *, asynchronous: bool = False
) -> Callable[..., Any]:
    """A function, or coroutine function, with that name and signature that returns the value of an expression."""
    module = ast.parse("async def made(): ..." if asynchronous else "def made(): ...")
    (definition,) = module.body
    assert isinstance(definition, (ast.FunctionDef, ast.AsyncFunctionDef))  # noqa: S101  # for the type checker
    definition.args = _arguments(signature)
    definition.body = [ast.Return(value)]
    ast.fix_missing_locations(module)
    namespace = dict(names)
    exec(compile(module, f"<{name}, cached>", "exec"), namespace)  # noqa: S102  # a tree, from no text
    made = namespace["made"]
    parameters = signature.parameters.values()
    given = [parameter for parameter in parameters if parameter.default is not Parameter.empty]
    made.__defaults__ = tuple(each.default for each in given if each.kind is not Parameter.KEYWORD_ONLY)
    made.__kwdefaults__ = {each.name: each.default for each in given if each.kind is Parameter.KEYWORD_ONLY}
    made.__name__ = made.__qualname__ = name  # what Python says when arguments are missing
    return made  # type: ignore[no-any-return]


def _arguments(signature: Signature) -> ast.arguments:
    kinds: dict[Any, list[ast.arg]] = {}
    for parameter in signature.parameters.values():
        kinds.setdefault(parameter.kind, []).append(ast.arg(parameter.name))
    by_name = kinds.get(Parameter.KEYWORD_ONLY, [])
    return ast.arguments(
        posonlyargs=kinds.get(Parameter.POSITIONAL_ONLY, []),
        args=kinds.get(Parameter.POSITIONAL_OR_KEYWORD, []),
        vararg=next(iter(kinds.get(Parameter.VAR_POSITIONAL, [])), None),
        kwonlyargs=by_name,
        kw_defaults=[None] * len(by_name),
        kwarg=next(iter(kinds.get(Parameter.VAR_KEYWORD, [])), None),
        defaults=[],  # set afterwards: they are values, not expressions
    )
