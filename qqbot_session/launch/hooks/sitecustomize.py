"""Python imports this at its start, in a program that `qqbot-session run` has started.

Rules:

* It runs in every Python process of the program, children included, so it imports next to nothing
  and nothing of ours: only a framework's own import brings the rest.
* Whatever fails here is one line on standard error, and the program runs on without us.
* The program's own `sitecustomize`, if it has one, runs as if this one were not there.
"""

from __future__ import annotations

import os
import sys
from _frozen_importlib_external import PathFinder  # importlib.machinery would import more

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing costs every process of the program a few milliseconds
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - no import of pathlib
FRAMEWORKS = {  # the module whose import is waited for: the function of `wrapping` that wraps it
    "botpy": "wrap_botpy",
    "nonebot.adapters.qq": "wrap_nonebot",
    "qqbot_agent_sdk": "wrap_agent_sdk",
    "nanobot.command.builtin": "wrap_nanobot",
    "langbot.libs.qq_official_api.api": "wrap_langbot",
    "gateway.platforms.qqbot.adapter": "wrap_hermes",
}


class Finder:
    """Wraps a framework right after its import. Only the first import of each is seen here."""

    def __init__(self) -> None:
        self._waiting = dict(FRAMEWORKS)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        function = self._waiting.pop(name, None)
        if function is None:
            return None
        try:
            from importlib.util import find_spec

            spec = find_spec(name)
            if spec is not None and spec.loader is not None:
                _wrap_after(spec.loader, name, function)
            else:
                self._waiting[name] = function  # it may be installed later, or never
        except Exception as error:  # noqa: BLE001 - the program must run on
            _say(name, error)
            return None
        return spec


def _wrap_after(loader: Any, name: str, function: str) -> None:
    run = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        run(module)
        try:
            from qqbot_session.launch import wrapping

            getattr(wrapping, function)(module)
        except Exception as error:  # noqa: BLE001 - the program must run on
            _say(name, error)

    loader.exec_module = exec_module


def _say(name: str, error: BaseException) -> None:
    if isinstance(error, ModuleNotFoundError) and error.name == "qqbot_session":
        error = ImportError(f"qqbot_session is not installed in {sys.executable}")
    text = " ".join(str(error).split()) or type(error).__name__
    print(  # noqa: T201
        f"qqbot-session: {name} will not resume: {text}", file=sys.stderr, flush=True
    )


def _run_the_next_sitecustomize() -> None:
    """Import the `sitecustomize` that this one hides, under its own name."""
    others = [path for path in sys.path if os.path.abspath(path or ".") != HERE]  # noqa: PTH100
    sys.path[:] = others  # for children it stays in PYTHONPATH
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is None or spec.loader is None:
        return
    from importlib.util import module_from_spec

    module = module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


if os.environ.get("QQBOT_SESSION_STORAGE"):
    sys.meta_path.insert(0, Finder())
_run_the_next_sitecustomize()
