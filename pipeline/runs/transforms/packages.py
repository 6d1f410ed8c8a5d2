"""Find the installed packages that a job's code imports, and their versions."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

from pipeline.config.sections import TransformSettings
from pipeline.runs.transforms.reach import allows
from pipeline.runs.transforms.source import Sources

_in_use: dict[str, str] = {}
"""Version of each package when a job of this process first used it. An upgrade is imported by new
processes only."""


def imported_packages(modules: Iterable[str], settings: TransformSettings) -> list[str]:
    """List the packages outside of the allowed modules that these modules import.

    Args:
        modules: Names of allowed modules; those that they import are followed.
        settings: Which modules are allowed.
    """
    sources, pending, packages = Sources(), list(modules), set[str]()
    seen = set(pending)
    while pending:
        module = sources.module(pending.pop())
        for path, _ in module.imports if module is not None else ():
            names = [".".join(path[: depth + 1]) for depth in range(len(path))]
            ours = {name for name in names if allows(settings.allowed, name)}
            pending += ours - seen
            seen |= ours
            if not ours and path[0] not in sys.stdlib_module_names:
                packages.add(path[0])
    return sorted(packages)


def versions_in_use(packages: Iterable[str]) -> dict[str, str]:
    """Return the version of each package in this process; `none` if it is not installed."""
    versions = {}
    for package in packages:
        installed = _in_use.get(package) or _installed(package)
        if package in sys.modules:
            _in_use.setdefault(package, installed)
        versions[package] = installed
    return versions


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        names = _distributions(_folder_times()).get(package, ())
        return ", ".join(f"{version(name)}" for name in names) or "none"


def _folder_times() -> tuple[int, ...]:
    """Return when the folders of installed packages last changed."""
    times = []
    for entry in sys.path:
        with suppress(OSError):  # Imports ignore what cannot be looked at, too.
            times.append(Path(entry).stat().st_mtime_ns)
    return tuple(times)


@lru_cache(1)
def _distributions(folder_times: tuple[int, ...]) -> Mapping[str, Sequence[str]]:
    """Return the distributions of each importable name; to read them all takes 0.1 s and more.

    Args:
        folder_times: When their folders last changed; they are read again afterwards.
    """
    return packages_distributions()
