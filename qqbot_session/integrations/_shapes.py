"""Checks that a framework still has the hooks that an integration replaces.

With a version that has moved them the bot would run on without us, and forget its session without
a word. So the module refuses to be imported, in one sentence that names what is installed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any


def missing(integration: str, name: str, extra: str, *, forks: Iterable[str] = ()) -> ImportError:
    """Return the error that says what to install, or that a fork is not known.

    Args:
        integration: the module that needs the framework.
        name: the extra that installs it.
        extra: the distribution that it installs.
        forks: import names of forks, for which the extra would be the wrong advice.
    """
    for fork in forks:
        if importlib.util.find_spec(fork) is not None:
            return ImportError(
                f"{_versions(fork)} is a fork of botpy with an import name of its own ({fork}):"
                f" {integration} does not know it"
            )
    return ImportError(f'{integration} needs {extra}: pip install "qqbot_session[{name}]"')


def too_old(package: str, needed: str, integration: str, *, beside: str = "") -> ImportError:
    """Return the error that names what is installed, and what would do.

    Args:
        beside: another package and version that the integration needs.
    """
    more = f", and {beside} or later" if beside else ""
    return ImportError(
        f"{_versions(package)} is too old: {integration} does not know this version,"
        f" it needs {package} {needed} or later{more}"
    )


def require(
    package: str, owner: Any, hooks: Mapping[str, tuple[str, ...]], integration: str
) -> None:
    """Check that `owner` has these methods, with these as their first parameters.

    Args:
        package: a distribution's name, or an import name that several have, such as `botpy`.
        owner: the class, or the module, that has the hooks.
        hooks: from a method's name to its parameters' names, without `self`.
        integration: the module that needs them.

    Raises:
        ImportError: it does not; names the version and the hook.
    """
    for name, parameters in hooks.items():
        hook = getattr(owner, name, None)
        shown = f"{owner.__name__}.{name}({', '.join(parameters)})"
        if not callable(hook) or not _takes(hook, parameters):
            raise ImportError(
                f"{_versions(package)} has no {shown}: {integration} does not know this version"
            )


def require_fields(package: str, owner: Any, names: Iterable[str], integration: str) -> None:
    """Check that a dataclass has these fields.

    Raises:
        ImportError: it does not; names the version and the fields.
    """
    if missing := sorted(set(names) - set(getattr(owner, "__dataclass_fields__", ()))):
        raise ImportError(
            f"{_versions(package)} has no {owner.__name__}.{', '.join(missing)}:"
            f" {integration} does not know this version"
        )


def _takes(hook: Any, parameters: tuple[str, ...]) -> bool:
    if not parameters:  # and perhaps no signature: a descriptor of the framework's
        return True
    found = [name for name in inspect.signature(hook).parameters if name != "self"]
    return tuple(found[: len(parameters)]) == parameters


def _versions(package: str) -> str:
    """Name what is installed: a distribution, or those that share an import name."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return f"{package} {metadata.version(package)}"
    names = metadata.packages_distributions().get(package, [])
    found = [f"{name} {metadata.version(name)}" for name in sorted(set(names))]
    return " or ".join(found) or f"this {package}"
