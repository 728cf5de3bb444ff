"""A disk that loses power: which directories a crash may leave behind, after which calls.

The model is the weakest that POSIX allows. A file's data is on the disk for certain once the file
was synced; until then the file may be empty, torn, full of zeros or complete. A name in a
directory is what it is for certain once the directory was synced; until then it may be whatever it
was at any moment since, each name by itself, so that the halves of a rename may part.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crash import Do

_DIRECTORY = -1  # in place of an inode


class Disk:
    """Records the calls of `qqbot_session.storages.files` as a `crash.Tap` sees them.

    Args:
        root: everything in it is on the disk already.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._data: list[bytes] = []  # per inode
        self._synced: list[bool] = []
        self._names: dict[Path, list[int | None]] = {}  # each version since the last sync
        self._open: dict[int, Path] = {}
        self.calls: list[str] = []
        for path in sorted(root.rglob("*")):
            self._names[path] = [
                _DIRECTORY if path.is_dir() else self._inode(path.read_bytes(), synced=True)
            ]

    def _inode(self, data: bytes, *, synced: bool) -> int:
        self._data.append(data)
        self._synced.append(synced)
        return len(self._data) - 1

    def _at(self, path: Path) -> int | None:
        return self._names[path][-1] if path in self._names else None

    def _set(self, path: Path, inode: int | None) -> None:
        self._names.setdefault(path, [None]).append(inode)

    def __call__(self, name: str, do: Do, args: tuple[Any, ...]) -> Any:
        result = do()
        self.calls.append(name)
        note = getattr(self, {"open": "_opened"}.get(name, f"_{name}"), None)
        if note is not None:
            note(result, *args)
        return result

    def _opened(self, file: int, path: str, flags: int, mode: int = 0) -> None:
        self._open[file] = Path(path)
        if flags & os.O_CREAT:
            self._set(Path(path), self._inode(b"", synced=False))

    def _close(self, _: None, file: int) -> None:
        del self._open[file]

    def _write(self, count: int, file: int, data: bytes) -> None:
        inode = self._at(self._open[file])
        assert inode is not None
        self._data[inode] += bytes(data[:count])
        self._synced[inode] = False

    def _fdatasync(self, _: None, file: int) -> None:
        path = self._open[file]
        inode = self._at(path)
        if inode not in (None, _DIRECTORY) and path != self._root:
            self._synced[inode] = True
        for name, versions in self._names.items():
            if name.parent == path:
                del versions[:-1]

    _fsync = _fdatasync

    def _mkdir(self, _: None, path: str, mode: int) -> None:
        self._set(Path(path), _DIRECTORY)

    def _replace(self, _: None, source: str, target: str) -> None:
        self._set(Path(target), self._at(Path(source)))
        self._set(Path(source), None)

    _rename = _replace

    def _link(self, _: None, source: str, target: str) -> None:
        self._set(Path(target), self._at(Path(source)))

    def _unlink(self, _: None, path: str) -> None:
        self._set(Path(path), None)

    def states(self) -> Iterator[dict[Path, bytes | None]]:
        """Yield what may be in `root` if the power fails now; `None` is a directory."""
        paths = list(self._names)
        for versions in itertools.product(*(dict.fromkeys(self._names[path]) for path in paths)):
            present = {
                path: inode
                for path, inode in zip(paths, versions, strict=True)
                if inode is not None
            }
            for path in list(present):
                if path.parent != self._root and path.parent not in present:
                    del present[path]  # parents come first
            inodes = sorted(set(present.values()) - {_DIRECTORY})
            for contents in itertools.product(*map(self._contents, inodes)):
                data = dict(zip(inodes, contents, strict=True))
                yield {path: data.get(inode) for path, inode in present.items()}

    def _contents(self, inode: int) -> list[bytes]:
        data = self._data[inode]
        if self._synced[inode]:
            return [data]
        half = len(data) // 2
        torn = [b"", data[:half], bytes(len(data)), bytes(half) + data[half:], data]
        return list(dict.fromkeys(torn))


class Ruins:
    """A directory that is made to look like one state after the other."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._now: dict[Path, bytes | None] = {}
        root.mkdir()

    def become(self, state: dict[Path, bytes | None]) -> None:
        """Change what differs: one state is much like the one before.

        Args:
            state: by path relative to `root`.
        """
        for path in sorted(self._now.keys() - state.keys(), reverse=True):
            if self._now[path] is None:
                (self.root / path).rmdir()
            else:
                (self.root / path).unlink()
        for path, data in sorted(state.items()):
            if path in self._now and self._now[path] == data:
                continue
            if data is None:
                (self.root / path).mkdir()
            else:
                (self.root / path).write_bytes(data)
        self._now = dict(state)
