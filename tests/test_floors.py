"""The house plan: what imports what, and what is there to import at run time."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "qqbot_session"

# The house plan; the second number orders those that may know a neighbour on their floor.
FLOORS = {
    "words": (1, 0),
    "errors": (1, 1),
    "logs": (1, 1),
    "state": (2, 0),
    "net": (2, 0),
    "watch": (2, 0),
    "guard": (3, 0),
    "judging": (3, 0),
    "ledger": (3, 0),
    "storages": (3, 1),
    "gateway": (4, 0),
    "commit": (4, 0),
    "reading": (4, 0),
    "lease": (4, 1),
    "store": (5, 0),
    "answers": (5, 0),
    "loop": (6, 0),
    "shard": (6, 1),
    "pace": (6, 0),
    "lifetime": (6, 0),
    "integrations": (7, 0),
    "web": (8, 0),
    "bot": (8, 1),
    "launch": (8, 2),
    "cli": (8, 3),
    "testing": (9, 0),
    "__main__": (9, 1),
    "__init__": (9, 2),
}
REDIS = Path("storages", "redis.py")  # the one room of its wing that needs an extra
# These may import what an extra installs.
OPTIONAL = {"integrations", "launch", "web", "bot", "testing"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def own_name(path: Path) -> str:
    """Return the row of the table: a module's name, or its sub-package's."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield what a module imports, wherever in it, and whether that is of this package."""
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            inside = node.level < depth  # `from .sibling` within a sub-package
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from ((own_name(path) if inside else name.split(".")[0], True) for name in names)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names]
            for module in modules if isinstance(node, ast.Import) else [node.module or ""]:
                package, _, rest = module.partition(".")
                if package == "qqbot_session":
                    yield rest.split(".")[0] or "__init__", True
                else:
                    yield package, False


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_floors_below_its_own(path: Path) -> None:
    name = own_name(path)
    assert name in FLOORS, f"{name} has no floor yet"
    for imported, ours in imports(path):
        if ours and imported != name:
            assert FLOORS[imported] < FLOORS[name], f"{name} imports {imported}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_the_standard_library_and_aiofiles(path: Path) -> None:
    if own_name(path) in OPTIONAL:
        return
    standard = sys.stdlib_module_names | {"_sha256"}  # the latter until Python 3.11
    others = {module for module, ours in imports(path) if not ours} - standard
    assert others <= ({"redis"} if path == PACKAGE / REDIS else {"aiofiles"})


def test_the_sans_io_modules_import_nothing_that_does_io() -> None:
    """The pure part does no I/O, reads no clock and logs nothing."""
    paths = [PACKAGE / "errors.py", PACKAGE / "state.py", *(PACKAGE / "gateway").glob("*.py")]
    for path in paths:
        modules = {module for module, _ in imports(path)}
        assert not modules & {"asyncio", "logging", "os", "time", "socket", "aiofiles"}, path


def test_aiofiles_is_the_only_run_time_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert [name.partition(">")[0] for name in project["dependencies"]] == ["aiofiles"]


def test_the_package_imports_without_any_optional_dependency() -> None:
    """A finder refuses every module that is neither ours, nor standard, nor aiofiles."""
    program = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        first = name.partition(".")[0]
        if first not in sys.stdlib_module_names and first not in ("aiofiles", "qqbot_session"):
            raise ImportError(f"not there: {name}")
sys.meta_path.insert(0, Refuse())
for module in [name for name in sys.modules if name.partition(".")[0] not in
               sys.stdlib_module_names | {"__main__"}]:
    del sys.modules[module]
import qqbot_session
for name in qqbot_session.__all__:
    getattr(qqbot_session, name)
loaded = {name.partition(".")[0] for name in sys.modules}
print(sorted(loaded & {"aiohttp", "redis", "websockets", "sqlite3"}))
print(sorted(name for name in sys.modules if name.startswith("qqbot_session.testing")))
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (result.stdout, result.returncode) == ("[]\n[]\n", 0), result.stderr


@pytest.mark.parametrize(
    "name",
    [
        "storages/files",
        "storages/sqlite",
        "storages/base",
        "logs",
        "guard",
        "commit",
        "store",
        "reading",
        "state",
    ],
)
def test_nothing_is_imported_on_the_way_to_the_disk(name: str) -> None:
    """An import without a free descriptor leaves half a module, and no later write would work."""
    # promise 8
    for function in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text("utf-8"))):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            if function.name == "lease":  # it writes nothing
                continue
            inside = [n for n in ast.walk(function) if isinstance(n, ast.Import | ast.ImportFrom)]
            assert not inside, function.name
