"""The checks of `.ci/release` that are easier said in Python.

check_release.py source CLONE              print the one address of the project
check_release.py addresses CLONE           every other address agrees with it
check_release.py dist CLONE DIST TAG       the wheel and the sdist are what the tag has
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAME = "qqbot_session"
LEFT_OUT = re.compile(r"\.ci/|\.github/|\.gitignore|\.pre-commit-config\.yaml|findings/")
_GITHUB = re.compile(r"https://(?:raw\.)?github(?:usercontent)?\.com/([\w.-]+/qqbot_session)\b")
_PAGES = re.compile(r"https://([\w-]+)\.github\.io/(\w+)")


def project(root: Path) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    return table


def source(root: Path) -> str:
    """Return `Source`, the one constant that every other address of the project comes from."""
    return str(project(root)["urls"]["Source"])


def tracked(root: Path) -> list[str]:
    command = ["git", "-C", str(root), "ls-files", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name]


def foreign_addresses(root: Path) -> Iterator[str]:
    """Yield each address of this project, in any file, that does not agree with `Source`."""
    owner, name = source(root).removeprefix("https://github.com/").split("/")
    for file in tracked(root):
        path = root / file
        if path.suffix in {".md", ".py", ".toml", ".yml"}:
            text = path.read_text("utf-8")
            found = [match[0] for match in _GITHUB.finditer(text) if match[1] != f"{owner}/{name}"]
            found += [
                match[0]
                for match in _PAGES.finditer(text)
                if match[2] == NAME and match[1] != owner.lower()
            ]
            yield from (f"{file}: {address}" for address in found)


def differences(root: Path, dist: Path, tag: str) -> Iterator[str]:
    """Yield what is wrong with what was built from a clone of the tag."""
    version = project(root)["version"]
    if tag != f"v{version}":
        yield f"the tag is {tag}, the version {version}"
    package = (root / NAME / "__init__.py").read_text("utf-8")
    if f'__version__ = "{version}"' not in package:
        yield f"__version__ is not {version}"
    if f"## [{version}]" not in (root / "CHANGELOG.md").read_text("utf-8"):
        yield f"CHANGELOG.md has no section [{version}]"
    expected = {f"{NAME}-{version}.tar.gz", f"{NAME}-{version}-py3-none-any.whl"}
    built = {path.name for path in dist.iterdir()}
    if built != expected:
        yield f"built {sorted(built)}, expected {sorted(expected)}"
        return
    files = set(tracked(root))
    with tarfile.open(dist / f"{NAME}-{version}.tar.gz") as archive:
        held = {member.name.partition("/")[2] for member in archive if member.isfile()}
    wanted = {name for name in files if not LEFT_OUT.match(name)} | {"PKG-INFO", ".gitignore"}
    yield from (f"sdist: not in the tag: {name}" for name in sorted(held - wanted))
    yield from (f"sdist: missing: {name}" for name in sorted(wanted - held))
    with zipfile.ZipFile(dist / f"{NAME}-{version}-py3-none-any.whl") as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    wanted = {name for name in files if name.startswith(f"{NAME}/")} | {f"{NAME}_pytest.py"}
    yield from (f"wheel: {name}" for name in sorted(held ^ wanted))


def main(command: str, root: str, *rest: str) -> int:
    if command == "source":
        print(source(Path(root)))
        return 0
    if command == "addresses":
        found = list(foreign_addresses(Path(root)))
    else:
        dist, tag = rest
        found = list(differences(Path(root), Path(dist), tag))
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
