"""A call before every statement of the library's functions, to raise there whatever may come.

`sys.settrace` would do, were CPython 3.11 not to crash when a trace function raises.
"""

from __future__ import annotations

import ast
import builtins
import importlib.machinery
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

_BODIES = ("body", "orelse", "finalbody")
_NOT_THE_BOTS = ("__del__", "__repr__")  # called by the collector and by the tests


class _Prober(ast.NodeTransformer):
    def __init__(self, name: str) -> None:
        self._name = name
        self._functions: list[str] = []

    def _visit_function(self, node: Any) -> Any:
        if node.name in _NOT_THE_BOTS:
            return node
        self._functions.append(node.name)
        self.generic_visit(node)
        self._functions.pop()
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = _visit_function

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if self._functions and not isinstance(node, ast.ClassDef | ast.Lambda | ast.IfExp):
            for field in _BODIES:
                if statements := getattr(node, field, None):
                    setattr(node, field, [new for old in statements for new in self._probed(old)])
        return node

    def _probed(self, statement: ast.stmt) -> Sequence[ast.stmt]:
        is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if is_docstring or isinstance(statement, ast.Global | ast.Nonlocal):
            return [statement]
        where = f"{self._name}:{statement.lineno} {self._functions[-1]}"
        call = ast.Call(ast.Name("__probe__", ast.Load()), [ast.Constant(where)], [])
        return [ast.copy_location(ast.Expr(call), statement), statement]


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        tree = _Prober(Path(self.path).name).visit(ast.parse(self.get_data(self.path)))
        return compile(ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True)


class _Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: ModuleType | None = None) -> Any:
        if fullname.partition(".")[0] != "qqbot_session":
            return None
        spec = super().find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin)
        return spec


def install(probe: Callable[[str], object]) -> None:
    """Call `probe("file.py:line function")` before each statement on the main thread from now on.

    The library must not have been imported yet.
    """
    assert "qqbot_session" not in sys.modules
    main = threading.get_ident()

    def on_the_main_thread(where: str) -> None:
        if threading.get_ident() == main:
            probe(where)

    builtins.__probe__ = on_the_main_thread  # type: ignore[attr-defined]
    sys.meta_path.insert(0, _Finder)
