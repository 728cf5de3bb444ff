"""Other systems' `os`, simulated: what `FileStorage` does on Windows, on macOS, or on neither.

`simulate` lets `qqbot_session.storages.files` see another `os` for the rest of a test, as if it
had been imported there:

* `windows`: what is missing there is missing; nobody can replace, rename, remove or open a file
  that another has open (`WindowsOs.hold`), and nobody can rename onto a file.
* `macos`: what is missing there is missing; `F_FULLFSYNC` syncs, and a volume may refuse it.
* `bare`: everything that is not on every system is missing.
"""

# ruff: noqa: PTH104, PTH105, PTH108  - system calls are what this is about
from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import re
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from qqbot_session.storages import files, places

PLATFORMS = ("linux", "windows", "macos", "bare")
_NOT_THERE = {
    "linux": set(),
    "macos": {"fdatasync", "posix_fadvise", "POSIX_FADV_DONTNEED"},
    "windows": {
        *("O_NOFOLLOW", "O_NONBLOCK", "O_DIRECTORY", "O_CLOEXEC", "fdatasync", "posix_fadvise"),
        *("POSIX_FADV_DONTNEED", "sysconf", "geteuid", "getuid", "fork", "mkfifo"),
    },
    "bare": {
        *("O_NOFOLLOW", "O_NONBLOCK", "O_DIRECTORY", "O_CLOEXEC", "fdatasync", "posix_fadvise"),
        *("POSIX_FADV_DONTNEED", "sysconf", "link", "geteuid", "getuid"),
    },
}


class SimulatedOs(ModuleType):
    """The real `os` without what the platform does not have."""

    def __init__(self, platform: str) -> None:
        super().__init__("os")
        self._not_there = _NOT_THERE[platform]

    def __getattr__(self, name: str) -> Any:
        if name in self._not_there:
            raise AttributeError(f"module 'os' has no attribute {name!r}")
        return getattr(os, name)


class WindowsOs(SimulatedOs):
    """Attributes:
    refusals: how many calls failed because somebody had the file open.
    """

    name = "nt"

    def __init__(self) -> None:
        super().__init__("windows")
        self._open: dict[int, str] = {}
        self._held: dict[str, int] = {}
        self._lock = threading.Lock()
        self.refusals = 0

    def hold(self, path: os.PathLike[str], calls: int) -> None:
        """Let another program have the file, shut to all, until so many calls have failed."""
        self._held[os.fspath(path)] = calls

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        self._check(path, held_only=True)
        file = os.open(path, flags, mode)
        with self._lock:
            self._open[file] = path
        return file

    def close(self, file: int) -> None:
        with self._lock:
            self._open.pop(file, None)
        os.close(file)

    def replace(self, source: str, target: str) -> None:
        self._check(source)
        self._check(target)
        os.replace(source, target)

    def rename(self, source: str, target: str) -> None:
        self._check(source)
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "[WinError 183] already exists", target)
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        self._check(path)
        os.unlink(path)

    def link(self, source: str, target: str, *, follow_symlinks: bool = True) -> None:
        os.link(source, target, follow_symlinks=False)

    def _check(self, path: str, *, held_only: bool = False) -> None:
        with self._lock:
            refused = self._held.get(path, 0) > 0 or (not held_only and path in self._open.values())
            self._held[path] = self._held.get(path, 0) - 1
            self.refusals += refused
        if refused:
            error = PermissionError(errno.EACCES, "[WinError 32] sharing violation", path)
            error.winerror = 32  # type: ignore[attr-defined]
            raise error


class MacFcntl(ModuleType):
    """Attributes:
    refuses: the error of a volume that has no `F_FULLFSYNC`; 0 if it has.
    full_syncs: how often it was done.
    """

    F_FULLFSYNC = 51

    def __init__(self) -> None:
        super().__init__("fcntl")
        self.refuses = 0
        self.full_syncs = 0

    def fcntl(self, file: int, command: int) -> int:
        assert command == self.F_FULLFSYNC
        if self.refuses:
            raise OSError(self.refuses, os.strerror(self.refuses))
        os.fsync(file)
        self.full_syncs += 1
        return 0


def simulate(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    """Give `storages.files` and `storages.places` what they would have on that platform."""
    if platform == "linux":
        return
    simulated = WindowsOs() if platform == "windows" else SimulatedOs(platform)
    fcntl = MacFcntl() if platform == "macos" else None
    for module in (places, files):
        copy = _imported_with(module, {"os": simulated, "fcntl": fcntl})
        for name, value in vars(copy).items():
            if name in ("os", "fcntl") or re.fullmatch(r"_[A-Z]+_[A-Z_]+", name):
                monkeypatch.setattr(module, name, value, raising=False)


def _imported_with(module: ModuleType, modules: dict[str, ModuleType | None]) -> ModuleType:
    """Import a copy of a module that gets these modules; `None` is not there."""
    assert module.__file__ is not None
    spec = importlib.util.spec_from_file_location(module.__name__, module.__file__)
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    with _in_their_places(modules):
        spec.loader.exec_module(copy)
    return copy


@contextlib.contextmanager
def _in_their_places(modules: dict[str, ModuleType | None]) -> Iterator[None]:
    real = {name: sys.modules[name] for name in modules if name in sys.modules}
    sys.modules.update(modules)  # type: ignore[arg-type]
    try:
        yield
    finally:
        sys.modules.update(real)
