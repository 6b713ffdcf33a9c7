"""Runs the Python blocks of one page, in order, in one module and one event loop; a program of its own.

Blocks come as JSON on standard input. Tracebacks name the page and the line in it. ``await`` works at the top
level, as in an asyncio console; ``pycon`` blocks are checked as doctests.
"""

import ast
import asyncio
import doctest
import inspect
import json
import linecache
import sys
from types import ModuleType
from typing import Any


def main() -> None:
    page = json.load(sys.stdin)
    module = ModuleType("__main__")
    # Classes of a page are found by their module's name, as those of any program.
    sys.modules["__main__"] = module
    linecache.cache[page["name"]] = (0, None, page["text"].splitlines(keepends=True), page["name"])
    with asyncio.Runner() as runner:
        for block in page["blocks"]:
            if block["language"] == "pycon":
                run_doctest(page["name"], block, module.__dict__)
            else:
                run_block(page["name"], block, module.__dict__, runner)


def run_block(name: str, block: dict[str, Any], names: dict[str, Any], runner: asyncio.Runner) -> None:
    source = "\n" * (block["line"] - 1) + block["code"]
    code = compile(source, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if code.co_flags & inspect.CO_COROUTINE:
        runner.run(eval(code, names))
    else:
        exec(code, names)


def run_doctest(name: str, block: dict[str, Any], names: dict[str, Any]) -> None:
    test = doctest.DocTestParser().get_doctest(block["code"], names, name, name, block["line"] - 1)
    failed = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, clear_globs=False).failed
    names.update(test.globs)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
